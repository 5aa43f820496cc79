"""Score a file of any size: streamed, under a token budget, resumed after a kill."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from palate.artifacts.files import describe_os_error, sha256_json
from palate.errors import PalateError
from palate.model.quantization import Quantization
from palate.pipeline.parquet import jsonl_to_parquet
from palate.pipeline.score_order import MICROBATCHES_PER_CHUNK
from palate.pipeline.score_progress import (
    SCORED,
    Progress,
    claim,
    discard,
    forget,
    partial_directory,
    recorded,
)
from palate.pipeline.score_rows import (
    REWARD_FIELDS,
    SUPPORT_FIELDS,
    PendingRow,
    prepare_row,
    rows_in_order,
)
from palate.pipeline.score_stages import render, score, score_in_memory, write
from palate.scoring.scorer import DEFAULT_TOKENS_PER_MICROBATCH, Scorer, load

MAX_ROWS_PER_CHUNK = 4096
Step = Literal["render", "score", "write"]

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
    support: bool = False
    """Also `support_distance` from the training data and `support_beyond`, the share of reference
    answers that lie nearer (0, 0.5, 0.9, 0.95 or 0.99); `support_distances` and `support_beyonds`
    beside `rewards`. For models with stored trust."""
    overlong: Literal["checkpoint", "cut"] = "checkpoint"
    """A response over the limit: as the checkpoint says (usually an error in its row), or cut."""
    tokens_per_microbatch: int = DEFAULT_TOKENS_PER_MICROBATCH
    """Token slots of one forward pass: bounds memory, changes no reward."""
    device: str = "auto"
    """auto = cuda where there is one, otherwise cpu."""
    quantization: Quantization = "none"
    """8bit or 4bit: the body's linear layers rounded, for less memory; rewards change."""
    length_calibration: bool = False
    """Take the model's stored length calibration (palate calibrate) off the rewards."""
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
    """Rows whose answers an earlier, interrupted run had scored."""


def score_file(
    config: ScoreConfig, on_step: Callable[[Step, int], None] = lambda step, count: None
) -> ScoreResult:
    """Write each input row with its reward, in order; resume where a killed run stopped.

    One pass renders all rows to files in `OUTPUT.partial`; answers are scored from there in an
    order that brings equal prompts together wherever they stand; then the rows are written with
    their rewards, and the output gets its name. Rows that fit one chunk go through memory. A row
    that can't be scored keeps its place with `error` and a null reward. Memory: 24 bytes an answer,
    and a few hundred MiB. `on_step` hears of each step that a kill no longer undoes: rows rendered,
    answers scored, rows written so far.

    Raises PalateError when `OUTPUT.partial` belongs to another model or other data, where support
    is asked for and the model has none, and for a full disk and the like, with the name of the
    file.
    """
    scorer = load(
        config.model,
        device=config.device,
        quantization=config.quantization,
        tokens_per_microbatch=config.tokens_per_microbatch,
        allow_changed=config.allow_changed,
        trust_remote_code=config.trust_remote_code,
        length_calibration=config.length_calibration,
    )
    if config.overlong == "cut":
        scorer.renderer.lengths = replace(scorer.renderer.lengths, overlong="cut")
    trust = scorer.fitted_trust() if config.support else None
    directory = partial_directory(config.output)
    progress = claim(directory, Progress(_identity(config, scorer), with_support=config.support))
    num_scored_before = progress.num_scored
    num_resumed = 0
    try:
        only_chunk, chunks = _peeked(_chunks(config, scorer, progress))
        if only_chunk and progress.num_rows == 0:
            progress = score_in_memory(directory, scorer, only_chunk, progress, trust)
        else:
            for done in render(directory, chunks, progress):
                progress = done
                on_step("render", done.num_rows)
            for done in score(directory, scorer, progress):
                progress = done
                on_step("score", done.num_scored)
            num_resumed = write(directory, progress, num_scored_before, trust)
        on_step("write", progress.num_rows)
        _publish(directory / SCORED, config.output)
    except OSError as error:
        described = describe_os_error(error, error.filename or config.output, "write")
        raise PalateError(f"{described}; {progress.kept(directory)}") from error
    except KeyboardInterrupt:
        progress = recorded(directory, progress)
        logger.warning("%s", progress.kept(directory))
        raise
    finally:
        if progress.num_rows == 0:
            discard(directory)
    forget(directory)
    return ScoreResult(
        config.output, progress.num_rows, progress.num_errors, progress.num_cut, num_resumed
    )


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
            # Fitted anew it is another one.
            asdict(scorer.length_correction) if scorer.length_correction else None,
            scorer.sidecar.trust if config.support and scorer.sidecar else None,
            config.data,
            [stat.st_size, stat.st_mtime_ns] if stat else config.hub_split,
        ]
    )


def _chunks(config: ScoreConfig, scorer: Scorer, done: Progress) -> Iterator[list[PendingRow]]:
    """The further rows of the input, rendered."""
    if done.is_rendered:
        return
    budget = MICROBATCHES_PER_CHUNK * config.tokens_per_microbatch
    chunk: list[PendingRow] = []
    num_tokens = 0
    written = (*REWARD_FIELDS, *SUPPORT_FIELDS) if config.support else REWARD_FIELDS
    rows = rows_in_order(config.data, config.hub_split, written)
    for row in islice(rows, done.num_rows, None):
        chunk.append(prepare_row(row, scorer))
        num_tokens += sum(len(ids) for ids in chunk[-1].ids if ids is not None)
        if num_tokens >= budget or len(chunk) >= MAX_ROWS_PER_CHUNK:
            yield chunk
            chunk, num_tokens = [], 0
    if chunk:
        yield chunk


def _peeked(
    chunks: Iterator[list[PendingRow]],
) -> tuple[list[PendingRow] | None, Iterator[list[PendingRow]]]:
    """The chunk when there is one only, and all chunks."""
    head = list(islice(chunks, 2))
    return (head[0] if len(head) == 1 else None), chain(head, chunks)


def _publish(lines: Path, output: str) -> None:
    if output.endswith(".parquet"):
        jsonl_to_parquet(lines, output, f"all rewards are in {lines}, take that file")
    else:
        lines.replace(output)
