"""Run the commands of README.md and docs/*.md, each file in a scratch copy of what it needs.

A fenced block marked `sh` is run with `bash -e`, one marked `python` with Python; `sh no-run` and
`python no-run` show what needs more than a test machine has (the hub, a GPU). `make` targets are
left to CI, which calls them itself.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAMS = {"sh": ["bash", "-ec"], "python": [sys.executable, "-c"]}


def main() -> int:
    """Exit status 1 as soon as a command fails."""
    return 0 if all(runs_through(Path(name)) for name in sys.argv[1:]) else 1


def runs_through(page: Path) -> bool:
    """Whether every command of the page succeeds."""
    scripts = [
        (PROGRAMS[language], "\n".join(lines))
        for language, options, text in FENCE.findall(page.read_text(encoding="utf-8"))
        if language in PROGRAMS and "no-run" not in options
        if any(lines := [line for line in text.splitlines() if not line.startswith("make ")])
    ]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("examples", "runs/quickstart"):
            place = Path(scratch) / name
            place.parent.mkdir(exist_ok=True)
            place.symlink_to(ROOT / name)
        for program, text in scripts:
            print(f"{page.name} $ " + text.replace("\n", "\n  "), flush=True)
            done = subprocess.run([*program, text], cwd=scratch, env=environment)
            if done.returncode:
                print(f"{page}: exit status {done.returncode}", file=sys.stderr)
                return False
    print(f"{page}: {len(scripts)} blocks run")
    return True


if __name__ == "__main__":
    sys.exit(main())
