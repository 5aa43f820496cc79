"""A scene: prompts, answers with real text, what is in each, and what each is truly worth.

The texts are made once; who prefers what is drawn from them many times (`label`).

Legend: G groups, K answers of a group, P prompts, N answers, F facts of a topic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from palate.simulation.answers import Written, write_answers
from palate.simulation.parts import parts_of
from palate.simulation.prompts import BELIEFS, FRAMES, QUESTIONS, draw_parts, prompt_text, reworded
from palate.simulation.settings import NUM_FACTS, SceneSettings
from palate.simulation.topics import TOPICS

FACT_WORTH = 0.5
"""Logits of a right fact, and the loss by a wrong one: an error put right is worth one logit."""
OFF_TOPIC_UTILITY = -2.0
"""Utility in logits of an answer to another question, as of one with four errors."""
EARNED_SLOPE = 1.0
"""Logits by which the odds of an earned feature grow with a standard deviation of the utility."""
MODELS = ("wren-1b", "otter-4b", "lynx-14b", "bison-70b")
"""Names of the answers' models, weak to strong."""
NO_BELIEF, WRONG_BELIEF, RIGHT_BELIEF = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Scene:
    """Texts with what is in them. Arrays are of N answers, or as their names say.

    Equal is only what is the same object: comparing arrays would not give one truth value.
    """

    seed: int
    style: str
    settings: SceneSettings
    prompts: tuple[str, ...]
    """The user's turn of each of P prompts."""
    topic_P: np.ndarray
    """Index into TOPICS."""
    cluster_P: np.ndarray
    """Prompts with the same number are one request in nearly the same words."""
    belief_P: np.ndarray
    """NO_BELIEF, WRONG_BELIEF or RIGHT_BELIEF."""
    prompt_G: np.ndarray
    """The prompt of each group."""
    answer_GK: np.ndarray
    """The answers of each group, indices from 0 to N - 1."""
    texts: tuple[str, ...]
    prompt_N: np.ndarray
    features: Mapping[str, np.ndarray]
    """Of each answer: right and errors (numbers of facts), fillers (number of sentences), closing,
    hedge, confidence, markdown, agreement, on topic (0 or 1), words (number), source (index into
    MODELS)."""
    utility_N: np.ndarray
    """True worth in logits: half a logit for each right fact, less half for each error; -2 off
    topic."""
    parts: Mapping[str, tuple[int, ...]]
    """Groups of each part by its name; empty where there is no split."""

    @property
    def num_groups(self) -> int:
        return len(self.prompt_G)

    @property
    def num_responses(self) -> int:
        """K."""
        return int(self.answer_GK.shape[1])

    def only(self, chosen_G: Sequence[int] | np.ndarray) -> "Scene":
        """The scene with some of its groups, whose parts are dropped; texts are shared."""
        chosen = np.asarray(chosen_G, dtype=np.int64)
        return replace(
            self, prompt_G=self.prompt_G[chosen], answer_GK=self.answer_GK[chosen], parts={}
        )

    @cached_property
    def leanings(self) -> Mapping[str, np.ndarray]:
        """What the coefficients of the label logit multiply, by the names of `LEANINGS`: N each.

        length is log words over the standard deviation of its difference within pairs: of the first
        two answers of all groups.
        """
        words_N = np.log(self.features["words"])
        difference_G = words_N[self.answer_GK[:, 0]] - words_N[self.answer_GK[:, 1]]
        named = {"sycophancy": "agreement"}
        shown = ("markdown", "closing", "confidence", "sycophancy")
        found = {name: self.features[named.get(name, name)].astype(float) for name in shown}
        return {"length": words_N / (difference_G.std() or 1.0), **found}

    @cached_property
    def source_strength(self) -> np.ndarray:
        """Strength of each answer's model (N): mean 0, standard deviation 1 over MODELS."""
        ranks = np.arange(len(MODELS)) - (len(MODELS) - 1) / 2
        strength: np.ndarray = (ranks / ranks.std())[self.features["source"]]
        return strength


def make_scene(
    seed: int, num_prompts: int, num_responses: int, style: str, settings: SceneSettings
) -> Scene:
    """Write the prompts and answers. The same arguments give the same texts."""
    fresh_P = _fresh(num_prompts, settings)
    asked = _write_prompts(np.random.default_rng([seed, 1]), fresh_P, settings)
    written, features, utility_N = _answers(seed, asked, fresh_P, num_responses, settings)
    answer_PK = np.arange(num_prompts * num_responses).reshape(num_prompts, num_responses)
    prompt_G, answer_GK = np.arange(num_prompts), answer_PK
    if settings.as_pairs:
        first, second = np.triu_indices(num_responses, 1)
        answer_GK = np.stack([answer_PK[:, first], answer_PK[:, second]], axis=2).reshape(-1, 2)
        prompt_G = np.repeat(prompt_G, len(first))
    return Scene(
        seed=seed,
        style=style,
        settings=settings,
        prompts=asked.prompts,
        topic_P=asked.topic_P,
        cluster_P=asked.cluster_P,
        belief_P=asked.belief_P,
        prompt_G=prompt_G,
        answer_GK=answer_GK,
        texts=written.texts,
        prompt_N=np.repeat(np.arange(num_prompts), num_responses),
        features={**features, "words": written.words_N},
        utility_N=utility_N,
        parts=parts_of(seed, asked.cluster_P[prompt_G], fresh_P[prompt_G], settings),
    )


@dataclass(frozen=True)
class _Asked:
    """The prompts; arrays as in `Scene`."""

    prompts: tuple[str, ...]
    topic_P: np.ndarray
    belief_P: np.ndarray
    cluster_P: np.ndarray


def _write_prompts(
    random: np.random.Generator, fresh_P: np.ndarray, settings: SceneSettings
) -> _Asked:
    num_prompts = len(fresh_P)
    question_P, reason_P, wish_P = _parts_of_prompts(random, fresh_P, settings)
    topic_P = np.array([QUESTIONS[question][0] for question in question_P])
    states_P = random.random(num_prompts) < settings.belief_share
    is_wrong_P = random.random(num_prompts) < settings.wrong_belief_share
    belief_P = np.where(states_P, np.where(is_wrong_P, WRONG_BELIEF, RIGHT_BELIEF), NO_BELIEF)
    fact_P = random.integers(NUM_FACTS, size=num_prompts)
    frame_P = random.integers(len(FRAMES), size=num_prompts)
    stated_P = random.integers(len(BELIEFS), size=num_prompts)
    prompts = []
    for p in range(num_prompts):
        belief = ""
        if states_P[p]:
            claim = TOPICS[topic_P[p]].facts[fact_P[p]][int(is_wrong_P[p])]
            belief = BELIEFS[stated_P[p]].format(claim)
        prompts.append(prompt_text(question_P[p], reason_P[p], wish_P[p], frame_P[p], belief))
    cluster_P = np.arange(num_prompts)
    for p in range(int(settings.near_twin_share * num_prompts / 2)):
        twin = num_prompts - 1 - p
        prompts[twin] = reworded(prompts[p])
        topic_P[twin], belief_P[twin], cluster_P[twin] = topic_P[p], belief_P[p], p
    return _Asked(tuple(prompts), topic_P, belief_P, cluster_P)


def _fresh(num_prompts: int, settings: SceneSettings) -> np.ndarray:
    """Which prompts are of the fresh part: the last ones (P, bool)."""
    if settings.split != "topics":
        return np.zeros(num_prompts, bool)
    fresh: np.ndarray = np.arange(num_prompts) >= round(settings.train_share * num_prompts)
    return fresh


def _parts_of_prompts(
    random: np.random.Generator, fresh_P: np.ndarray, settings: SceneSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not settings.fresh_topics:
        return draw_parts(random, len(fresh_P))
    is_fresh_Q = np.array([topic >= len(TOPICS) - settings.fresh_topics for topic, _ in QUESTIONS])
    num_fresh = int(fresh_P.sum())
    train = draw_parts(random, len(fresh_P) - num_fresh, ~is_fresh_Q)
    fresh = draw_parts(random, num_fresh, is_fresh_Q)
    question_P, reason_P, wish_P = (np.concatenate(both) for both in zip(train, fresh, strict=True))
    return question_P, reason_P, wish_P


def _answers(
    seed: int, asked: _Asked, fresh_P: np.ndarray, num_responses: int, settings: SceneSettings
) -> tuple[Written, dict[str, np.ndarray], np.ndarray]:
    """The answers' texts, features and utility."""
    random = np.random.default_rng([seed, 2])
    prompt_N = np.repeat(np.arange(len(fresh_P)), num_responses)
    right_N, errors_N = _counts(random, fresh_P[prompt_N], settings)
    home_N = asked.topic_P[prompt_N]
    off_N = random.random(len(prompt_N)) < settings.off_topic_share
    other_N = 1 + random.integers(len(TOPICS) - 1, size=len(prompt_N))
    topic_N = np.where(off_N, (home_N + other_N) % len(TOPICS), home_N)
    utility_N = np.where(off_N, OFF_TOPIC_UTILITY, FACT_WORTH * (right_N - errors_N))
    features = {
        "right": right_N,
        "errors": errors_N,
        "on topic": (~off_N).astype(int),
        "source": _sources(random, len(fresh_P), num_responses),
        **_features(random, utility_N, asked.belief_P[prompt_N], settings),
    }
    return write_answers(seed, topic_N, prompt_N, features, settings), features, utility_N


def _counts(
    random: np.random.Generator, fresh_N: np.ndarray, settings: SceneSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of right facts and of errors.

    3 to 5 facts whatever the quality, and each number of right ones among them as likely as another
    (beta-binomial with a uniform rate), so that length and utility are uncorrelated. Where length
    is earned 1 to 9 right facts, and 0 to 2 errors beside them.
    """
    if settings.earned == "length":
        return random.integers(1, 10, size=len(fresh_N)), random.integers(0, 3, size=len(fresh_N))
    facts_N = random.integers(3, 6, size=len(fresh_N))
    rate_N = random.random(len(fresh_N))
    if settings.fresh_facts:
        facts_N = facts_N + settings.fresh_facts * fresh_N
        rate_N = np.where(fresh_N, random.beta(3, 1, size=len(fresh_N)), rate_N)
    right_N = random.binomial(facts_N, rate_N)
    return right_N, facts_N - right_N


def _sources(random: np.random.Generator, num_prompts: int, num_responses: int) -> np.ndarray:
    """Model of each answer (N); the answers to a prompt are of different models while they last."""
    rounds = -(-num_responses // len(MODELS))
    shuffled = [
        np.argsort(random.random((num_prompts, len(MODELS))), axis=1) for _ in range(rounds)
    ]
    model_PK: np.ndarray = np.concatenate(shuffled, axis=1)[:, :num_responses]
    return model_PK.reshape(-1)


def _features(
    random: np.random.Generator,
    utility_N: np.ndarray,
    belief_N: np.ndarray,
    settings: SceneSettings,
) -> dict[str, np.ndarray]:
    """What an answer has besides facts, drawn for each by itself (0 or 1; fillers 0 to 3)."""
    standard_N = (utility_N - utility_N.mean()) / (utility_N.std() or 1.0)
    share = settings.feature_share

    def drawn(name: str, chance: float) -> np.ndarray:
        chance_N = np.full(len(utility_N), chance)
        if settings.earned == name:
            odds_N = chance / (1 - chance) * np.exp(EARNED_SLOPE * standard_N)
            chance_N = odds_N / (1 + odds_N)
        return (random.random(len(utility_N)) < chance_N).astype(int)

    return {
        "closing": drawn("closing", share),
        "hedge": drawn("hedge", share),
        "confidence": drawn("confidence", share),
        "markdown": drawn("markdown", share),
        "agreement": drawn("agreement", 0.5) * (belief_N != NO_BELIEF),
        "fillers": drawn("fillers", share) * random.integers(1, 4, size=len(utility_N)),
    }
