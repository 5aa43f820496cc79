"""Splits by prompt cluster: stable across runs, machines and row order."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from palate.errors import PalateError
from palate.preferences.types import Message, PreferenceGroup
from palate.text import normalise
from palate.text.near import near_clusters

NO_KEYS: Mapping[str, str] = MappingProxyType({})


def prompt_cluster(prompt: Sequence[Message]) -> str:
    """The cluster of a prompt: its first user turn after normalisation, hashed.

    A prompt that extends another conversation shares its first user turn, so both fall in one
    cluster; exact matching of prompts would put one in training and the other in validation.
    """
    return hashlib.sha256(normalise(opening_of(prompt)).encode()).hexdigest()[:16]


def opening_of(prompt: Sequence[Message]) -> str:
    """The first user turn, or the first turn where no user speaks."""
    return next((m.content for m in prompt if m.role == "user"), prompt[0].content)


def join_near_duplicates(
    groups: Iterable[PreferenceGroup], threshold: float
) -> Mapping[str, tuple[str, ...]]:
    """Prompt clusters joined by near-duplicate first user turns: key to its two or more members.

    Jaccard index `threshold` or more of the shingles joins two clusters, and chains of such pairs
    all that they touch (`palate.text.near`). The key is the lowest of the members' hashes, so it
    does not depend on the order of rows; other rows may still join what was apart. Raises
    PalateError without the extra `near`.
    """
    openings: dict[str, str] = {}
    for group in groups:
        openings.setdefault(prompt_cluster(group.prompt), opening_of(group.prompt))
    clusters = sorted(openings)
    lowest = near_clusters([openings[cluster] for cluster in clusters], threshold)
    joined: dict[str, list[str]] = {}
    for cluster, first in zip(clusters, lowest, strict=True):
        joined.setdefault(clusters[first], []).append(cluster)
    return {key: tuple(members) for key, members in joined.items() if len(members) > 1}


def keys_of(joined: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """From each member of a joined cluster to its key."""
    return {member: key for key, members in joined.items() for member in members}


def _unit_interval(cluster: str, salt: str) -> float:
    digest = hashlib.sha256(f"{salt}\x00{cluster}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def fold_of(
    group: PreferenceGroup, num_folds: int, salt: str, keys: Mapping[str, str] = NO_KEYS
) -> int:
    """The fold, 0 to num_folds - 1, in which this group is held out.

    `keys` names the joined cluster of clusters that are part of one (`keys_of`).
    """
    cluster = prompt_cluster(group.prompt)
    return int(_unit_interval(keys.get(cluster, cluster), salt) * num_folds)


@dataclass(frozen=True)
class Split:
    """Groups by split name, with the manifest that says which cluster went where."""

    parts: Mapping[str, tuple[PreferenceGroup, ...]]
    manifest: Mapping[str, Any]


def split_groups(
    groups: Sequence[PreferenceGroup],
    shares: Mapping[str, float],
    salt: str = "palate",
    keys: Mapping[str, str] = NO_KEYS,
) -> Split:
    """Assign each prompt cluster to a part by a salted hash; `shares` sum to 1.

    Clusters with one key in `keys` (`keys_of`) fall together, where the key's hash says. Raises
    PalateError when the shares are not a partition or a part with a share is left empty.
    """
    if not (all(share >= 0 for share in shares.values()) and abs(sum(shares.values()) - 1) < 1e-9):
        raise PalateError(f"shares {dict(shares)} must be 0 or more and sum to 1")
    parts: dict[str, list[PreferenceGroup]] = {name: [] for name in shares}
    cluster_part: dict[str, str] = {}
    for group in groups:
        cluster = prompt_cluster(group.prompt)
        if cluster not in cluster_part:
            cluster_part[cluster] = part_of(keys.get(cluster, cluster), shares, salt)
        parts[cluster_part[cluster]].append(group)
    for name, members in parts.items():
        if shares[name] > 0 and not members:
            raise PalateError(
                f"the {name} part is empty: {len(groups)} groups in {len(cluster_part)} prompt"
                f" clusters are too few for a share of {shares[name]:g}"
            )
    manifest = {
        "salt": salt,
        "shares": dict(shares),
        "num_groups": {name: len(members) for name, members in parts.items()},
        "clusters": {
            name: sorted(c for c, part in cluster_part.items() if part == name) for name in shares
        },
    }
    return Split({name: tuple(members) for name, members in parts.items()}, manifest)


def part_of(cluster: str, shares: Mapping[str, float], salt: str = "palate") -> str:
    """The part of a prompt cluster, which its hash alone decides."""
    position = _unit_interval(cluster, salt)
    upper = 0.0
    for name, share in shares.items():
        upper += share
        if position < upper:
            return name
    return next(reversed(list(shares)))
