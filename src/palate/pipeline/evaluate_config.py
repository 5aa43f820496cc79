"""The settings of `palate evaluate`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from palate.errors import PalateError
from palate.evaluation.benchmarks.lengths import LengthPolicy
from palate.evaluation.probe_sample import ProbeSettings
from palate.model.quantization import Quantization
from palate.preferences.settings import ReadSettings
from palate.scoring.scorer import DEFAULT_TOKENS_PER_MICROBATCH

NOWHERE = "none"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which model on which data. Raises PalateError for values without effect."""

    model: str
    """A palate run, or any scalar reward model: directory or hub id."""
    data: str | list[str] = field(default_factory=list)
    """Preference files or hub data set ids."""
    part: Literal["all", "train", "validation", "test"] = "all"
    """Only the prompts that the run's own split put there; all = every prompt of the data."""
    versus: str = ""
    """Another model, measured on the same comparisons and held against the first."""
    baseline: str = ""
    """Directory of an earlier evaluation on the same data: what is worse than there, with the whole
    interval, is an error."""
    suite: dict[str, str] = field(default_factory=dict)
    """Benchmarks by name, each with its file or hub id, such as `--suite.rewardbench FILE`."""
    suite_lengths: LengthPolicy = field(default_factory=LengthPolicy)
    """What becomes of benchmark items that are longer than the model's context."""
    quick: bool = False
    """Metrics and calibration alone: no probes, no battery, no swapped prompts."""
    battery: list[str] = field(default_factory=list)
    """JSONL files of further pairs (category, id, prompt, chosen, rejected) beside the built-in."""
    probes: ProbeSettings = field(default_factory=lambda: ProbeSettings(max_cost=1.2))
    outputs: str = ""
    """Answers of a policy (rows with `prompt` and `response`, as for `palate score`): how far they
    drifted from the training data. For models with stored trust."""
    fail_on: Literal["error", "warn", "never"] = "never"
    """The exit code is 1 where a finding is as grave as this."""
    output: str = ""
    """Directory for evaluation.json, report.html, rewards.jsonl and ledger.jsonl; empty =
    runs/evaluate-NAME; none = nothing is written."""
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
    render_workers: int = 0
    """Processes that tokenise, this one among them. 0 = one for each core, once there is enough to
    do that starting them pays."""
    token_cache: str = ""
    """Directory of token ids that earlier runs made; empty = palate/tokens in the user's cache
    directory, off = none."""
    read: ReadSettings = field(default_factory=ReadSettings)

    def __post_init__(self) -> None:
        if not (self.data or self.suite or self.outputs):
            raise PalateError(
                "nothing to measure on: name preference files, a --suite or --outputs"
            )
        if not self.data:
            for name in ("versus", "baseline", "battery", "part", "read"):
                if getattr(self, name) not in ("", [], "all", ReadSettings()):
                    raise PalateError(f"{name} has no effect without preference files; name some")
        if self.quick and self.battery:
            raise PalateError("battery has no effect in a quick evaluation; leave one of them out")
        if self.suite_lengths != LengthPolicy() and not self.suite:
            raise PalateError("suite_lengths has no effect without a --suite; name one")
        if self.versus and Path(self.versus) == Path(self.model):
            raise PalateError(f"versus is the model itself, {self.model}; name another")

    @property
    def sources(self) -> list[str]:
        """`data` as a list."""
        return [self.data] if isinstance(self.data, str) else list(self.data)
