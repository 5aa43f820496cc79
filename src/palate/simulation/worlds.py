"""Worlds: each a fault that can be planted, its clean twin, and a twin where it is no fault."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from palate.errors import PalateError
from palate.simulation.labels import Simulated, label
from palate.simulation.parts import PART_NAMES
from palate.simulation.scenes import Scene, make_scene
from palate.simulation.settings import LabelSettings, SceneSettings

TwinName = Literal["planted", "clean", "legitimate"]
TWINS: tuple[TwinName, ...] = ("planted", "clean", "legitimate")

STYLES: Mapping[str, SceneSettings] = {
    "independent": SceneSettings(),
    "legitimate-length": SceneSettings(earned="length"),
    "legitimate-markdown": SceneSettings(earned="markdown"),
    "legitimate-closing": SceneSettings(earned="closing"),
    "legitimate-confidence": SceneSettings(earned="confidence"),
    "legitimate-sycophancy": SceneSettings(earned="agreement", wrong_belief_share=0.0),
    "leak": SceneSettings(as_pairs=True, split="random pairs", near_twin_share=0.1),
    "leak-clean": SceneSettings(as_pairs=True, split="clusters", near_twin_share=0.1),
    "truncation": SceneSettings(common_words=150),
    "truncation-clean": SceneSettings(common_words=150, common_at="end"),
    "off-topic": SceneSettings(off_topic_share=0.5),
    "shift": SceneSettings(split="topics", fresh_topics=4, fresh_facts=3),
    "shift-clean": SceneSettings(split="topics"),
}
"""Ways to write a scene, by name."""


@dataclass(frozen=True)
class Twin:
    """One of a world's twins: how it is written, and how it is labelled at strength 1."""

    style: str
    labels: LabelSettings = field(default_factory=LabelSettings)
    num_responses: int = 2

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the parts that its groups fall into; none where there is no split."""
        return PART_NAMES[STYLES[self.style].split]


@dataclass(frozen=True)
class World:
    """A fault and what to hold it against."""

    name: str
    description: str
    planted: Twin
    clean: Twin
    legitimate: Twin | None = None

    def twin(self, name: TwinName) -> Twin:
        """Raises PalateError where the world has no such twin."""
        found = {"planted": self.planted, "clean": self.clean, "legitimate": self.legitimate}
        if name not in found:
            raise PalateError(f"twin {name!r} is none of {', '.join(TWINS)}")
        twin = found[name]
        if twin is None:
            with_one = [world.name for world in WORLDS.values() if world.legitimate]
            raise PalateError(
                f"world {self.name!r} has no legitimate twin; these have: {', '.join(with_one)}"
            )
        return twin


def _style_world(name: str, description: str, labels: LabelSettings) -> World:
    """A world whose planted and clean twins share their texts, with a legitimate twin."""
    return World(
        name,
        description,
        planted=Twin("independent", labels),
        clean=Twin("independent"),
        legitimate=Twin(f"legitimate-{name}"),
    )


_BY_STYLE_ALONE = LabelSettings(
    worth=0.0, length=1.0, markdown=1.0, closing=1.0, confidence=1.0, sycophancy=1.0
)

_WORLDS = (
    _style_world(
        "length",
        "one logit for a standard deviation of log words; legitimate: more right facts, more words",
        LabelSettings(length=1.0),
    ),
    _style_world(
        "markdown",
        "one logit for a list with bold words; legitimate: better answers are lists more often",
        LabelSettings(markdown=1.0),
    ),
    _style_world(
        "closing",
        "one logit for a polite ending; legitimate: better answers end politely more often",
        LabelSettings(closing=1.0),
    ),
    _style_world(
        "confidence",
        "one logit for a claim of certainty; legitimate: better answers claim it more often",
        LabelSettings(confidence=1.0),
    ),
    _style_world(
        "sycophancy",
        "one logit for agreeing with the user's belief, which is mostly wrong; legitimate: beliefs"
        " are right, and better answers agree more often",
        LabelSettings(sycophancy=1.0),
    ),
    World(
        "leak",
        "pairs of four answers, split at random: prompts, answers and near twins on both sides;"
        " clean: split by prompt cluster",
        planted=Twin("leak", num_responses=4),
        clean=Twin("leak-clean", num_responses=4),
    ),
    World(
        "truncation",
        "answers share their first 150 words and differ only then; clean: they share their last",
        planted=Twin("truncation"),
        clean=Twin("truncation-clean"),
    ),
    World(
        "dominance",
        "one of ten annotators gives half of the votes, with tastes of 1.5 logits; clean: equals",
        planted=Twin("independent", LabelSettings(dominance=0.5, dominant_taste=1.5)),
        clean=Twin("independent"),
    ),
    World(
        "position",
        "one logit for the answer shown first",
        planted=Twin("independent", LabelSettings(position=1.0)),
        clean=Twin("independent"),
    ),
    World(
        "source",
        "one logit for a standard deviation of the strength of the answer's model",
        planted=Twin("independent", LabelSettings(source=1.0)),
        clean=Twin("independent"),
    ),
    World(
        "prompt-blind",
        "half of the answers are off topic; planted: one logit for each feature of style and"
        " nothing for content; clean: an answer off topic is worth two logits less than none",
        planted=Twin("off-topic", _BY_STYLE_ALONE),
        clean=Twin("off-topic"),
    ),
    World(
        "noise",
        "a quarter of the votes say the reverse",
        planted=Twin("independent", LabelSettings(flip=0.25)),
        clean=Twin("independent"),
    ),
    World(
        "shift",
        "fresh answers are longer, better and on topics that training has not seen; clean: fresh"
        " is as training",
        planted=Twin("shift"),
        clean=Twin("shift-clean"),
    ),
)
WORLDS: Mapping[str, World] = {world.name: world for world in _WORLDS}


def scene(
    seed: int,
    num_prompts: int = 6000,
    num_responses: int = 2,
    style: str | SceneSettings = "independent",
) -> Scene:
    """Prompts and answers with real text, their features and true utility.

    `style` is a name in STYLES, or settings of your own. The same arguments give the same texts.
    Raises PalateError for an unknown style and for more prompts than can be composed.
    """
    if num_responses < 2:
        raise PalateError(f"num_responses is {num_responses}; a comparison needs two or more")
    if isinstance(style, SceneSettings):
        return make_scene(seed, num_prompts, num_responses, "own", style)
    if style not in STYLES:
        raise PalateError(f"style {style!r} is none of {', '.join(STYLES)}")
    return make_scene(seed, num_prompts, num_responses, style, STYLES[style])


def world(
    name: str,
    twin: TwinName = "planted",
    seed: int = 0,
    num_prompts: int = 6000,
    strength: float = 1.0,
) -> Simulated:
    """A twin of a world, labelled: `strength` times the fault that the world plants.

    The clean twin of the same seed has the same prompts, annotators and noise. Raises PalateError
    for an unknown world or twin, and for a strength where nothing has one.
    """
    if name not in WORLDS:
        raise PalateError(f"world {name!r} is none of {', '.join(WORLDS)}")
    chosen = WORLDS[name].twin(twin)
    labels = labels_of(name, twin, seed, strength)
    made = _kept_scene(seed, num_prompts, chosen.num_responses, chosen.style)
    return label(made, labels, f"{name} {twin}")


def labels_of(
    name: str, twin: TwinName = "planted", seed: int = 0, strength: float = 1.0
) -> LabelSettings:
    """How a twin of a world is labelled, for `label`: one scene with many seeds or strengths."""
    labels = WORLDS[name].twin(twin).labels
    if strength != 1 and not WORLDS[name].planted.labels.planted():
        raise PalateError(f"strength {strength} has no effect: world {name!r} plants no logits")
    return replace(labels.scaled(strength), seed=seed)


@lru_cache(maxsize=4)
def _kept_scene(seed: int, num_prompts: int, num_responses: int, style: str) -> Scene:
    """The last few scenes are kept: twins share them."""
    return scene(seed, num_prompts, num_responses, style)
