"""Which groups of a scene are for training, and which are held out.

Legend: G groups.
"""

from collections.abc import Mapping

import numpy as np

from palate.simulation.settings import SceneSettings, Split

PART_NAMES: Mapping[Split, tuple[str, ...]] = {
    "none": (),
    "random pairs": ("train", "validation"),
    "clusters": ("train", "validation"),
    "topics": ("train", "fresh"),
}
"""The part to train on and the part that is held out, by the kind of split."""


def parts_of(
    seed: int, cluster_G: np.ndarray, fresh_G: np.ndarray, settings: SceneSettings
) -> Mapping[str, tuple[int, ...]]:
    """Groups by part, as the split says: train and validation, or train and fresh."""
    if settings.split == "none":
        return {}
    if settings.split == "topics":
        return _named(settings.split, fresh_G)
    random = np.random.default_rng([seed, 3])
    drawn_G = random.random(len(cluster_G))
    if settings.split == "clusters":
        drawn_G = random.random(int(cluster_G.max()) + 1)[cluster_G]
    return _named(settings.split, drawn_G >= settings.train_share)


def _named(split: Split, is_held_out_G: np.ndarray) -> Mapping[str, tuple[int, ...]]:
    train, held_out = PART_NAMES[split]
    return {
        train: tuple(np.flatnonzero(~is_held_out_G).tolist()),
        held_out: tuple(np.flatnonzero(is_held_out_G).tolist()),
    }
