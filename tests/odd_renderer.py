"""A renderer that misbehaves in another process. Imports little: each process loads it anew."""

import os
import signal
from typing import Any

from palate.rendering import Renderer


class Unforeseen(Exception):
    """An error with a class of its own."""


class OddRenderer(Renderer):
    """Fails, prints or ends its process where the prompt says so."""

    def _encode(self, messages: Any, *rest: Any) -> list[int]:
        text = messages[0].content
        if text == "raise":
            raise Unforeseen("at this prompt", 7)
        if text == "raise something odd":
            error = Unforeseen("that can't travel")
            error.culprit = lambda: None  # type: ignore[attr-defined]
            raise error
        if text == "print":
            print("a library says something")
        if text == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._encode(messages, *rest)
