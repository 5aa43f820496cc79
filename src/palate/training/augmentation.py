"""Pairs that nobody voted on: an answer against itself said otherwise, or against an answer to
another prompt. They teach what labels alone can't tell apart.

Legend: G groups.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from palate.objectives.covariates import COVARIATES
from palate.objectives.nuisance import MADE
from palate.preferences import Comparison, PreferenceGroup, Response, prompt_cluster
from palate.rendering import RenderedGroup
from palate.text.perturb import perturb
from palate.training.settings import CounterfactualSettings, CrossPromptSettings

COUNTERFACTUAL, CROSS_PROMPT = "counterfactual", "cross-prompt"
"""Sources of the groups that are made here."""
WINDOW = 32
"""Neighbours by length on each side, among which an answer to another prompt is drawn."""
_NO_ANSWER = -1.0


def num_extra(share: float, num_groups: int) -> int:
    """How many pairs a share of the training prompts asks for: the nearest whole number."""
    return round(share * num_groups)


def counterfactual_groups(
    groups: Sequence[RenderedGroup], settings: CounterfactualSettings, seed: int
) -> Iterator[PreferenceGroup]:
    """round(share * G) pairs of an answer and the same answer changed, with a soft label; fewer
    where no kind changes any of a group's answers.

    Kinds come in turn; the prompt (each once before any comes twice), the answer and the phrase are
    drawn. Answers that didn't reach their end are left alone: an addition would follow a cut.
    The phrases are those of the banks' part `train`, so that a test with other phrases is one.
    """
    places = _places(settings.share, len(groups), np.random.default_rng([seed, 1]))
    for number, place in enumerate(places):
        random = np.random.default_rng([seed, 1, number])
        pair = _changed(groups[place], settings.kinds, number, random)
        if pair is not None:
            first, second, kind = pair
            yield _made(groups[place], first, second, settings.target, COUNTERFACTUAL, kind)


def _changed(
    group: RenderedGroup, kinds: Sequence[str], number: int, random: np.random.Generator
) -> tuple[Response, Response, str] | None:
    finished = [answer for answer in group.responses if answer.finished]
    order = random.permutation(len(finished))
    for turn in range(len(kinds)):
        kind = kinds[(number + turn) % len(kinds)]
        for index in order:
            answer = finished[index]
            text = perturb(answer.text, kind, "train", random)
            if text != answer.text:
                return answer, Response(text), kind
    return None


def cross_prompt_groups(
    groups: Sequence[RenderedGroup], settings: CrossPromptSettings, seed: int
) -> Iterator[PreferenceGroup]:
    """round(share * G) pairs of a prompt's preferred answer and the preferred answer to a prompt of
    another cluster, of similar length; fewer where there is none.

    Both were preferred where they stood, and neither is longer, so that nothing but the prompt
    tells them apart (Liu et al. 2024, 2409.13156, take all three kinds of such pairs).
    """
    random = np.random.default_rng([seed, 2])
    length_G, cluster_G = _preferred_lengths(groups)
    order = np.argsort(length_G, kind="stable")
    order = order[length_G[order] != _NO_ANSWER]
    rank_of = {int(place): rank for rank, place in enumerate(order)}
    for number, place in enumerate(_places(settings.share, len(groups), random)):
        if place not in rank_of:
            continue
        rank = rank_of[place]
        near = order[max(0, rank - WINDOW) : rank + WINDOW + 1]
        own = preferred(groups[place])
        assert own is not None
        for other in np.random.default_rng([seed, 2, number]).permutation(near):
            if cluster_G[other] == cluster_G[place]:
                continue
            foreign = preferred(groups[int(other)])
            if foreign is not None and foreign.text != own.text:
                yield _made(groups[place], own, foreign, settings.target, CROSS_PROMPT, "answer")
                break


def preferred(group: RenderedGroup) -> Response | None:
    """The answer that won most, by the sum of its comparisons' weight * (probability - 1/2); of
    equals the first. None where it didn't reach its end."""
    score = np.zeros(len(group.sequences))
    for c in group.comparisons:
        won = c.weight * (1 - c.tie) * (c.probability - 0.5)
        score[c.better] += won
        score[c.worse] -= won
    answer = group.responses[int(score.argmax())]
    return answer if answer.finished else None


def _preferred_lengths(groups: Sequence[RenderedGroup]) -> tuple[np.ndarray, np.ndarray]:
    """Log length of each group's preferred answer, and a number for its prompt cluster."""
    lengths = np.full(len(groups), _NO_ANSWER)
    clusters = np.zeros(len(groups), dtype=np.int64)
    known: dict[str, int] = {}
    for place, group in enumerate(groups):
        answer = preferred(group)
        if answer is not None:
            lengths[place] = COVARIATES["log_length"](answer.text)
        clusters[place] = known.setdefault(prompt_cluster(group.group.prompt), len(known))
    return lengths, clusters


def _places(share: float, num_groups: int, random: np.random.Generator) -> list[int]:
    """Which groups get a pair, in rising order: each as often as the others, or once more."""
    whole, rest = divmod(num_extra(share, num_groups), num_groups)
    drawn = random.permutation(num_groups)[:rest]
    return sorted([*drawn.tolist(), *list(range(num_groups)) * whole])


def _made(
    origin: RenderedGroup, better: Response, worse: Response, target: float, source: str, how: str
) -> PreferenceGroup:
    """A pair on the prompt of `origin`, weighing what one of its comparisons weighs."""
    weight = float(np.mean([c.weight for c in origin.comparisons]))
    group = origin.group
    return PreferenceGroup(
        group.prompt,
        (Response(better.text), Response(worse.text)),
        (Comparison(0, 1, probability=target, weight=weight),),
        tools=group.tools,
        template_arguments=group.template_arguments,
        file=group.file,
        line=group.line,
        source=source,
        meta={MADE: how},
    )
