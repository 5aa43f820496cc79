"""A worker in another environment, driven over pipes: one JSON object a line, a reply for each.

Both environments import this file.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.speed.cases import ALLOCATOR

ROOT = Path(__file__).resolve().parents[2]


class WorkerError(RuntimeError):
    """A worker failed; holds its traceback or where its log lies."""


def serve(handlers: Mapping[str, Callable[..., Any]]) -> None:
    """Answer requests from stdin until it closes. What libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"result": handlers[request["op"]](**request["arguments"])}
        except Exception:
            reply = {"error": traceback.format_exc()}
        print(json.dumps(reply), file=replies, flush=True)


class Worker:
    """A long-lived process that computes only while it is asked."""

    def __init__(self, python: Path, module: str, log: Path, num_threads: int) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.name, self.log = module.rsplit(".", 1)[-1], log
        environment = {
            **os.environ,
            **ALLOCATOR,
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": str(num_threads),
        }
        with open(log, "ab") as handle:
            self._process = subprocess.Popen(
                [str(python), "-m", module],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=handle,
                text=True,
            )

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Its reply. Raises WorkerError when it failed or ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"op": op, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._process.wait()
            raise WorkerError(
                f"worker {self.name} ended with status {status} at {op!r}; its log is {self.log}"
                " (status -9: out of memory, the largest step takes about 16 GiB)"
            )
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(f"worker {self.name} failed at {op!r}:\n{reply['error']}")
        result: dict[str, Any] = reply["result"]
        return result

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        if kind is not None:
            self._process.kill()
        self._process.wait()
        self._process.stdout.close()
