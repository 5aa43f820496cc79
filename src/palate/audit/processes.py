"""A further process that works out facts about answers while this one reads.

It is a fresh interpreter at the two ends of a pipe, as those that tokenise
(`palate.rendering.workers`), for the same reasons: no fork, no second run of the caller's script,
and none outlives its parent.
"""

import json
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from palate.audit.answers import AnswerFacts, answer_facts
from palate.errors import PalateError

MAX_WAITING = 2
"""Chunks that wait for the other process; further ones are worked out here."""
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    " from palate.audit.processes import serve; serve()"
)


class FactsInOrder:
    """Chunks of texts in, their facts out in the order of the chunks, at most a few in memory.

    The other process starts with the chunk after `num_alone`: for few texts it would not pay.
    """

    def __init__(self, take: Callable[[AnswerFacts], None], num_alone: int, share: bool) -> None:
        self._take = take
        self._num_alone = num_alone
        self._share = share
        self._waiting: deque[Future[AnswerFacts]] = deque()
        self._other: _Other | None = None

    def add(self, texts: Sequence[str]) -> None:
        """Hand over a chunk; raises PalateError where the other process ended by itself."""
        if self._share and not self._num_alone and self._other is None:
            self._other = _Other()
        if self._num_alone:
            self._num_alone -= 1
        if self._other is not None and sum(not f.done() for f in self._waiting) < MAX_WAITING:
            self._waiting.append(self._other.submit(texts))
        else:
            here: Future[AnswerFacts] = Future()
            here.set_result(answer_facts(texts))
            self._waiting.append(here)
        while self._waiting and self._waiting[0].done():
            self._take(self._waiting.popleft().result())

    def finish(self) -> None:
        """Take what is still on its way."""
        while self._waiting:
            self._take(self._waiting.popleft().result())

    def close(self) -> None:
        """End the other process, whatever it is doing."""
        if self._other is not None:
            self._other.close()


class _Other:
    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                process_group=0,  # Ctrl-C is for the parent, which ends the other
            )
        except OSError as error:
            raise PalateError(
                f"can't start a second process: {error}; set processes to 1"
            ) from error
        self._thread = ThreadPoolExecutor(1, "audit")

    def submit(self, texts: Sequence[str]) -> "Future[AnswerFacts]":
        return self._thread.submit(self._ask, texts)

    def _ask(self, texts: Sequence[str]) -> AnswerFacts:
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        assert pipe_in is not None
        assert pipe_out is not None
        try:
            pickle.dump(texts, pipe_in)
            pipe_in.flush()
            facts: AnswerFacts = pickle.load(pipe_out)
        except (EOFError, OSError, ValueError, pickle.UnpicklingError) as lost:
            raise PalateError(
                f"the second process ended by itself (exit code {self._process.wait()}; -9 is often"
                " a lack of memory); set processes to 1"
            ) from lost
        return facts

    def close(self) -> None:
        self._process.kill()
        self._thread.shutdown(cancel_futures=True)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what could not be sent is no loss any more
                    pipe.close()


def serve() -> None:
    """The other side: lists of texts come, their facts go."""
    questions = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not fall among the answers
    while True:
        try:
            texts = pickle.load(questions)
        except EOFError:
            os._exit(0)
        try:
            pickle.dump(answer_facts(texts), answers)
            answers.flush()
        except OSError:
            os._exit(0)
