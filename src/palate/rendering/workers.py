"""Further processes that tokenise.

Each is a fresh interpreter at the two ends of a pipe, not a fork and not `multiprocessing`: a fork
would copy threads and a GPU's context, and `multiprocessing` runs the caller's script anew. A
worker ends when its pipe does, so that it outlives no parent, however that one dies.
"""

import json
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from threading import Semaphore
from typing import Any

from palate.errors import PalateError
from palate.rendering.group_ids import GroupIds, GroupText, tokenise
from palate.rendering.renderer import Renderer

QUEUED_PER_WORKER = 2
"""One in the works and one that waits."""
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    " from palate.rendering.workers import serve; serve()"
)


class Workers:
    """Processes that tokenise for this one. They start in the background; `close` ends them."""

    def __init__(self, count: int, renderer: Renderer) -> None:
        self.count = count
        greeting = pickle.dumps(renderer)
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._free = Semaphore(0)
        self._threads = ThreadPoolExecutor(count, "render")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._greetings: list[Future[None]] = []
        try:
            for _ in range(count):
                self._processes.append(_start())
        except OSError as error:
            self.close()
            raise PalateError(
                f"can't start {count} rendering processes: {error}; set render_workers to 1"
            ) from error
        for process in self._processes:
            self._greetings.append(self._threads.submit(self._greet, process, greeting))

    def try_submit(self, texts: Sequence[GroupText]) -> "Future[list[GroupIds]] | None":
        """Have the texts tokenised elsewhere; None when all are busy, or not there yet.

        Waiting for the result raises what the worker raised. Raises PalateError when a worker
        could not start.
        """
        for greeting in self._greetings:
            if greeting.done():
                greeting.result()
        if not self._free.acquire(blocking=False):
            return None
        return self._threads.submit(self._tokenise, texts)

    def close(self) -> None:
        """End all workers, whatever they are doing."""
        for process in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):  # what could not be sent is no loss any more
                        pipe.close()

    def _greet(self, process: "subprocess.Popen[bytes]", greeting: bytes) -> None:
        _ask(process, greeting)
        self._idle.put(process)
        self._free.release(QUEUED_PER_WORKER)

    def _tokenise(self, texts: Sequence[GroupText]) -> list[GroupIds]:
        process = self._idle.get()
        try:
            ids: list[GroupIds] = _ask(process, texts)
        finally:
            self._idle.put(process)
            self._free.release()
        return ids


def _start() -> "subprocess.Popen[bytes]":
    # Several processes with many threads each would get in one another's way.
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", _START, json.dumps(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        process_group=0,  # Ctrl-C is for the parent, which ends the others
    )


def _ask(process: "subprocess.Popen[bytes]", question: Any) -> Any:
    """Send a question and wait for its answer; raises what the worker raised."""
    assert process.stdin is not None
    assert process.stdout is not None
    message = pickle.dumps(question)
    try:
        process.stdin.write(message)
        process.stdin.flush()
        answer, error, story = pickle.load(process.stdout)
    except (EOFError, OSError, ValueError, pickle.UnpicklingError) as lost:
        raise PalateError(
            f"a rendering process ended by itself (exit code {process.wait()}; -9 is often a lack"
            " of memory); set render_workers to a smaller number, 1 for none but this process"
        ) from lost
    if error is not None:
        error.add_note(f"In a rendering process:\n{story}")
        raise error
    return answer


def serve() -> None:
    """The worker's side: a renderer comes first, then lists of texts; each is answered."""
    questions = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not fall among the answers
    renderer: Renderer | None = None
    while True:
        try:
            question = pickle.load(questions)
        except EOFError:
            os._exit(0)
        try:
            if renderer is None:
                renderer, answer = pickle.loads(question), None
            else:
                answer = [tokenise(text, renderer) for text in question]
            message = pickle.dumps((answer, None, ""))
        except Exception as error:
            message = _told(error)
        try:
            answers.write(message)
            answers.flush()
        except OSError:
            os._exit(0)


def _told(error: Exception) -> bytes:
    """The error as it is, or, where it can't travel, its words."""
    story = traceback.format_exc()
    try:
        message = pickle.dumps((None, error, story))
        pickle.loads(message)
    except Exception:
        return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}"), story))
    return message
