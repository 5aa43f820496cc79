"""The configuration of a training run: what a YAML file and the command line can say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from palate.errors import PalateError
from palate.model.lora import LoraSettings
from palate.model.settings import BodySettings
from palate.objectives import ObjectiveSettings
from palate.preferences.settings import ReadSettings, Source
from palate.preferences.votes import VoteSettings
from palate.rendering.lengths import LengthSettings
from palate.rendering.settings import RenderSettings
from palate.text.near import MIN_THRESHOLD
from palate.training.settings import Solver, TrainingSettings, refuse_unheeded

_NO_TIES = "the pairs that it makes have no ties, and the learned tie width would be too small"
UNFIT_FOR_PAIRS = {
    "davidson": _NO_TIES,
    "rao-kupper": _NO_TIES,
    "regression": "the pairs that it makes have no ratings",
}
"""Objectives that can't learn from the pairs of `training.counterfactual` and `cross_prompt`."""


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """How prompts are divided, always by whole prompt clusters."""

    validation_share: float = 0.1
    """Share of prompt clusters that chooses the checkpoint and fits the temperature."""
    test_share: float = 0.1
    """Share of prompt clusters that is only measured, at the end."""
    num_folds: int = 0
    """Cross-validation: this many folds instead of test_share; 0 = none."""
    fold: int = 0
    """The fold that is the test part, from 0."""
    salt: str = "palate"
    """Another salt, another split."""
    near_duplicates: float = 0.0
    """Jaccard index, 0.3 to 1, of the first user turns' shingles from which prompts share a
    cluster, so that they fall on one side of the split. 0 = only equal first turns do. Needs the
    extra near."""

    def __post_init__(self) -> None:
        if self.near_duplicates and not MIN_THRESHOLD <= self.near_duplicates <= 1:
            raise PalateError(
                f"split.near_duplicates is {self.near_duplicates}, must be 0 (none) or a Jaccard"
                f" index in [{MIN_THRESHOLD}, 1]"
            )
        for name in ("validation_share", "test_share"):
            if not 0 <= getattr(self, name) < 1:
                raise PalateError(f"split.{name} is {getattr(self, name)}, must be in [0, 1)")
        if self.num_folds == 0 and self.validation_share + self.test_share >= 1:
            raise PalateError(
                f"split.validation_share {self.validation_share} + test_share {self.test_share}"
                " leave nothing to train on; together they must be below 1"
            )
        if self.num_folds == 0 and self.fold != 0:
            raise PalateError(f"split.fold {self.fold} has no effect without split.num_folds")
        if self.num_folds and self.test_share not in (0.0, 0.1):
            raise PalateError(
                f"split.test_share {self.test_share} has no effect with split.num_folds"
                f" {self.num_folds}: the fold is the test part"
            )
        if self.num_folds == 1 or self.num_folds < 0 or not 0 <= self.fold < max(1, self.num_folds):
            raise PalateError(
                f"split.fold {self.fold} of {self.num_folds}: num_folds must be 2 or more and fold"
                " from 0 to num_folds - 1"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A run: data and model in, a reward model, its metrics and report out."""

    model: str
    """Directory or hub id of a pretrained model, or of a reward model as a warm start."""
    data: str | list[str] = ""
    """Preference files (.jsonl .json .csv .parquet, plain or .gz) or hub data set ids."""
    sources: dict[str, Source] = field(default_factory=dict)
    """Instead of data: a mixture, name to path, weight, format, columns. Metrics are also given by
    name."""
    validation: dict[str, str] = field(default_factory=dict)
    """Further validation sets, name to file, measured beside the validation part."""
    output: str = ""
    """Run directory; an unfinished run there is resumed. Empty = runs/NAME-OF-MODEL, or the next
    free name."""
    battery: Literal["auto", "checkpoints", "end", "off"] = "auto"
    """When the battery of easy pairs (docs/battery.md) runs: at each checkpoint and on the saved
    model, at the end alone, or never. auto = as often as costs at most a tenth of the training's
    tokens."""
    trust: bool = True
    """After training, fit how far an answer lies from the training data and how sure the head is of
    a difference (docs/trust.md), and keep both in the checkpoint."""
    store: Literal["memory", "disk"] = "memory"
    """Where rendered prompts lie while the run goes on. disk: in the run's directory, for more than
    fits in memory; each group is read back when its step comes."""
    render_workers: int = 0
    """Processes that tokenise, this one among them. 0 = one for each core, once there is enough to
    do that starting them pays."""
    token_cache: str = ""
    """Directory of token ids that earlier runs made; empty = palate/tokens in the user's cache
    directory, off = none."""
    template_arguments: dict[str, Any] = field(default_factory=dict)
    """Values that the chat template reads, such as enable_thinking; kept in the checkpoint."""
    allow_changed: list[str] = field(default_factory=list)
    """Warm start: what of the checkpoint may differ from its training: template, tokenizer, ..."""
    read: ReadSettings = field(default_factory=ReadSettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    lengths: LengthSettings = field(default_factory=LengthSettings)
    body: BodySettings = field(default_factory=BodySettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        if not self.model:
            raise PalateError("model is empty; name a directory or a hub id")
        if not self.data and not self.sources:
            raise PalateError("data is empty; name a preference file or a hub data set")
        if self.data and self.sources:
            raise PalateError("both data and sources are given; name all files under sources")
        sources = [*self.paths, *self.validation.values()]
        twice = sorted({source for source in sources if sources.count(source) > 1})
        if twice:
            raise PalateError(f"{twice[0]}: named twice among data and validation; name it once")
        if "validation" in self.validation or "test" in self.validation:
            raise PalateError("validation: the names validation and test are taken by the split")
        if self.training.early_stopping_patience and not (
            self.split.validation_share or self.validation
        ):
            raise PalateError(
                "training.early_stopping_patience has no effect without validation data"
            )

        _ = self.rendering
        self._refuse_without_effect()

    @property
    def rendering(self) -> RenderSettings:
        """How texts are tokenised. Raises PalateError for a negative number of processes."""
        return RenderSettings(workers=self.render_workers, cache=self.token_cache)

    def _refuse_without_effect(self) -> None:
        method = self.training.method
        if self.battery == "checkpoints" and method == "frozen":
            raise PalateError(
                "battery checkpoints has no effect with training.method frozen, which writes none;"
                " set it to end"
            )
        if self.store == "disk" and self.read.merge_prompts:
            raise PalateError(
                "read.merge_prompts holds its source in memory, which store disk is there to avoid;"
                " merge beforehand (palate data convert --read.merge_prompts true)"
            )
        if self.store == "disk" and self.split.near_duplicates:
            raise PalateError(
                f"split.near_duplicates {self.split.near_duplicates} compares all prompts before"
                " the first is divided, and store disk divides each as it is read; set store"
                " memory, or leave it out"
            )
        if method != "lora":
            if self.lora != LoraSettings():
                raise PalateError(
                    f"lora has no effect with training.method {method}; set it to lora"
                )
            if self.body.quantization != "none":
                raise PalateError(
                    f"body.quantization {self.body.quantization} can't be trained with"
                    f" training.method {method}; set it to lora"
                )
        objective = self.objective
        reads_votes = objective.kind == "plackett-luce" or objective.annotators == "scaled"
        for name in (
            *("target", "prior", "annotator_weights"),
            *("annotator_cap", "reliability", "weigh"),
        ):
            value = getattr(self.read.votes, name)
            if reads_votes and value != getattr(VoteSettings(), name):
                raise PalateError(
                    f"read.votes.{name} {value} has no effect on votes that objective.kind"
                    " plackett-luce or objective.annotators scaled read one by one; leave it out"
                )
        self._refuse_unfit_fixes()
        if method == "frozen":
            refuse_unheeded(self.training, self._solvers())
            if self.body.dropout:
                raise PalateError(
                    "body.dropout has no effect with training.method frozen: the body runs without"
                    " it, once; leave it out"
                )
            if self.body.pooling == "attention":
                raise PalateError(
                    "body.pooling attention can't be trained with training.method frozen: its query"
                    " needs all states of the body, not one an answer; take mean, or method lora"
                )
            if self.body.head_init != "zero":
                raise PalateError(
                    "body.head_init has no effect with training.method frozen: its head starts"
                    " anew; leave it out"
                )

    def _refuse_unfit_fixes(self) -> None:
        kind = self.objective.kind
        extra = {"counterfactual": self.training.counterfactual.share}
        extra["cross_prompt"] = self.training.cross_prompt.share
        for name, share in extra.items():
            why = UNFIT_FOR_PAIRS.get(kind, "")
            if name == "counterfactual" and kind == "hinge":
                why = "it learns who wins, not how surely, and takes their soft labels for sure"
            if share and why:
                raise PalateError(
                    f"training.{name}.share {share} can't be had with objective.kind {kind}:"
                    f" {why}. Use bradley-terry, or leave it out"
                )
        if self.training.length_balanced and kind in ("plackett-luce", "regression"):
            raise PalateError(
                f"training.length_balanced has no effect with objective.kind {kind}, which does not"
                " read the comparisons that it leaves out; use bradley-terry, or leave it out"
            )

    def _solvers(self) -> Sequence[Solver]:
        """What may train the head of a frozen body; a checkpoint's own may be an MLP."""
        if self.objective.kind == "hinge" or self.body.head == "mlp":
            return ("adamw",)
        return ("lbfgs",) if self.body.head == "linear" else ("lbfgs", "adamw")

    @property
    def inputs(self) -> Sequence[str] | Mapping[str, Source]:
        """What is read for training, validation and test part."""
        return self.sources or ([self.data] if isinstance(self.data, str) else list(self.data))

    @property
    def paths(self) -> list[str]:
        """Files and hub ids among `inputs`."""
        if self.sources:
            return [source.path for source in self.sources.values()]
        return list(self.inputs)
