"""A reward model on disk: a plain sequence-classification checkpoint, and `reward_model.json`.

A pooling or head that no plain class has makes it a body and a head file of ours (`head_file`).

The sidecar holds what the plain format has no place for: pooling, fingerprint, lengths, where mean,
deviation and temperature come from, and texts with their rewards for the check at loading.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from palate.artifacts.files import describe_os_error, sha256_file, write_json
from palate.errors import PalateError
from palate.model.head_file import VARIANT, mark_config, write_head
from palate.model.reward_model import RewardModel
from palate.model.selfcheck import max_positions
from palate.rendering import LengthSettings, Renderer

SIDECAR = "reward_model.json"
FORMAT_VERSION = 1
MAX_HASHED_BYTES = 4 * 2**30


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """`reward_model.json`."""

    pooling: str
    head_name: str
    """Of the last layer in the plain class; reward_head where the head is in a file of its own."""
    plain: bool = True
    """Whether plain `AutoModelForSequenceClassification` loads it to the same rewards."""
    layout: str
    dtype: str
    end_of_turn: str
    template_arguments: Mapping[str, Any]
    lengths: Mapping[str, Any]
    fingerprint: Mapping[str, str]
    """Hashes of template, special tokens, tokenizer and weights."""
    reward: Mapping[str, Any] | None = None
    """mean and std of rewards, with the split and the number of answers they come from."""
    temperature: Mapping[str, Any] | None = None
    """value, whether it is a bound of its fit (it then calibrates nothing), and the split, prompts
    and clusters that it was fitted on."""
    length_calibration: Mapping[str, Any] | None = None
    """A curve of reward on log(1 + words) and the share of it that is subtracted where it is asked
    for; never in the stored rewards and weights."""
    trust: Mapping[str, Any] | None = None
    """What support distance and the head's posterior were fitted on, with their quantiles
    (`palate.model.support`); None when they were not."""
    reference_scores: tuple[Mapping[str, Any], ...] = ()
    """prompt, response, reward: scored again when the model is loaded."""
    data_sha256: Mapping[str, str] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


def save_checkpoint(directory: Path, model: RewardModel, renderer: Renderer) -> dict[str, str]:
    """Write weights, configuration and tokenizer so that plain classes load them; hash what counts.

    A model that is not plain is written so that they refuse it. The files appear under their names
    only when all of them are written. Raises PalateError when the disk is full or not writable, and
    for a quantised body.
    """
    if model.quantized:
        raise PalateError(
            "a quantised body can't be saved: its weights are rounded to what bitsandbytes packs;"
            " merge the adapters that were trained on it, or load it without body.quantization"
        )
    config = model.config
    config.num_labels = 1
    config.problem_type = "regression"  # servers then print the reward, not its sigmoid
    config.pad_token_id = renderer.pad_id
    config.get_text_config().pad_token_id = renderer.pad_id
    config.use_cache = True
    partial = directory.with_name(f".{directory.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model.transformer.save_pretrained(partial, variant=None if model.plain else VARIANT)
        if not model.plain:
            write_head(partial, model)
            mark_config(partial, model)
        renderer.tokenizer.save_pretrained(partial)
        _name_generic_class(partial / "tokenizer_config.json")
        directory.mkdir(parents=True, exist_ok=True)
        for path in sorted(partial.iterdir()):
            path.replace(directory / path.name)
    except OSError as error:
        raise describe_os_error(error, directory, "write") from error
    except Exception as error:  # safetensors reports a full disk with a class of its own
        if "No space left" in str(error) or "I/O error" in str(error):
            raise PalateError(
                f"{directory}: cannot write: {error}; free space and resume"
            ) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {**renderer.fingerprint(), "weights": weights_hash(directory)}


def _name_generic_class(path: Path) -> None:
    """Write the class under the name that every version of `transformers` knows."""
    values = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**values, "tokenizer_class": "PreTrainedTokenizerFast"})


def weights_hash(directory: Path) -> str:
    """One hash over all weight files, by name."""
    return " ".join(sha256_file(path) for path in sorted(directory.glob("*.safetensors")))


def write_sidecar(directory: Path, sidecar: Sidecar) -> None:
    write_json(directory / SIDECAR, asdict(sidecar))


def read_sidecar(directory: Path) -> Sidecar | None:
    """The sidecar, or None for a model that palate did not write."""
    path = directory / SIDECAR
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise PalateError(
                f"{path}: format version {version}; this palate reads {FORMAT_VERSION}"
            )
        known = {item.name for item in fields(Sidecar)}
        sidecar = Sidecar(**{name: value for name, value in values.items() if name in known})
        LengthSettings(**sidecar.lengths)
        return sidecar
    except (ValueError, TypeError, AttributeError) as error:
        if isinstance(error, PalateError):
            raise
        raise PalateError(f"{path}: damaged: {error}; restore it or train again") from error


def renderer_for(tokenizer: Any, sidecar: Sidecar | None, model: RewardModel) -> Renderer:
    """The renderer that a saved model was trained with; without a sidecar, the template as it is,
    read as the plain class reads it."""
    if sidecar is None:
        config = model.config.get_text_config()
        return Renderer(
            tokenizer,
            LengthSettings(overlong="cut").resolved(max_positions(config)),
            keep_template=True,
            unread_id=config.pad_token_id if model.pooling == "last" else None,
        )
    lengths = LengthSettings(**sidecar.lengths)
    return Renderer(tokenizer, lengths, dict(sidecar.template_arguments))


def check_fingerprint(
    name: str,
    directory: Path,
    renderer: Renderer,
    sidecar: Sidecar,
    allow_changed: Iterable[str] = (),
) -> None:
    """Refuse a checkpoint whose template, special tokens, tokenizer or weights are not those of its
    training, except for parts named in `allow_changed`.

    Weights of more than `MAX_HASHED_BYTES` are not read a second time for it. Raises PalateError,
    naming what changed.
    """
    allowed = set(allow_changed)
    unknown = allowed - {*sidecar.fingerprint}
    if unknown:
        raise PalateError(
            f"allow_changed names {sorted(unknown)}; known: {sorted(sidecar.fingerprint)}"
        )
    now = renderer.fingerprint()
    num_bytes = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    if "weights" not in allowed and num_bytes <= MAX_HASHED_BYTES:
        now["weights"] = weights_hash(directory)
    changed = [part for part, value in now.items() if sidecar.fingerprint.get(part) != value]
    refused = [part for part in changed if part not in allowed]
    if refused:
        raise PalateError(
            f"{name}: not as it was trained: {', '.join(refused)} changed since; the rewards would"
            f" be others. Restore the files, or allow it with allow_changed {','.join(refused)}"
        )
