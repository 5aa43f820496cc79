"""Perturbations keep the words, and the three parts of a phrase bank share no phrasing."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.text import STYLE_FEATURES
from palate.text.perturb import PERTURBATIONS, as_markdown, has_markdown, perturb
from palate.text.phrases import BANKS, PARTS, Part

PLAIN = "The Nile is in Africa. It flows north, to the sea! Is it long? Yes: 6,650 km."
MARKED = "## The Nile\n- **It flows** north.\n- It is `long`.\n\n```\n- x = 2 ** 3\n```"
PREFIXES = ("opener", "confidence", "hedge", "agreement")


def edit_distance(first: str, second: str) -> int:
    """Insertions, deletions and substitutions (Levenshtein), a row of the table at a time."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        left, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            left, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, left + (a != b))
    return row[-1]


def words(text: str) -> list[str]:
    """The words of a text, without marks of layout."""
    stripped = (word.replace("**", "").strip("*#>") for word in text.split())
    return [word for word in stripped if word not in ("", "-") and not word[:-1].isdigit()]


def is_subsequence(wanted: list[str], found: list[str]) -> bool:
    rest = iter(found)
    return all(word in rest for word in wanted)


@pytest.mark.parametrize("kind", BANKS)
def test_no_phrase_or_close_variant_is_in_two_parts(kind: str) -> None:
    bank = BANKS[kind]
    for first, second in combinations(PARTS, 2):
        for a, b in product(bank.part(first), bank.part(second)):
            assert a.lower().split()[:3] != b.lower().split()[:3]
            assert edit_distance(a.lower(), b.lower()) / max(len(a), len(b)) > 0.4, (a, b)
    for part in PARTS:
        assert len(set(bank.part(part))) >= 6


def test_the_edit_distance_of_the_test_itself() -> None:
    """kitten -> sitten -> sittin -> sitting: three steps."""
    assert edit_distance("kitten", "sitting") == 3


@pytest.mark.parametrize(
    ("kind", "feature"), [("closing", "closing"), ("confidence", "absolute"), ("hedge", "hedge")]
)
def test_phrases_of_every_part_are_what_the_style_features_look_for(
    kind: str, feature: str
) -> None:
    for part in PARTS:
        assert all(STYLE_FEATURES[feature](phrase) for phrase in BANKS[kind].part(part))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", PERTURBATIONS)
@pytest.mark.parametrize("text", [PLAIN, MARKED])
def test_the_words_stay_and_the_same_seed_gives_the_same_text(
    kind: str, part: Part, text: str
) -> None:
    changed = perturb(text, kind, part, np.random.default_rng(3))
    assert is_subsequence(words(text), words(changed))
    assert changed == perturb(text, kind, part, np.random.default_rng(3))


@pytest.mark.parametrize("kind", PREFIXES)
def test_a_prefix_is_a_phrase_of_the_part(kind: str) -> None:
    changed = perturb(PLAIN, kind, "test", np.random.default_rng(0))
    assert changed.endswith(" " + PLAIN)
    assert changed.removesuffix(" " + PLAIN) in BANKS[kind].test


def test_a_closing_goes_below_a_list_and_fillers_are_two_different_sentences() -> None:
    closed = perturb("- one\n- two", "closing", "test", np.random.default_rng(0))
    assert closed.startswith("- one\n- two\n\n")
    filled = perturb(PLAIN, "filler", "train", np.random.default_rng(0)).removeprefix(PLAIN + " ")
    assert sum(phrase in filled for phrase in BANKS["filler"].train) == 2


@pytest.mark.parametrize("part", PARTS)
def test_markdown_and_back_is_the_same_text(part: Part) -> None:
    marked = as_markdown(PLAIN, part)
    assert has_markdown(marked) and not has_markdown(PLAIN)
    assert STYLE_FEATURES["list"](marked) and STYLE_FEATURES["bold"](marked)
    assert perturb(marked, "plain", part, np.random.default_rng(0)) == PLAIN
    assert as_markdown(marked, part) == marked


def test_the_layouts_of_the_parts_differ() -> None:
    assert len({as_markdown(PLAIN, part) for part in PARTS}) == 3


def test_plain_leaves_code_and_powers_as_they_are() -> None:
    """By hand: the heading and the items lose their marks, the fence keeps all of its own."""
    plain = perturb(MARKED, "plain", "test", np.random.default_rng(0))
    assert plain == "The Nile It flows north. It is `long`.\n\n```\n- x = 2 ** 3\n```"
    powers = "2**3 is 8 and 3**2 is 9."
    assert perturb(powers, "plain", "test", np.random.default_rng(0)) == powers


@settings(max_examples=60, deadline=None)
@given(
    st.text(alphabet=st.sampled_from("ab. \n-*1#!?`>"), min_size=1, max_size=60),
    st.sampled_from(PERTURBATIONS),
    st.sampled_from(PARTS),
)
def test_letters_stay_in_any_text(text: str, kind: str, part: Part) -> None:
    changed = perturb(text, kind, part, np.random.default_rng(0))
    letters = [letter for letter in text if letter in "ab"]
    assert is_subsequence(letters, list(changed))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(KeyError):
        perturb(PLAIN, "louder", "test", np.random.default_rng(0))
