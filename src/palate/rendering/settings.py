"""How rendering is done; nothing here changes a token."""

import os
from dataclasses import dataclass
from pathlib import Path

from palate.errors import PalateError

NO_CACHE = "off"


@dataclass(frozen=True, kw_only=True)
class RenderSettings:
    """Processes and cache of rendering. Raises PalateError for a negative count."""

    workers: int = 0
    """Processes that tokenise, this one among them; 1 = this one alone. 0 = one for each core that
    this process may use (shared among the processes of a run on this machine), and this one alone
    until there turns out to be enough to do that starting others pays."""
    cache: str = ""
    """Directory of token ids that earlier runs made; empty = palate/tokens in the user's cache
    directory, off = none is read or written."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise PalateError(f"render_workers is {self.workers}, must be 0 (automatic) or more")

    @property
    def num_processes(self) -> int:
        """Processes to use at most."""
        return self.workers or max(1, num_cores() // num_local_processes())

    @property
    def cache_directory(self) -> Path | None:
        """Where the cache is; None when it is off."""
        if self.cache == NO_CACHE:
            return None
        return Path(self.cache).expanduser() if self.cache else default_cache_directory()


HERE_ALONE = RenderSettings(workers=1, cache=NO_CACHE)
"""This process, no cache."""


def default_cache_directory() -> Path:
    """palate/tokens under XDG_CACHE_HOME, or under ~/.cache where that is not set."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "palate/tokens"


def num_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_local_processes() -> int:
    """Processes of this run on this machine, as `accelerate launch` and `torchrun` announce it."""
    announced = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(announced) if announced.isdigit() and int(announced) else 1
