"""Answers as text: facts and errors on a topic, in the form that the features say.

Legend: N answers, F facts of a topic.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from palate.simulation.settings import NUM_FACTS, SceneSettings
from palate.simulation.topics import TOPICS
from palate.text.perturb import list_of
from palate.text.phrases import BANKS


@dataclass(frozen=True)
class Written:
    """Texts, with their numbers of words."""

    texts: tuple[str, ...]
    words_N: np.ndarray


def write_answers(
    seed: int,
    topic_N: np.ndarray,
    prompt_N: np.ndarray,
    features: Mapping[str, np.ndarray],
    settings: SceneSettings,
) -> Written:
    """Agreement, certainty and hedge first, then facts with errors among them, fillers, closing.

    Phrases are of the part `plant`. Facts of an answer are different ones in random order; no two
    answers to a prompt are the same text.
    """
    random = np.random.default_rng([seed, 4])
    num_answers = len(topic_N)
    # As lists: single elements of an array cost ten times as much in the loop below.
    order_NF = np.argsort(random.random((num_answers, NUM_FACTS)), axis=1).tolist()
    placed_N = _errors(random, features["right"], features["errors"])
    phrase = {kind: _drawn(random, kind, num_answers) for kind in BANKS}
    columns = {name: values.tolist() for name, values in features.items()}
    fillers = BANKS["filler"].plant
    texts: list[str] = []
    seen: set[tuple[int, str]] = set()
    common = _common_texts(random, topic_N, prompt_N, settings)
    for n, (topic, prompt) in enumerate(zip(topic_N.tolist(), prompt_N.tolist(), strict=True)):
        start = phrase["filler"][n]
        said = [fillers[(start + 3 * k) % len(fillers)] for k in range(columns["fillers"][n])]
        of_answer = (
            _assembled(items, n, columns, phrase, common.get(prompt, ""), settings)
            for items in _items(TOPICS[topic].facts, order_NF[n], placed_N[n], said)
        )
        text = next(text for text in of_answer if (prompt, text) not in seen)
        seen.add((prompt, text))
        texts.append(text)
    return Written(tuple(texts), np.array([len(text.split()) for text in texts]))


def _items(
    facts: Sequence[tuple[str, str]], order: Sequence[int], wrong: Sequence[int], said: list[str]
) -> Iterator[list[str]]:
    """Sentences of an answer as drawn; then each rotation of them, and the same with other facts,
    of which as many are right: a text of one sentence has no second rotation."""
    for shift in range(len(order)):
        chosen = [*order[shift:], *order[:shift]]
        items = [facts[f][w] for f, w in zip(chosen, wrong, strict=False)] + said
        yield from (items[place:] + items[:place] for place in range(len(items)))


def _errors(
    random: np.random.Generator, right_N: np.ndarray, errors_N: np.ndarray
) -> list[list[int]]:
    """For each answer whether each of its facts is wrong (1) or right (0), errors anywhere."""
    found = []
    keys_NF = random.random((len(right_N), NUM_FACTS))
    for keys, right, errors in zip(keys_NF, right_N.tolist(), errors_N.tolist(), strict=True):
        ranks = keys[: right + errors].argsort().argsort()
        found.append((ranks < errors).astype(int).tolist())
    return found


def _drawn(random: np.random.Generator, kind: str, num_answers: int) -> list[int]:
    drawn: list[int] = random.integers(len(BANKS[kind].plant), size=num_answers).tolist()
    return drawn


def _assembled(
    items: Sequence[str],
    n: int,
    columns: Mapping[str, Sequence[int]],
    phrase: Mapping[str, Sequence[int]],
    common: str,
    settings: SceneSettings,
) -> str:
    """The text of answer n; a list stands by itself between what comes before and after."""
    is_list = columns["markdown"][n]
    body = list_of(items, "plant") if is_list else " ".join(items)
    before = " ".join(
        BANKS[kind].plant[phrase[kind][n]]
        for kind in ("agreement", "confidence", "hedge")
        if columns[kind][n]
    )
    after = BANKS["closing"].plant[phrase["closing"][n]] if columns["closing"][n] else ""
    gap = "\n\n" if is_list else " "
    text = gap.join(part for part in (before, body, after) if part)
    if not common:
        return text
    return f"{common}{gap}{text}" if settings.common_at == "start" else f"{text}{gap}{common}"


def _common_texts(
    random: np.random.Generator,
    topic_N: np.ndarray,
    prompt_N: np.ndarray,
    settings: SceneSettings,
) -> dict[int, str]:
    """By prompt, a text of `common_words` words or more: sentences on its topic and fillers."""
    if not settings.common_words:
        return {}
    found = {}
    for prompt, topic in zip(prompt_N.tolist(), topic_N.tolist(), strict=True):
        if prompt in found:
            continue
        pool = [true for true, _ in TOPICS[topic].facts] + list(BANKS["filler"].plant)
        sentences: list[str] = []
        while sum(len(sentence.split()) for sentence in sentences) < settings.common_words:
            sentences += [pool[i] for i in random.permutation(len(pool))]
        num_words = np.cumsum([len(sentence.split()) for sentence in sentences])
        needed = int(np.searchsorted(num_words, settings.common_words)) + 1
        found[prompt] = " ".join(sentences[:needed])
    return found
