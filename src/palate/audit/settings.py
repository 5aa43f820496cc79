"""Thresholds of the checks, and how much of the data those that need a model look at."""

from dataclasses import dataclass, field, fields

from palate.errors import PalateError


@dataclass(frozen=True, kw_only=True)
class StyleThresholds:
    """When the statistics of style are more than a note.

    They come from the research that the design rests on: a planted bias of one logit moves the
    share of comparisons won by 7 to 15 points, and data in which longer answers are better for good
    reasons moves it by 22, so that none of these alone makes an error.
    """

    length_warn: float = 0.10
    """Distance from one half of the share of comparisons that the longer answer wins."""
    coefficient_warn: float = 0.30
    """Log-odds for one standard deviation of log length, other style held equal."""
    lift_warn: float = 0.05
    """Distance from one half of the share of comparisons that the side with a feature, opening or
    ending wins."""
    false_discovery_rate: float = 0.05
    """Expected share of false ones among the features, and among the openings and endings, that are
    called different from one half (Benjamini-Hochberg)."""
    min_phrase_comparisons: int = 20
    """Comparisons in which one side alone must have an opening or ending, to look at it."""
    min_phrase_share: float = 0.002
    """The same as a share of all comparisons; the larger of the two counts."""
    extreme_share: float = 0.80
    """Share of comparisons won from which an opening or ending is an error, and one minus it; at
    equal length too."""
    extreme_min_clusters: int = 50
    """Prompt clusters that such an error must rest on."""
    extreme_min_touched: float = 0.01
    """Share of all comparisons that it must touch."""


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """How the checks are made. Raises PalateError for a value out of its range."""

    seed: int = 0
    """Of resampling and of folds."""
    max_sampled_groups: int = 20_000
    """Prompts whose texts are kept for checks that need them: those of the prompt clusters with the
    lowest hashes."""
    max_modelled_comparisons: int = 200_000
    """Comparisons that the joint model of style is fitted on: those of the prompt clusters with the
    lowest hashes."""
    style: StyleThresholds = field(default_factory=StyleThresholds)

    def __post_init__(self) -> None:
        for name in ("max_sampled_groups", "max_modelled_comparisons"):
            if getattr(self, name) < 1:
                raise PalateError(f"{name} is {getattr(self, name)}, must be 1 or more")
        for threshold in fields(self.style):
            value = getattr(self.style, threshold.name)
            if value < 0:
                raise PalateError(f"style.{threshold.name} is {value}, must be 0 or more")
