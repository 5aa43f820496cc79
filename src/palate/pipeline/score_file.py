"""Score a file of any size: streamed, under a token budget, resumed after a kill."""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Literal

from tqdm import tqdm

from palate.artifacts.files import describe_os_error, sha256_json, write_json
from palate.errors import PalateError
from palate.model.quantization import Quantization
from palate.pipeline.parquet import jsonl_to_parquet
from palate.pipeline.score_rows import PendingRow, prepare_row, rows_in_order
from palate.scoring.scorer import DEFAULT_TOKENS_PER_MICROBATCH, Scorer, load

MICROBATCHES_PER_CHUNK = 16
"""Rows are gathered until they fill so many microbatches: longer chunks pack better, and a kill
loses at most one."""
MAX_ROWS_PER_CHUNK = 4096

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Which model on which rows."""

    model: str
    """A palate run, or any scalar reward model: directory or hub id."""
    data: str
    """Rows with `prompt` and `response`, or `responses`, or `messages` that end with an answer;
    .jsonl .json .csv .parquet, plain or .gz, or a hub data set id."""
    output: str
    """.jsonl or .parquet; each input row in its place, with `reward` (or `rewards`) and `error`."""
    overlong: Literal["checkpoint", "cut"] = "checkpoint"
    """A response over the limit: as the checkpoint says (usually an error in its row), or cut."""
    tokens_per_microbatch: int = DEFAULT_TOKENS_PER_MICROBATCH
    """Token slots of one forward pass: bounds memory, changes no reward."""
    device: str = "auto"
    """auto = cuda where there is one, otherwise cpu."""
    quantization: Quantization = "none"
    """8bit or 4bit: the body's linear layers rounded, for less memory; rewards change."""
    allow_changed: list[str] = field(default_factory=list)
    """Parts of the checkpoint that may differ from the training: template, tokenizer, ..."""
    trust_remote_code: bool = False
    """Run Python code that the checkpoint brings along."""
    hub_split: str = "train"
    """Split of a hub data set."""

    def __post_init__(self) -> None:
        if not self.output.endswith((".jsonl", ".parquet")):
            raise PalateError(f"output {self.output!r} must end in .jsonl or .parquet")
        if Path(self.output).exists():
            raise PalateError(f"{self.output}: exists already; remove it or choose another output")


@dataclass
class ScoreResult:
    """Counts of a finished file."""

    output: str
    num_rows: int
    num_errors: int
    """Rows with an error in them."""
    num_cut: int
    """Rows whose prompt or answer lost tokens to a limit."""
    num_resumed: int
    """Rows that an earlier, interrupted run had written."""


@dataclass(frozen=True)
class _Progress:
    """How far a partial file is whole: always to the end of a chunk, so that a resumed run cuts its
    chunks, and with them its batches, where an uninterrupted one does."""

    identity: str
    num_rows: int = 0
    num_errors: int = 0
    num_cut: int = 0
    num_bytes: int = 0


def score_file(config: ScoreConfig, on_row: Callable[[int], None] = lambda _: None) -> ScoreResult:
    """Write each input row with its reward, in order; resume where a killed run stopped.

    Results are appended to `OUTPUT.partial` chunk by chunk and renamed at the end. A row that can't
    be scored keeps its place with `error` and a null reward. Raises PalateError when the partial
    file belongs to another model or other data.
    """
    scorer = load(
        config.model,
        device=config.device,
        quantization=config.quantization,
        tokens_per_microbatch=config.tokens_per_microbatch,
        allow_changed=config.allow_changed,
        trust_remote_code=config.trust_remote_code,
    )
    if config.overlong == "cut":
        scorer.renderer.lengths = replace(scorer.renderer.lengths, overlong="cut")
    partial = Path(config.output + ".partial")
    progress = _claim(partial, _identity(config, scorer))
    num_resumed = progress.num_rows
    try:
        with open(partial, "r+b") as handle:
            handle.truncate(progress.num_bytes)
            handle.seek(0, os.SEEK_END)
            with tqdm(
                desc="score", unit=" rows", initial=num_resumed, file=sys.stderr, disable=None
            ) as bar:
                for chunk in _chunks(config, scorer, num_resumed):
                    written = _write_chunk(handle, scorer, chunk, progress)
                    write_json(_owner(partial), asdict(written))
                    progress = written
                    bar.update(len(chunk))
                    on_row(progress.num_rows)
        _publish(partial, config.output)
    except OSError as error:
        described = describe_os_error(error, config.output, "write")
        raise PalateError(f"{described}; {_kept(partial, progress)}") from error
    except KeyboardInterrupt:
        logger.warning("%s", _kept(partial, progress))
        raise
    finally:
        if progress.num_rows == 0:
            partial.unlink(missing_ok=True)
            _owner(partial).unlink(missing_ok=True)
    return ScoreResult(
        config.output, progress.num_rows, progress.num_errors, progress.num_cut, num_resumed
    )


def _kept(partial: Path, progress: _Progress) -> str:
    if progress.num_rows == 0:
        return "no row was finished"
    return f"{progress.num_rows} rows are kept in {partial}, the same command goes on from there"


def _identity(config: ScoreConfig, scorer: Scorer) -> str:
    """What a partial file belongs to: model, rendering, and the input as it is now."""
    path = Path(config.data)
    stat = path.stat() if path.exists() else None
    return sha256_json(
        [
            dict(scorer.sidecar.fingerprint) if scorer.sidecar else config.model,
            scorer.renderer.fingerprint(),
            config.overlong,
            config.quantization,
            config.data,
            [stat.st_size, stat.st_mtime_ns] if stat else config.hub_split,
        ]
    )


def _owner(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _claim(partial: Path, identity: str) -> _Progress:
    """What a run with this identity has finished already; the file is made where there is none."""
    owner = _owner(partial)
    try:
        if partial.exists() and not owner.exists():
            raise PalateError(f"{partial}: not written by palate score; remove it or rename it")
        if partial.exists():
            progress = _Progress(**json.loads(owner.read_text()))
            if progress.num_rows:
                if progress.identity != identity:
                    raise PalateError(
                        f"{partial}: left by a run with another model or other data; remove it to"
                        " start anew"
                    )
                if partial.stat().st_size < progress.num_bytes:
                    raise PalateError(
                        f"{partial}: shorter than the {progress.num_bytes} bytes that were written;"
                        " remove it to start anew"
                    )
                return progress
        write_json(owner, asdict(_Progress(identity)))
        partial.touch()
        return _Progress(identity)
    except OSError as error:
        raise describe_os_error(error, partial, "write") from error


def _chunks(config: ScoreConfig, scorer: Scorer, num_done: int) -> Iterator[list[PendingRow]]:
    budget = MICROBATCHES_PER_CHUNK * config.tokens_per_microbatch
    chunk: list[PendingRow] = []
    num_tokens = 0
    for number, row in enumerate(rows_in_order(config.data, config.hub_split)):
        if number < num_done:
            continue
        chunk.append(prepare_row(row, scorer))
        num_tokens += sum(len(ids) for ids in chunk[-1].ids if ids is not None)
        if num_tokens >= budget or len(chunk) >= MAX_ROWS_PER_CHUNK:
            yield chunk
            chunk, num_tokens = [], 0
    if chunk:
        yield chunk


def _write_chunk(
    handle: IO[bytes], scorer: Scorer, chunk: list[PendingRow], progress: _Progress
) -> _Progress:
    """Score and append a chunk; return the progress with it, once it is on the disk."""
    known = [ids for pending in chunk for ids in pending.ids if ids is not None]
    rewards = iter(scorer.score_ids(known))
    lines = []
    for pending in chunk:
        values = [None if ids is None else next(rewards) for ids in pending.ids]
        name, value = ("rewards", values) if pending.is_list else ("reward", values[0])
        scored = {**pending.row, name: value, "error": "; ".join(pending.errors) or None}
        # Dates and decimals of a Parquet file are written as text.
        lines.append(json.dumps(scored, default=str) + "\n")
    handle.write("".join(lines).encode())
    handle.flush()
    os.fsync(handle.fileno())
    return _Progress(
        progress.identity,
        progress.num_rows + len(chunk),
        progress.num_errors + sum(bool(pending.errors) for pending in chunk),
        progress.num_cut + sum(pending.is_cut for pending in chunk),
        handle.tell(),
    )


def _publish(partial: Path, output: str) -> None:
    if output.endswith(".parquet"):
        kept = f"all rewards are in {partial}, rename it to .jsonl"
        jsonl_to_parquet(partial, output, kept)
        partial.unlink()
    else:
        partial.replace(output)
    _owner(partial).unlink()
