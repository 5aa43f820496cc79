"""Run the commands of README.md and docs/*.md, each file in a scratch copy of what it needs.

A fenced block marked `sh` is run with `bash -e`, one marked `python` with Python; `sh no-run` and
`python no-run` show what needs more than a test machine has (the hub, a GPU). `make` targets are
left to CI, which calls them itself. Two pages run at a time, each with one thread.
"""

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAMS = {"sh": ["bash", "-ec"], "python": [sys.executable, "-c"]}


NUM_PAGES_AT_ONCE = 2


def main() -> int:
    """Exit status 1 as soon as a page fails; pages that have begun end first."""
    with ThreadPoolExecutor(NUM_PAGES_AT_ONCE) as pool:
        running = [pool.submit(run_page, Path(name)) for name in sys.argv[1:]]
        for page in as_completed(running):
            succeeded, printed = page.result()
            print(printed, flush=True)
            if not succeeded:
                pool.shutdown(cancel_futures=True)
                return 1
    return 0


def run_page(page: Path) -> tuple[bool, str]:
    """Whether every command of the page succeeds, and what was printed."""
    scripts = [
        (PROGRAMS[language], "\n".join(lines))
        for language, options, text in FENCE.findall(page.read_text(encoding="utf-8"))
        if language in PROGRAMS and "no-run" not in options
        if any(lines := [line for line in text.splitlines() if not line.startswith("make ")])
    ]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    printed: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("examples", "runs/quickstart"):
            place = Path(scratch) / name
            place.parent.mkdir(exist_ok=True)
            place.symlink_to(ROOT / name)
        for program, text in scripts:
            printed.append(f"{page.name} $ " + text.replace("\n", "\n  "))
            done = subprocess.run(
                [*program, text],
                cwd=scratch,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            printed.append(done.stdout)
            if done.returncode:
                printed.append(f"{page}: exit status {done.returncode}")
                return False, "\n".join(printed)
    printed.append(f"{page}: {len(scripts)} blocks run")
    return True, "\n".join(printed)


if __name__ == "__main__":
    sys.exit(main())
