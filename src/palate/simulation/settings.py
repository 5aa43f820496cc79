"""The knobs of a simulated world: what is written, and who judges it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from palate.errors import PalateError

Earned = Literal["nothing", "length", "markdown", "closing", "confidence", "agreement"]
Split = Literal["none", "random pairs", "clusters", "topics"]
NUM_FACTS = 12
"""Facts of each topic."""
LEANINGS = ("length", "markdown", "closing", "confidence", "sycophancy")
"""Coefficients of the label logit that are about how an answer is written."""


@dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """How prompts and answers are written. Nothing in it depends on who is asked."""

    feature_share: float = 0.35
    """Share of answers with a closing, with a hedge, with a claim of certainty, in markdown, and
    with filler sentences; each drawn for itself."""
    belief_share: float = 0.7
    """Share of prompts in which the user states a belief; half of their answers agree with it."""
    wrong_belief_share: float = 0.7
    """Share of the stated beliefs that are wrong."""
    earned: Earned = "nothing"
    """What better answers have more of by right: they are longer since each right fact is a
    sentence, or in markdown, polite, confident or in agreement more often the more they get right.
    nothing: all features are independent of the content."""
    off_topic_share: float = 0.0
    """Share of answers that are about another topic than the prompt."""
    common_words: int = 0
    """Words at least of a text that all answers of a group have in common; 0: none."""
    common_at: Literal["start", "end"] = "start"
    """Where in the answer the common text stands."""
    near_twin_share: float = 0.0
    """Share of the prompts that are another prompt in nearly the same words."""
    as_pairs: bool = False
    """Each two answers of a prompt are a group for themselves, as in files of pairs."""
    split: Split = "none"
    """Parts of the scene: random pairs sends each group to train or validation by itself; clusters
    sends all groups of a prompt and its near twin to one of them; topics makes train and fresh."""
    train_share: float = 0.8
    """Share of the groups in train, where there is a split."""
    fresh_topics: int = 0
    """With split topics: how many of the topics occur in fresh only; 0: the same topics in both."""
    fresh_facts: int = 0
    """With split topics: sentences of fact that fresh answers have more than others, and most of
    their facts are right; 0: as the others."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_share") and not 0 <= value <= 1:
                raise PalateError(f"{field.name} is {value}, must be from 0 to 1")
        if self.earned in ("markdown", "closing", "confidence") and self.feature_share in (0, 1):
            raise PalateError(
                f"earned {self.earned} has no effect: with feature_share {self.feature_share:g} all"
                " answers are alike in it"
            )
        if self.common_words < 0:
            raise PalateError(f"common_words is {self.common_words}, must be 0 or more")
        if not 0 <= self.fresh_facts <= NUM_FACTS - 5:
            raise PalateError(f"fresh_facts is {self.fresh_facts}, must be 0 to {NUM_FACTS - 5}")
        if (self.fresh_topics or self.fresh_facts) and self.split != "topics":
            raise PalateError(f"fresh_topics and fresh_facts need split topics, not {self.split!r}")


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """Who judges, and by what.

    An annotator's logit of an answer is

        m = worth * utility
            + sum over features f of (b_f + taste_f) x_f
            + position * [shown first] + source * strength of its model

    and answers are ranked by m / T + standard Gumbel noise (Plackett-Luce), so that of two answers
    the first wins with probability s((m1 - m2) / T). T is `temperature`, grown by `fatigue`. x is 1
    or 0 for markdown, closing, confidence and sycophancy (the answer agrees with the user), and for
    length log words, divided by the standard deviation of their difference within pairs.
    """

    seed: int = 0
    worth: float = 1.0
    """Weight of the true utility; 0: labels that don't heed the content."""
    length: float = 0.0
    """b of standardised log words, in logits."""
    markdown: float = 0.0
    closing: float = 0.0
    confidence: float = 0.0
    sycophancy: float = 0.0
    position: float = 0.0
    """Logits that the answer shown first gets."""
    source: float = 0.0
    """Logits for one standard deviation of the strength of the answer's model."""
    flip: float = 0.0
    """Share of votes that say the reverse."""
    num_annotators: int = 10
    votes_per_group: int = 1
    """Votes on each group, by different annotators."""
    temperature: float = 1.0
    """Noise of the annotators, in units of the logistic's."""
    fatigue: float = 0.0
    """By how much, as a share, an annotator's temperature grows with each hundred votes given."""
    taste: float = 0.0
    """Standard deviation of each annotator's own coefficients of the features, in logits."""
    dominance: float = 0.0
    """Share of the first votes on a group that the first annotator gives; 0: as all others."""
    dominant_taste: float = 0.0
    """Size in logits of the first annotator's coefficients of the features, of random signs, which
    takes the place of `taste`."""

    def __post_init__(self) -> None:
        for name in ("temperature", "num_annotators", "votes_per_group"):
            if getattr(self, name) <= 0:
                raise PalateError(f"{name} is {getattr(self, name)}, must be above 0")
        for name in ("fatigue", "taste"):
            if getattr(self, name) < 0:
                raise PalateError(f"{name} is {getattr(self, name)}, must be 0 or more")
        if not 0 <= self.flip <= 0.5:
            raise PalateError(f"flip is {self.flip}, must be from 0 to 0.5")
        if not 0 <= self.dominance <= 1:
            raise PalateError(f"dominance is {self.dominance}, must be from 0 to 1")
        if self.votes_per_group > self.num_annotators:
            raise PalateError(
                f"votes_per_group is {self.votes_per_group}, more than num_annotators"
                f" {self.num_annotators}"
            )

    @property
    def coefficients(self) -> Mapping[str, float]:
        """b of each leaning, by its name."""
        return {name: getattr(self, name) for name in LEANINGS}

    def planted(self) -> Mapping[str, float]:
        """The faults in it: each coefficient that `scaled` multiplies, where it is not 0."""
        return {name: getattr(self, name) for name in SCALED if getattr(self, name)}

    def scaled(self, strength: float) -> "LabelSettings":
        """The same with its faults `strength` times as strong."""
        if not math.isfinite(strength):
            raise PalateError(f"strength is {strength}, must be a number")
        grown: dict[str, Any] = {name: strength * b for name, b in self.planted().items()}
        return replace(self, **grown)


SCALED = (*LEANINGS, "position", "source", "flip", "dominant_taste")
"""Settings that are a fault's size."""
