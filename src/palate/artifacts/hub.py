"""Files of a hub repository, without waiting for a network that is not there."""

import os
import re
from pathlib import Path

from palate.errors import PalateError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
CHECK_TIMEOUT_SECONDS = 3.0
MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def looks_like_hub_id(name: str) -> bool:
    """Whether `name` has the form `owner/name` and isn't a path on this disk."""
    return bool(HUB_ID.fullmatch(name)) and "/" in name and not Path(name).exists()


def hub_is_reachable() -> bool:
    """One request with a short time-out: the hub's client would retry for minutes."""
    import httpx
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or os.environ.get("TRANSFORMERS_OFFLINE") == "1":
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=CHECK_TIMEOUT_SECONDS)
    except httpx.HTTPError:
        return False
    return True


def model_directory(name: str) -> Path:
    """The local directory of a checkpoint: `name` itself, or a snapshot of that hub repository.

    Raises PalateError when `name` is neither a directory nor a hub id, and at once when the hub
    can't be reached and its cache does not hold the repository.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if not looks_like_hub_id(name):
        raise PalateError(
            f"{name}: no such directory, and not a hub id of the form owner/name"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=MODEL_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    if not hub_is_reachable():
        raise PalateError(
            f"{name}: not a directory here, not in the hub cache, and the hub cannot be reached;"
            " download the checkpoint on a machine with a network and pass its directory"
        )
    try:
        return Path(snapshot_download(name, allow_patterns=MODEL_FILES))
    except HfHubHTTPError as error:
        raise PalateError(f"{name}: the hub refused: {error}") from error
