"""Run the shell commands of README.md, in order, in a scratch copy of what they need.

A fenced block marked `sh` is run with `bash -e`; one marked `sh no-run` shows a command that needs
what a test machine lacks (the hub, a GPU). `make` targets are left to CI, which calls
them itself.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def main() -> int:
    """Exit status 1 when a command fails."""
    readme = Path(sys.argv[1]).resolve()
    blocks = FENCE.findall(readme.read_text(encoding="utf-8"))
    scripts = [
        (language, text)
        for language, options, text in blocks
        if language in ("sh", "python") and "no-run" not in options
    ]
    assert scripts, f"{readme} has no command to run"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    num_run = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("examples", "runs/quickstart"):
            place = Path(scratch) / name
            place.parent.mkdir(exist_ok=True)
            place.symlink_to(readme.parent / name)
        for language, text in scripts:
            lines = [line for line in text.splitlines() if not line.startswith("make ")]
            if not any(line.strip() for line in lines):
                continue
            program = ["bash", "-ec"] if language == "sh" else [sys.executable, "-c"]
            print("$ " + "\n  ".join(lines), flush=True)
            done = subprocess.run([*program, "\n".join(lines)], cwd=scratch, env=environment)
            if done.returncode:
                print(f"README: exit status {done.returncode}", file=sys.stderr)
                return 1
            num_run += 1
    print(f"README: {num_run} blocks run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
