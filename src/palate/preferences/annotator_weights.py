"""Weights of annotators: so that none dominates, and by how reliable each has been."""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from palate.errors import PalateError
from palate.preferences.formats.fields import Parsed
from palate.preferences.merge import prompt_key
from palate.preferences.votes import VoteSettings
from palate.statistics.dawid_skene import Judged, dawid_skene, determined

MOST_RELIABLE = 0.99
"""Reliabilities count as no higher: log-odds have no end, and few data tell 0.99 from 1."""


def capped_weights(
    counts: Mapping[str, float], cap: float, *, unnamed: float = 0.0
) -> dict[str, float]:
    """The largest weights up to 1 with which no annotator has more than a share `cap` of all
    weighted votes.

    w_a = min(1, cap T / c_a), c the counts, T = sum of w_a c_a + unnamed: those above a common
    level are cut down to it, exactly (water-filling: with the j largest cut, T = (sum of the other
    counts) / (1 - j cap), for the smallest j whose next count is below cap T). `unnamed` votes
    belong to nobody in particular and keep weight 1.

    Raises PalateError for a cap outside (0, 1], and for one below 1 / n, which n annotators can't
    meet.
    """
    if not 0 < cap <= 1:
        raise PalateError(f"annotator_cap is {cap}, must be above 0 and at most 1")
    voted = {name: count for name, count in counts.items() if count > 0}
    num = len(voted)
    if num and not unnamed:
        if cap * num < 1 - 1e-9:
            least = math.ceil(1000 / num) / 1000
            raise PalateError(
                f"annotator_cap is {cap:g}, and of {num} annotators one has a share of 1/{num} at"
                f" least; set it to {least:g} or more, or to 0 for no cap"
            )
        cap = max(cap, 1 / num)
    level = math.inf
    rest = sum(voted.values()) + unnamed
    for cut, count in enumerate(sorted(voted.values(), reverse=True)):
        level = cap * rest / (1 - cut * cap)
        if count <= level * (1 + 1e-9):
            break
        rest -= count
    else:
        level = cap * rest / (1 - num * cap)
    return {name: min(1.0, level / count) if count > 0 else 1.0 for name, count in counts.items()}


def reliability_weights(
    reliability: Mapping[str, float], num_outcomes: int = 2
) -> dict[str, float]:
    """Log-odds weights, log(p (K - 1) / (1 - p)), 0 for those at chance or worse; their mean is 1.

    With independent annotators who are right with probability p, and otherwise give one of the
    K - 1 other labels, the sum of these weights over those who said k is, but for the labels' own
    shares, the log probability of k: no other weights make a better majority (Nitzan and Paroush
    1982; for K labels Li and Yu 2014, 1411.4086). p above 0.99 counts as 0.99.

    Raises PalateError where nobody is better than chance.
    """
    clipped = {
        name: min(max(p, 1 / num_outcomes), MOST_RELIABLE) for name, p in reliability.items()
    }
    odds = {name: math.log(p * (num_outcomes - 1) / (1 - p)) for name, p in clipped.items()}
    # Rounding may leave a hair above 0 at chance.
    odds = {name: value if value > 1e-9 else 0.0 for name, value in odds.items()}
    total = sum(odds.values())
    if total <= 0:
        raise PalateError(
            f"none of {len(odds)} annotators agrees with the others more than chance would: no"
            " weight can be had from how reliable they are; leave read.votes.reliability out"
        )
    return {name: value * len(odds) / total for name, value in odds.items()}


@dataclass
class VoteCounts:
    """The votes that make comparisons, counted in one pass over a source.

    Where judgements are kept, memory holds 13 bytes for each, and a hash for each pair of answers.
    """

    keeps_judgements: bool
    num_votes: Counter[str] = field(default_factory=Counter)
    """By name; "" are those without one. A ranking of many answers is one vote, since a prompt
    weighs the same in the loss however many pairs it has."""
    annotators: dict[str, int] = field(default_factory=dict)
    pairs: dict[int, int] = field(default_factory=dict)
    pair_J: "array[int]" = field(default_factory=lambda: array("q"))
    annotator_J: "array[int]" = field(default_factory=lambda: array("i"))
    outcome_J: "array[int]" = field(default_factory=lambda: array("b"))

    def add(self, row: Parsed) -> None:
        """Votes of a row, or of rows merged."""
        self.num_votes.update(vote.annotator for vote in row.votes)
        if not (self.keeps_judgements and row.votes):
            return
        prompt = prompt_key(row)
        for vote in row.votes:
            if not vote.annotator:
                continue
            who = self.annotators.setdefault(vote.annotator, len(self.annotators))
            for (first, second), outcome in vote.outcomes().items():
                one, other = row.responses[first].text, row.responses[second].text
                if one == other:
                    continue
                # The same two answers to the same prompt in another row are the same pair.
                key = hash((prompt, *sorted((one, other))))
                self.pair_J.append(self.pairs.setdefault(key, len(self.pairs)))
                self.annotator_J.append(who)
                self.outcome_J.append(outcome if one < other else -outcome)

    @property
    def num_named(self) -> int:
        return self.num_votes.total() - self.num_votes[""]

    def reliability(self) -> tuple[dict[str, float], int]:
        """(one-coin Dawid-Skene reliability of each annotator, number of different outcomes).

        Where somebody judged a pair several times the first counts. Raises PalateError where the
        overlap of annotators determines nobody's.
        """
        num_annotators, num_pairs = len(self.annotators), len(self.pairs)
        item_J = np.asarray(self.pair_J, dtype=np.int64)
        annotator_J = np.asarray(self.annotator_J, dtype=np.int64)
        _, first_J = np.unique(item_J * num_annotators + annotator_J, return_index=True)
        item_J, annotator_J = item_J[first_J], annotator_J[first_J]
        outcome_J = np.asarray(self.outcome_J, dtype=np.int64)[first_J]
        outcomes, label_J = np.unique(outcome_J, return_inverse=True)
        known_A = determined(item_J, annotator_J, num_annotators)
        if not known_A.any() or len(outcomes) < 2:
            raise PalateError(
                "read.votes.reliability needs three annotators or more who judged some of the same"
                f" pairs of answers, and who differ somewhere; {num_annotators} annotators judged"
                f" {num_pairs} pairs in {len(item_J)} judgements. Leave it out, or cap shares with"
                " read.votes.annotator_cap"
            )
        judged = Judged(
            label_J=label_J,
            item_J=item_J,
            annotator_J=annotator_J,
            num_labels=len(outcomes),
            num_items=num_pairs,
            num_annotators=num_annotators,
        )
        found_A = dawid_skene(judged).reliability_A
        # Of those whom nobody's judgements can be held against, nothing is known: as the others.
        usual = float(np.median(found_A[known_A]))
        return {
            name: float(found_A[who]) if known_A[who] else usual
            for name, who in self.annotators.items()
        }, len(outcomes)


def weighed(settings: VoteSettings, rows: Iterable[Parsed]) -> VoteSettings:
    """The settings with the annotators' weights that `annotator_cap` and `reliability` come to on
    these rows; as they are where nobody in the rows has a name.

    With both, the reliability's weights are first and the cap holds for the votes so weighted.
    Raises PalateError for a cap that the annotators can't meet, and where no reliability can be
    had.
    """
    counts = VoteCounts(settings.reliability)
    for row in rows:
        counts.add(row)
    if not counts.num_named:
        return settings
    weights = {name: 1.0 for name in counts.num_votes if name}
    if settings.reliability:
        weights = reliability_weights(*counts.reliability())
    if settings.annotator_cap:
        weighted = {name: weights[name] * counts.num_votes[name] for name in weights}
        caps = capped_weights(weighted, settings.annotator_cap, unnamed=counts.num_votes[""])
        weights = {name: weight * caps[name] for name, weight in weights.items()}
    if all(weight == 1 for weight in weights.values()):
        weights = {}
    return replace(
        settings,
        annotator_cap=0.0,
        reliability=False,
        annotator_weights=weights,
        weigh="comparisons" if weights else "votes",
    )
