"""Files of a hub repository, without waiting for a network that is not there."""

import os
import re
import threading
from pathlib import Path

from palate.errors import PalateError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
CHECK_TIMEOUT_SECONDS = 3.0
MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]


def looks_like_hub_id(name: str, *, with_folder: bool = False) -> bool:
    """Whether `name` has the form `owner/name`, or `owner/name/folder`, and is no path here."""
    start = HUB_ID.match(name)
    rest = name[start.end() :] if start else name
    return start is not None and (with_folder or not rest) and not Path(name).exists()


def hub_is_reachable() -> bool:
    """Whether the hub answers in `CHECK_TIMEOUT_SECONDS`; its client would retry for minutes."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or os.environ.get("TRANSFORMERS_OFFLINE") == "1":
        return False
    answers: list[bool] = []
    # A look-up of the host's name heeds no time-out, so the whole request is left behind when late.
    asking = threading.Thread(target=lambda: answers.append(_hub_answers()), daemon=True)
    asking.start()
    asking.join(CHECK_TIMEOUT_SECONDS)
    return answers == [True]


def _hub_answers() -> bool:
    from huggingface_hub import constants, get_session

    try:
        response = get_session().head(constants.ENDPOINT, timeout=CHECK_TIMEOUT_SECONDS)
    except Exception:  # the hub's client has changed its HTTP library twice, and errors with it
        return False
    return int(response.status_code) < 500


def model_directory(name: str) -> Path:
    """The local directory of a checkpoint: `name`, its `model` folder if it is a run of ours, or a
    snapshot of that hub repository.

    Raises PalateError when `name` is neither a directory nor a hub id, and at once when the hub
    can't be reached and its cache does not hold the repository.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        in_run = path / "model"
        return in_run if (in_run / "config.json").exists() else path
    if not looks_like_hub_id(name):
        raise PalateError(f"{name}: no such directory, and not a hub id of the form owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=MODEL_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise PalateError(f"{name}: no such directory, and not a hub id: {error}") from error
    if not hub_is_reachable():
        raise PalateError(
            f"{name}: not a directory here, not in the hub cache, and the hub cannot be reached;"
            " download the checkpoint on a machine with a network and pass its directory"
        )
    try:
        return Path(snapshot_download(name, allow_patterns=MODEL_FILES))
    except OSError as error:  # the hub's own errors, a lost connection, a full disk
        raise PalateError(
            f"{name}: not to be had from the hub: {error}; or pass a checkpoint's directory"
        ) from error
