"""Whether an objective and its settings can have an effect on the training data."""

from collections.abc import Sequence

from palate.errors import PalateError
from palate.objectives.rankings import counted_tiers, num_answers, placings_of, rankings_of
from palate.objectives.settings import ObjectiveSettings
from palate.rendering import RenderedGroup
from palate.text import plural


def check_data(settings: ObjectiveSettings, groups: Sequence[RenderedGroup]) -> None:
    """Raises PalateError, naming key and remedy, for what would have no effect.

    Ratings and annotators are checked where they are read.
    """
    if settings.kind in ("davidson", "rao-kupper"):
        _check_ties(settings, groups)
    if settings.kind == "plackett-luce":
        _check_rankings(settings, groups)
    _check_margins(settings, groups)


def tie_share(groups: Sequence[RenderedGroup]) -> float:
    """Weighted share of tie votes, each prompt's comparisons divided by their number."""
    weighted = [
        (c.weight / len(group.comparisons), c.tie) for group in groups for c in group.comparisons
    ]
    total = sum(weight for weight, _ in weighted)
    return sum(weight * tie for weight, tie in weighted) / total if total else 0.0


def _check_ties(settings: ObjectiveSettings, groups: Sequence[RenderedGroup]) -> None:
    share = tie_share(groups)
    if share == 0:
        raise PalateError(
            f"objective.kind {settings.kind} needs tie votes, and the training data have none (no"
            " comparison with `tie` above 0); use objective.kind bradley-terry"
        )
    if share >= 1:
        raise PalateError(
            f"objective.kind {settings.kind}: every vote of the training data is a tie; no answer"
            " is better than another"
        )


def _check_rankings(settings: ObjectiveSettings, groups: Sequence[RenderedGroup]) -> None:
    for group in groups:
        placings_of(group, settings.ties, settings.top_k)
    rankings = [ranking for group in groups for ranking in rankings_of(group)]
    if not any(num_answers(ranking) > 2 for ranking in rankings):
        found = f"only {plural(len(rankings), 'ranking')} of two" if rankings else "none"
        raise PalateError(
            "objective.kind plackett-luce needs rankings of three answers or more, and the training"
            f" data have {found}; on pairs it is Bradley-Terry: use objective.kind bradley-terry"
        )
    if settings.top_k and not any(
        num_above >= settings.top_k
        for ranking in rankings
        for num_above, _ in counted_tiers(ranking, settings.ties)
    ):
        raise PalateError(
            f"objective.top_k {settings.top_k} has no effect: no ranking of the training data goes"
            " on after that place; leave it out"
        )


def _check_margins(settings: ObjectiveSettings, groups: Sequence[RenderedGroup]) -> None:
    first = next((g for g in groups if any(c.margin > 0 for c in g.comparisons)), None)
    if first is None:
        return
    where = f"{first.group.file}:{first.group.line}: comparisons have margins, which"
    remedy = "Leave them out: read.votes.margin_per_strength 0, no `margin` in the rows"
    if settings.kind not in ("bradley-terry", "hinge") or settings.annotators == "scaled":
        name = "annotators scaled" if settings.annotators == "scaled" else f"kind {settings.kind}"
        raise PalateError(f"{where} objective.{name} does not take. {remedy}")
    if settings.label_smoothing:
        raise PalateError(
            f"{where} need sure labels, and objective.label_smoothing {settings.label_smoothing}"
            f" makes them soft. Set it to 0. Or: {remedy}"
        )
