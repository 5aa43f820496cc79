"""What the hashes of frequent openings and endings stand for.

Legend: G groups, N answers.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from palate.preferences import PreferenceGroup

MIN_PHRASE_COUNT = 5
MIN_PHRASE_SHARE = 2e-4
"""Answers that must share an opening or ending, and their share of all, for its text to be kept."""


def frequent_texts(
    hash_N: np.ndarray,
    start_G: np.ndarray,
    fetch: Callable[[Sequence[int]], Mapping[int, PreferenceGroup]],
    sample_indices: Sequence[int],
    phrase: Callable[[str], str],
) -> dict[int, str]:
    """The phrases that come often, by hash, each from an answer that has it: of the sample where
    there is one."""
    hashes, counts = np.unique(hash_N[hash_N != 0], return_counts=True)
    wanted = hashes[counts >= max(MIN_PHRASE_COUNT, MIN_PHRASE_SHARE * len(hash_N))]
    if not len(wanted):
        return {}
    is_sampled_G = np.zeros(len(start_G) - 1, bool)
    is_sampled_G[np.asarray(sample_indices, np.int64)] = True
    answers = np.flatnonzero(np.isin(hash_N, wanted))
    group_of = np.searchsorted(start_G, answers, "right") - 1
    # Those of the sample first: of equal hashes `np.unique` names the first.
    order = np.argsort(~is_sampled_G[group_of], kind="stable")
    found, first = np.unique(hash_N[answers[order]], return_index=True)
    places = {int(h): int(answers[order[f]]) for h, f in zip(found, first, strict=True)}
    owner = {h: int(np.searchsorted(start_G, n, "right") - 1) for h, n in places.items()}
    groups = fetch(sorted(set(owner.values())))
    return {
        h: phrase(groups[g].responses[places[h] - int(start_G[g])].text)
        for h, g in owner.items()
        if g in groups
    }
