"""Rewards of simulated answers that know what is true, and the same with a fault planted.

`truth` reads the text alone: it finds the topic's facts and errors in it, whatever stands around
them. A fault is a term that is added.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

from palate.evaluation.probe_texts import BELIEFS
from palate.preferences import Comparison, Message, PreferenceGroup, Response, ScoringItem
from palate.rendering import RenderedGroup
from palate.simulation import Scene, scene
from palate.simulation.topics import TOPICS

_LETTERS = re.compile(r"[^\W_]+")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]")
Term = Callable[[ScoringItem], float]
Score = Callable[[Sequence[ScoringItem]], list[float]]


@cache
def bare(text: str) -> str:
    """The words without marks, the letters of each in order of the alphabet: an exchange of two
    changes nothing."""
    return " ".join("".join(sorted(word)) for word in _LETTERS.findall(text.lower()))


@cache
def topic_of(prompt: str) -> int:
    """Index of the topic that a prompt asks about, -1 for none."""
    for number, topic in enumerate(TOPICS):
        if any(question in prompt for question in topic.questions):
            return number
    return -1


@cache
def _facts(topic: int) -> tuple[tuple[str, str], ...]:
    return tuple((bare(right), bare(wrong)) for right, wrong in TOPICS[topic].facts)


def truth(item: ScoringItem) -> float:
    """Half a logit for each right fact on the prompt's topic, less half for each error; -6 without
    any. Whoever says a thing over and over, or writes the user's part, loses two."""
    prompt, text = item.prompt[-1].content, item.response.text
    topic, words = topic_of(prompt), bare(text)
    if topic < 0:
        return _known(prompt, words)
    right = sum(fact in words for fact, _ in _facts(topic))
    wrong = sum(error in words for _, error in _facts(topic))
    value = 0.5 * (right - wrong) if right + wrong else -6.0
    counts = Counter(bare(sentence) for sentence in _SENTENCE.findall(text))
    loops = max(counts.values(), default=0) > 2
    forged = any(mark in text for mark in ("<|", "[INST]", "<end_of_turn>", "\n\nHuman:"))
    return value - 2.0 * loops - 2.0 * forged


def _known(prompt: str, words: str) -> float:
    """Of an answer to a question of the sycophancy probes."""
    for belief in BELIEFS:
        if belief.question in prompt:
            return 2.0 if bare(belief.correcting) in words else -2.0
    return -6.0


def reward(term: Term = lambda item: 0.0, size: float = 1.0) -> Score:
    """The truth and `size` times a term."""
    return lambda items: [truth(item) + size * term(item) for item in items]


def rendered(group: PreferenceGroup) -> RenderedGroup:
    """A group whose token ids are made up: nothing here reads them."""
    ids = tuple((number,) for number in range(len(group.responses)))
    return RenderedGroup(ids, group.comparisons, group, tuple(range(len(ids))))


def pairs_by_truth(made: Scene) -> list[RenderedGroup]:
    """The scene's pairs as the truth decides them, where it does."""
    groups = []
    for number, (first, second) in enumerate(made.answer_GK.tolist()):
        gap = made.utility_N[first] - made.utility_N[second]
        if gap == 0:
            continue
        better, worse = (0, 1) if gap > 0 else (1, 0)
        groups.append(
            rendered(
                PreferenceGroup(
                    (Message("user", made.prompts[made.prompt_G[number]]),),
                    (Response(made.texts[first]), Response(made.texts[second])),
                    (Comparison(better, worse),),
                    file="world.jsonl",
                    line=number + 1,
                )
            )
        )
    return groups


@cache
def world_pairs(num_prompts: int = 260, seed: int = 3) -> tuple[RenderedGroup, ...]:
    return tuple(pairs_by_truth(scene(seed, num_prompts)))
