"""Worlds whose true reward is known: prompts, answers, annotators, and faults planted in them."""

from palate.simulation.annotators import Votes
from palate.simulation.labels import Simulated, label
from palate.simulation.scenes import MODELS, Scene
from palate.simulation.settings import LEANINGS, LabelSettings, SceneSettings
from palate.simulation.worlds import STYLES, TWINS, WORLDS, Twin, World, labels_of, scene, world

__all__ = [
    "LEANINGS",
    "MODELS",
    "STYLES",
    "TWINS",
    "WORLDS",
    "LabelSettings",
    "Scene",
    "SceneSettings",
    "Simulated",
    "Twin",
    "Votes",
    "World",
    "label",
    "labels_of",
    "scene",
    "world",
]
