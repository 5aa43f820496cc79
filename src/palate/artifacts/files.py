"""Files that are either whole or absent: write to a temporary name, flush, rename."""

import errno
import gzip
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from palate.errors import PalateError


def describe_os_error(error: OSError, path: str | Path, action: str) -> PalateError:
    """The same failure in words that say what to do; `action` is "read" or "write"."""
    remedies = {
        errno.ENOENT: "no such file; check the path",
        errno.EACCES: f"no permission to {action} it; change its mode or owner",
        errno.EPERM: f"no permission to {action} it; change its mode or owner",
        errno.ENOSPC: "the disk is full; free space and run the same command again",
        errno.EDQUOT: "the disk quota is used up; free space and run the same command again",
        errno.EISDIR: "it is a directory; name a file",
        errno.ENOTDIR: "a part of its path is a file, not a directory; choose another path",
        errno.EEXIST: "a part of its path is a file, not a directory; choose another path",
        errno.EFBIG: "the file would be larger than allowed here; raise the limit (ulimit -f)",
        errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
        errno.EROFS: "the file system is read-only; choose another output",
    }
    reason = remedies.get(error.errno or 0, error.strerror or str(error))
    return PalateError(f"{path}: cannot {action}: {reason}")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place on success, delete it on failure.

    Raises PalateError on a full disk, missing permission and the like; an older file at `path`
    is then untouched.
    """
    final = Path(path)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, final)
    except OSError as error:
        raise describe_os_error(error, final, "write") from error
    finally:
        # What made the writing fail (a file among the parents) fails here too, and is told already.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


@contextmanager
def open_binary(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, through gzip where its name ends in `.gz`."""
    opener: Any = gzip.open if str(path).endswith(".gz") else open
    try:
        handle: IO[bytes] = opener(path, "rb")
    except OSError as error:
        raise describe_os_error(error, path, "read") from error
    with handle:
        yield handle


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise describe_os_error(error, path, "read") from error


def sha256_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
