"""People: checks on votes that were planted and on their clean twins, weights by hand, and what a
cap on one annotator's share does to a model of the labels."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.audit.annotators import (
    agreement_with_the_rest,
    annotator_reliability,
    annotator_share,
)
from palate.audit.columns import NO_ANNOTATOR, Audited, Columns
from palate.audit.display import (
    position_bias,
    position_by_annotator,
    run_probability,
    straight_lining,
)
from palate.audit.findings import Finding, Skipped
from palate.audit.judgements import judgements
from palate.audit.people import agreement, people_findings
from palate.audit.scan import scan
from palate.audit.wording import weights_yaml
from palate.errors import PalateError
from palate.pipeline.prepare import refuse_without_effect
from palate.preferences import (
    Comparison,
    Message,
    PreferenceGroup,
    ReadSettings,
    Response,
    Source,
    Vote,
    VoteSettings,
    read,
)
from palate.preferences.annotator_weights import capped_weights, reliability_weights
from palate.preferences.votes import comparisons_from_votes
from palate.statistics.comparison_model import fit_comparison_model
from palate.statistics.dawid_skene import Judged, dawid_skene

FIRST, SECOND, TIE = ((0,), (1,)), ((1,), (0,)), ((0, 1),)


@dataclass(frozen=True)
class Said:
    """One judgement of a pair of answers."""

    pair: int
    who: str
    outcome: int
    shown: int = 0
    strength: float = math.nan
    turned: bool = False
    """In a row of its own, in which the two answers stand the other way round."""


def audited(said: Sequence[Said]) -> Audited:
    """Votes as the checks get them; each pair is a prompt cluster."""
    rows = list(dict.fromkeys((s.pair, s.turned) for s in said))
    names = tuple(sorted({s.who for s in said} - {""}))
    num_groups, pairs = len(rows), np.array([pair for pair, _ in rows], dtype=np.uint64)
    sides = np.array([(2 * p + t, 2 * p + 1 - t) for p, t in rows], dtype=np.uint64).ravel()
    first = np.array([2 * rows.index((s.pair, s.turned)) for s in said])
    blank_N = np.zeros(2 * num_groups, dtype=np.uint64)
    columns = Columns(
        files=("votes.jsonl",),
        models=(),
        annotators=names,
        features=(),
        file_G=np.zeros(num_groups, dtype=np.int32),
        line_G=np.arange(1, num_groups + 1),
        cluster_G=pairs,
        prompt_G=pairs,
        start_G=np.arange(0, 2 * num_groups + 1, 2),
        group_N=np.repeat(np.arange(num_groups), 2),
        text_N=sides,
        opening_N=blank_N,
        ending_N=blank_N,
        model_N=np.full(2 * num_groups, -1, dtype=np.int32),
        chars_N=np.ones(2 * num_groups, dtype=np.int32),
        features_NF=np.zeros((2 * num_groups, 0), dtype=np.float32),
        group_C=np.arange(num_groups),
        better_C=np.arange(0, 2 * num_groups, 2),
        worse_C=np.arange(1, 2 * num_groups, 2),
        probability_C=np.ones(num_groups, dtype=np.float32),
        tie_C=np.zeros(num_groups, dtype=np.float32),
        weight_C=np.ones(num_groups, dtype=np.float32),
        vote_P=np.arange(len(said)),
        annotator_P=np.array([names.index(s.who) if s.who else NO_ANNOTATOR for s in said]),
        first_P=first,
        second_P=first + 1,
        outcome_P=np.array([s.outcome for s in said], dtype=np.int8),
        shown_P=np.array([s.shown for s in said], dtype=np.int8),
        strength_P=np.array([s.strength for s in said], dtype=np.float32),
    )
    groups = [
        PreferenceGroup(
            (Message("user", f"question {pair}"),),
            (Response("one"), Response("other")),
            (Comparison(0, 1),),
            file="votes.jsonl",
            line=line,
        )
        for line, (pair, _) in enumerate(rows, start=1)
    ]
    return Audited(
        columns, groups, np.arange(num_groups), lambda wanted: {i: groups[i] for i in wanted}
    )


def finding(found: Finding | Skipped) -> Finding:
    assert isinstance(found, Finding), found
    return found


def reason(found: Finding | Skipped) -> str:
    assert isinstance(found, Skipped), found
    return found.reason


def panel(
    right: Mapping[str, float], num_pairs: int, seed: int = 0, per_pair: int | None = None
) -> list[Said]:
    """Each annotator is right of a pair's better side as often as said; some or all judge it."""
    generator = np.random.default_rng(seed)
    said = []
    for pair in range(num_pairs):
        truth = int(generator.choice([-1, 1]))
        drawn = generator.permutation(list(right))[:per_pair]
        said += [
            Said(pair, str(who), truth if generator.random() < right[who] else -truth)
            for who in drawn
        ]
    return said


# Agreement.


def test_the_numbers_of_an_agreement_by_hand() -> None:
    """Two people on four pairs, alike on three of them: 75 %. Both say 1 of four values first
    twice, of eight 4 first and 3 second and 1 tie: by chance (16 + 9 + 1) / 64 = 41 %.

    Coincidences: 2 of 8 are of a tie and a second; n = 4, 3, 1 and sum n_v n_w = 64 - 26 = 38 where
    they differ. alpha = 1 - 7 * 2 / 38 = 0.632. Cohen: rows 2, 1, 1, columns 2, 2, 0: chance
    (4 + 2) / 16, kappa (0.75 - 0.375) / 0.625 = 0.6, which is told of twenty pairs or more.
    """
    said = [Said(0, "a", 1), Said(0, "b", 1), Said(1, "a", 1), Said(1, "b", 1)]
    said += [Said(2, "a", -1), Said(2, "b", -1), Said(3, "a", 0), Said(3, "b", -1)]
    data = audited(said)
    (found,) = agreement(data, judgements(data.columns).shared())
    assert finding(found).statistic == pytest.approx(1 - 14 / 38)
    assert "agree in 75%" in finding(found).message
    assert "41% would by chance" in finding(found).message
    assert "Cohen" not in finding(found).message
    data = audited([Said(s.pair + 10 * copy, s.who, s.outcome) for copy in range(5) for s in said])
    (found,) = agreement(data, judgements(data.columns).shared())
    assert "Cohen's kappa 0.60, mean of 1 pairs" in finding(found).message
    assert finding(found).n == 40


def test_rows_that_hold_a_pair_the_other_way_round_are_turned() -> None:
    said = [Said(0, "a", 1), Said(0, "b", -1, turned=True), Said(1, "a", -1), Said(1, "b", -1)]
    shared = judgements(audited(said).columns).shared()
    assert shared.num_items == 2
    assert sorted(map(sorted, shared.counts.tolist())) == [[0, 0, 2], [0, 0, 2]]


def test_who_judges_a_pair_twice_does_not_agree_with_themselves() -> None:
    said = [Said(0, "a", 1), Said(0, "a", 1, turned=True), Said(1, "a", 1), Said(1, "b", 1)]
    shared = judgements(audited(said).columns).shared()
    assert shared.num_items == 1
    data = audited([Said(0, "", 1), Said(0, "", 1)])
    assert judgements(data.columns).shared().num_items == 1


def test_votes_at_random_are_told_as_little_agreement_and_good_ones_are_not() -> None:
    for right, severity in ((0.5, "warn"), (0.9, "note")):
        data = audited(panel(dict.fromkeys("abc", right), 300))
        found = finding(agreement(data, judgements(data.columns).shared())[0])
        assert found.severity == severity
        assert len(found.examples) == (10 if severity == "warn" else 0)
        assert ("Fleiss' kappa" in found.message) and ("3 judgements each" in found.message)


def test_strengths_show_that_near_ties_are_no_great_disagreement() -> None:
    """Both state how much better, with a little noise around one value: nominal values disagree
    where the sign is unsure, ordinal and interval ones hardly do."""
    generator = np.random.default_rng(0)
    said = []
    for pair in range(200):
        middle = generator.integers(-3, 4)
        for who in "ab":
            value = int(np.clip(middle + generator.integers(-1, 2), -3, 3))
            said.append(Said(pair, who, int(np.sign(value)), strength=abs(value)))
    data = audited(said)
    nominal, ordinal = map(finding, agreement(data, judgements(data.columns).shared()))
    assert nominal.statistic is not None and ordinal.statistic is not None
    assert ordinal.check == "agreement with strength"
    assert ordinal.statistic > nominal.statistic + 0.1


def test_data_without_overlap_or_votes_are_skipped_with_the_reason() -> None:
    data = audited([Said(0, "a", 1), Said(1, "b", 1)])
    skipped = [found for found in people_findings(data) if isinstance(found, Skipped)]
    assert [s.check for s in skipped] == [
        *("agreement", "annotator agreement", "annotator reliability"),
        *("position bias", "position by annotator", "straight-lining"),
    ]
    assert "no two people judged the same two answers" in skipped[0].reason
    assert [reason(found) for found in people_findings(audited([]))] == [
        "no votes: nobody's judgements can be held against others'"
    ]


# Shares.


@pytest.mark.parametrize(
    ("shares", "severity"),
    [
        ([10] * 10, "note"),
        ([30] + [8] * 9, "warn"),
        ([90] + [10] * 9, "error"),
        ([34, 33, 33], "note"),
        ([60, 30, 30], "note"),
        ([70, 30, 20], "warn"),
        ([90, 10, 10], "error"),
        ([60, 40], "note"),
        ([90, 10], "warn"),
        ([100], "note"),
    ],
)
def test_how_large_a_share_may_be_depends_on_how_many_there_are(
    shares: list[int], severity: str
) -> None:
    """Ten: above 0.2 and 0.4. Three: above 1.5 / 3 and 2 / 3. Two: above 1.5 / 2, and never."""
    who = [f"a{number}" for number, share in enumerate(shares) for _ in range(share)]
    found = finding(annotator_share(audited([Said(n, name, 1) for n, name in enumerate(who)])))
    assert found.severity == severity
    assert found.statistic == pytest.approx(max(shares) / sum(shares))
    assert bool(found.fix) == (severity != "note")


def test_the_fix_of_a_dominant_annotator_is_the_setting_with_its_weights() -> None:
    """90 of 180 votes, nine others with ten each. At a cap of 0.2: T = 90 / 0.8 = 112.5, of which
    22.5 are a0's: weight 0.25."""
    who = ["a0"] * 90 + [f"a{1 + number % 9}" for number in range(90)]
    found = finding(annotator_share(audited([Said(n, name, 1) for n, name in enumerate(who)])))
    assert "read: {votes: {annotator_cap: 0.2}}" in found.fix
    assert 'read: {votes: {annotator_weights: {"a0": 0.25}, weigh: comparisons}}' in found.fix
    assert "weight of 112 of 180 votes" in found.fix
    # HHI = 0.5^2 + 9 / 18^2 = 0.2778, as of 3.6 annotators.
    assert "HHI 0.278, as of 3.6 with equal shares" in found.message


def test_weights_in_a_fix_are_yaml_of_twenty_at_most() -> None:
    assert weights_yaml({"b": 0.0, "a": 1.0}) == 'read: {votes: {annotator_weights: {"b": 0}}}'
    many = weights_yaml({f"a{number}": number / 100 for number in range(30)})
    assert many.count("a") - many.count("annotator") * 2 >= 20
    assert '"a0": 0,' in many and '"a20"' not in many and "and 10 more" in many


# Each annotator against the others.


def test_a_careless_annotator_is_told_and_nobody_of_a_like_panel() -> None:
    right = {**dict.fromkeys("bcdef", 0.85), "a": 0.55}
    data = audited(panel(right, 250, per_pair=4))
    found = finding(agreement_with_the_rest(data, judgements(data.columns).shared()))
    assert found.severity == "warn"
    assert "Clearly below the others by 10% or more: 'a'" in found.message
    assert 'annotator_weights: {"a": 0}' in found.fix
    assert found.examples[0].text.startswith("a against the others: question ")
    reliability = finding(annotator_reliability(data, judgements(data.columns).shared()))
    assert reliability.statistic == pytest.approx(0.55, abs=0.08)
    twin = audited(panel(dict.fromkeys("abcdef", 0.85), 250, per_pair=4))
    shared = judgements(twin.columns).shared()
    assert finding(agreement_with_the_rest(twin, shared)).severity == "note"
    assert finding(annotator_reliability(twin, shared)).severity == "note"


def test_who_says_the_opposite_is_unreliable_and_gets_no_weight() -> None:
    data = audited(panel({"a": 0.2, "b": 0.8, "c": 0.8, "d": 0.9}, 200))
    found = finding(annotator_reliability(data, judgements(data.columns).shared()))
    assert found.severity == "warn"
    assert found.high is not None and found.high < 0.6
    assert "Below 60%: 'a'" in found.message
    assert "read: {votes: {reliability: true}}" in found.fix
    assert '{"a": 0, ' in found.fix


def test_two_annotators_do_not_say_which_of_them_is_reliable() -> None:
    data = audited(panel({"a": 0.6, "b": 0.9}, 100))
    shared = judgements(data.columns).shared()
    assert "it takes three annotators or more" in reason(annotator_reliability(data, shared))


# The order of display.


def shown(
    num_votes: int, first_wins: Callable[[str], float], names: str, seed: int = 0
) -> list[Said]:
    generator = np.random.default_rng(seed)
    said = []
    for pair in range(num_votes):
        who, side = names[pair % len(names)], int(generator.choice([-1, 1]))
        outcome = side if generator.random() < first_wins(who) else -side
        said.append(Said(pair, who, outcome, shown=side))
    return said


@pytest.mark.parametrize(
    ("share", "severity"), [(0.5, "note"), (0.56, "warn"), (0.65, "error"), (0.35, "error")]
)
def test_position_bias_is_told_by_its_distance_from_one_half(share: float, severity: str) -> None:
    found = finding(position_bias(audited(shown(2000, lambda who: share, "abcd"))))
    assert found.severity == severity
    assert found.statistic == pytest.approx(share, abs=0.03)
    assert "not drawn" not in found.message
    side = "first" if share > 0.5 else "second"
    assert all(e.text.startswith(f"the answer shown {side} won") for e in found.examples)


def test_an_order_that_was_never_drawn_is_told() -> None:
    said = [Said(pair, "a", 1, shown=1) for pair in range(100)]
    assert "the order was not drawn" in finding(position_bias(audited(said))).message


def test_the_annotator_who_follows_the_place_is_named_and_no_one_of_the_twin() -> None:
    biased = audited(shown(2000, lambda who: 0.7 if who == "c" else 0.5, "abcdefghij"))
    found = finding(position_by_annotator(biased))
    assert (found.severity, found.n) == ("warn", 200)
    assert found.message.startswith("1 of 10 annotators")
    assert 'annotator_weights: {"c": 0}' in found.fix
    twin = finding(position_by_annotator(audited(shown(2000, lambda who: 0.5, "abcdefghij"))))
    assert (twin.severity, twin.fix) == ("note", "")


def test_ties_and_votes_of_unknown_order_have_no_place() -> None:
    said = [Said(0, "a", 0, shown=1), Said(1, "a", 1), Said(2, "a", -1, shown=1)]
    found = finding(position_bias(audited(said)))
    assert (found.statistic, found.n) == (0, 1)


def test_the_probability_of_a_run_is_that_of_all_sequences() -> None:
    for num_votes in (1, 2, 5, 10, 13):
        longest = []
        for sides in product((0, 1), repeat=num_votes):
            run = best = 1
            for one, other in pairwise(sides):
                run = run + 1 if one == other else 1
                best = max(best, run)
            longest.append(best)
        for length in range(1, num_votes + 2):
            exact = np.mean(np.array(longest) >= length)
            found = run_probability(num_votes, length)
            assert found == pytest.approx(exact, abs=0.005)
            assert num_votes < 10 or found == pytest.approx(exact, rel=0.015)


def test_the_probability_of_long_runs_is_about_the_number_of_places_they_can_start_at() -> None:
    """A run of L or more starts at the first place, or after a change: 2^-(L - 1) (1 + (n - L) / 2)
    while that is small."""
    for num_votes, run in ((1000, 40), (100, 90), (10**6, 70)):
        expected = 0.5 ** (run - 1) * (1 + (num_votes - run) / 2)
        assert run_probability(num_votes, run) == pytest.approx(expected, rel=1e-3)


def test_a_straight_line_is_told_with_the_place_where_it_begins() -> None:
    said = shown(1000, lambda who: 0.5, "abcde")
    planted = [
        Said(s.pair, s.who, s.shown, s.shown) if s.who == "b" and 300 <= s.pair < 425 else s
        for s in said
    ]
    found = finding(straight_lining(audited(planted)))
    assert found.severity == "warn"
    assert found.statistic is not None and found.statistic >= 25
    assert "Found of 1 of 5 annotators: 'b'" in found.message
    assert found.examples[0].text.startswith("b: ")
    assert 280 <= found.examples[0].line <= 302
    assert finding(straight_lining(audited(said))).severity == "note"


def test_who_always_takes_one_side_is_a_straight_line() -> None:
    said = shown(500, lambda who: 1.0 if who == "a" else 0.5, "abcde")
    found = finding(straight_lining(audited(said)))
    assert (found.statistic, found.n) == (100, 100)
    assert "entropy of the side 0.00 bits" in found.message
    assert 'annotator_weights: {"a": 0}' in found.fix


# Real votes.


@pytest.mark.skipif("PALATE_TEST_DATA" not in os.environ, reason="real data are not here")
def test_pandalms_three_annotators_agree_well() -> None:
    path = Path(os.environ["PALATE_TEST_DATA"]) / "pandalm_votes.json"
    found = people_findings(scan({"votes": Source(path=str(path))}).audited)
    by_check = {f.check: f for f in found}
    alpha = finding(by_check["agreement"])
    assert alpha.statistic == pytest.approx(0.886, abs=0.005)
    assert alpha.low is not None and alpha.high is not None
    assert 0.82 < alpha.low < 0.86 and 0.90 < alpha.high < 0.94
    assert "agree in 93%" in alpha.message
    assert finding(by_check["annotator share"]).severity == "note"
    assert "With 3 each has 33%" in finding(by_check["annotator share"]).message
    assert {f.severity for f in found if isinstance(f, Finding)} == {"note"}


# Weights by hand.


def test_capped_weights_by_hand() -> None:
    """8, 1, 1 at 0.4: T = 2 / 0.6 = 10/3, level 4/3, so 8 counts 1/6. 10, 5, 3, 2, 1 at a fifth:
    all come down to 1. 6, 3, 1 at 0.4: the cut 6 leaves T = 4 / 0.6, level 8/3 below 3, so both are
    cut: T = 1 / 0.2 = 5, level 2. With 2 votes without names and a, b at 0.25: T = 2 / 0.5 = 4."""
    assert capped_weights({"a": 8, "b": 1, "c": 1}, 0.4) == pytest.approx(
        {"a": 1 / 6, "b": 1, "c": 1}
    )
    counts = {"a": 10, "b": 5, "c": 3, "d": 2, "e": 1}
    assert capped_weights(counts, 0.2) == pytest.approx({k: 1 / n for k, n in counts.items()})
    assert capped_weights({"a": 6, "b": 3, "c": 1}, 0.4) == pytest.approx(
        {"a": 1 / 3, "b": 2 / 3, "c": 1}
    )
    assert capped_weights({"a": 5, "b": 2}, 0.25, unnamed=2) == pytest.approx({"a": 0.2, "b": 0.5})
    assert capped_weights({"a": 3, "b": 2}, 0.6) == {"a": 1, "b": 1}


@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=12),
    st.floats(0.05, 1),
    st.integers(0, 50),
)
def test_no_share_exceeds_the_cap_and_no_weight_could_be_larger(
    numbers: list[int], cap: float, unnamed: int
) -> None:
    counts = {f"a{place}": float(number) for place, number in enumerate(numbers)}
    if not unnamed and cap * len(counts) < 1:
        with pytest.raises(PalateError, match="one has a share of 1/"):
            capped_weights(counts, cap)
        return
    weights = capped_weights(counts, cap, unnamed=unnamed)
    weighted = {name: weights[name] * counts[name] for name in counts}
    total = sum(weighted.values()) + unnamed
    for name, votes in weighted.items():
        assert 0 < weights[name] <= 1
        assert votes <= cap * total * (1 + 1e-6)
        assert weights[name] == 1 or votes == pytest.approx(cap * total, rel=1e-6)


def test_reliability_weights_by_hand() -> None:
    """log(p / (1 - p)) of 0.5, 0.75 and 0.9: 0, log 3 and 2 log 3, whose mean is log 3. Of three
    outcomes log(2 p / (1 - p)): of 1/3 none, of 0.5 log 2, of 0.8 log 8 = 3 log 2."""
    assert reliability_weights({"a": 0.5, "b": 0.75, "c": 0.9}) == pytest.approx(
        {"a": 0, "b": 1, "c": 2}
    )
    assert reliability_weights({"a": 0.2, "b": 0.75}) == pytest.approx({"a": 0, "b": 2})
    assert reliability_weights({"a": 1 / 3, "b": 0.5, "c": 0.8}, 3) == pytest.approx(
        {"a": 0, "b": 0.75, "c": 2.25}
    )
    same = reliability_weights({"a": 0.99, "b": 1.0})
    assert same == pytest.approx({"a": 1, "b": 1})
    with pytest.raises(PalateError, match="none of 2 annotators"):
        reliability_weights({"a": 0.4, "b": 0.5})


def test_weights_on_comparisons_by_hand() -> None:
    """A lone vote of weight 1/4 keeps its label, (1 + 1/2) / (1 + 1) = 0.75, and counts 1/4.

    Votes of 1 and 1/2 against each other: worth (3/2)^2 / (5/4) = 1.8 equal votes, 1.2 and 0.6, so
    (1.2 + 1/2) / 2.8; and (5/4) / (3/2) = 5/6. With a tie of weight 1/2 beside 1: a third is tie.
    """
    settings = VoteSettings(annotator_weights={"a": 0.25, "b": 0.5}, weigh="comparisons")
    (lone,) = comparisons_from_votes(2, [Vote("a", FIRST)], settings)
    assert (lone.probability, lone.weight) == (0.75, 0.25)
    (both,) = comparisons_from_votes(2, [Vote("c", FIRST), Vote("b", SECOND)], settings)
    assert both.better == 0
    assert both.probability == pytest.approx(1.7 / 2.8)
    assert both.weight == pytest.approx(5 / 6)
    (tied,) = comparisons_from_votes(2, [Vote("c", FIRST), Vote("b", TIE)], settings)
    assert tied.tie == pytest.approx(1 / 3)


@given(st.lists(st.sampled_from([FIRST, SECOND, TIE]), min_size=1, max_size=6), st.floats(0.01, 5))
def test_one_weight_for_all_on_comparisons_changes_no_label(
    rankings: list[tuple[tuple[int, ...], ...]], weight: float
) -> None:
    cast = [Vote("a", ranking) for ranking in rankings]
    (plain,) = comparisons_from_votes(2, cast, VoteSettings())
    settings = VoteSettings(annotator_weights={"a": weight, "b": 0.0}, weigh="comparisons")
    (weighed,) = comparisons_from_votes(2, cast, settings)
    assert weighed.probability == pytest.approx(plain.probability)
    assert (weighed.better, weighed.tie) == (plain.better, pytest.approx(plain.tie))
    assert weighed.weight == pytest.approx(weight)
    # Who has no weight is not there.
    assert comparisons_from_votes(2, [*cast, Vote("b", SECOND)], settings) == (weighed,)


# The settings that find the weights.


def row(number: int, votes: Sequence[tuple[str, str]], **fields: Any) -> dict[str, Any]:
    """Votes for "one" or "other", the answers to question `number`."""
    return {
        "prompt": f"question {number}",
        "responses": ["one", "other"],
        "votes": [
            {"annotator": who, "choice": ["one", "other"].index(what)} for who, what in votes
        ],
        **fields,
    }


def written(folder: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path = folder / "votes.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return str(path)


def by_votes(**votes: Any) -> ReadSettings:
    return ReadSettings(votes=VoteSettings(**votes))


DOMINATED = [row(n, [("a" if n < 8 else "bc"[n - 8], "one")]) for n in range(10)]
"""Votes of a, b and c: 8, 1 and 1."""


def test_a_cap_is_the_weights_it_comes_to(tmp_path: Path) -> None:
    path = written(tmp_path, DOMINATED)
    capped = read(path, by_votes(annotator_cap=0.4))
    assert capped.annotator_weights == {path: pytest.approx({"a": 1 / 6, "b": 1, "c": 1})}
    weights = dict(capped.annotator_weights[path])
    stated = read(path, by_votes(annotator_weights=weights, weigh="comparisons"))
    assert capped.groups == stated.groups
    assert [c.weight for group in capped.groups for c in group.comparisons] == pytest.approx(
        [1 / 6] * 8 + [1, 1]
    )
    assert {c.probability for group in capped.groups for c in group.comparisons} == {0.75}
    assert f"weights of annotators in {path}: a 0.167, b 1, c 1" in capped.summary()
    refuse_without_effect(capped, by_votes(annotator_cap=0.4))
    loose = read(path, by_votes(annotator_cap=0.9))
    assert loose.groups == read(path).groups


def test_reliability_is_the_weights_of_dawid_and_skene(tmp_path: Path) -> None:
    """a, b and c on thirty pairs; c says the opposite in every third."""
    rows = [
        row(n, [("a", "one"), ("b", "one"), ("c", "other" if n % 3 == 0 else "one")])
        if n % 2
        else row(n, [("a", "other"), ("b", "one" if n % 8 == 0 else "other"), ("c", "other")])
        for n in range(30)
    ]
    path = written(tmp_path, rows)
    reading = read(path, by_votes(reliability=True))
    label = [["one", "other"].index(what) for each in rows for what in chosen(each)]
    judged = Judged(
        label_J=np.array(label),
        item_J=np.repeat(np.arange(30), 3),
        annotator_J=np.tile(np.arange(3), 30),
        num_labels=2,
        num_items=30,
        num_annotators=3,
    )
    found = dict(zip("abc", dawid_skene(judged).reliability_A, strict=True))
    assert reading.annotator_weights == {path: pytest.approx(reliability_weights(found), abs=1e-4)}
    assert found["a"] > found["b"] > found["c"]
    refuse_without_effect(reading, by_votes(reliability=True))
    # The cap holds for votes so weighted.
    both = read(path, by_votes(reliability=True, annotator_cap=0.35))
    weights = both.annotator_weights[path]
    assert max(weights.values()) / sum(weights.values()) == pytest.approx(0.35)


def chosen(each: Mapping[str, Any]) -> list[str]:
    return [each["responses"][vote["choice"]] for vote in each["votes"]]


def test_votes_of_one_pair_in_rows_of_their_own_are_judgements_of_one_pair(
    tmp_path: Path,
) -> None:
    together = [
        row(n, [("a", "one"), ("b", "one"), ("c", "one" if n % 4 else "other")]) for n in range(20)
    ]
    apart = [{**each, "votes": [vote]} for each in together for vote in each["votes"]]
    first = read(written(tmp_path, together), by_votes(reliability=True))
    second = read(written(tmp_path, apart), by_votes(reliability=True))
    (one,), (other,) = first.annotator_weights.values(), second.annotator_weights.values()
    assert one == pytest.approx(other)


@pytest.mark.parametrize(
    ("votes", "said"),
    [
        ({"annotator_cap": 1.0}, "annotator_cap is 1.0, must be 0"),
        ({"annotator_cap": -0.1}, "annotator_cap is -0.1"),
        ({"annotator_cap": math.nan}, "annotator_cap is nan"),
        ({"annotator_cap": 0.2, "annotator_weights": {"a": 2.0}}, "would find; set one of them"),
        ({"reliability": True, "annotator_weights": {"a": 2.0}}, "that reliability would find"),
        ({"annotator_cap": 0.2, "weigh": "comparisons"}, "no effect with annotator_cap"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(votes: dict[str, Any], said: str) -> None:
    with pytest.raises(PalateError) as refused:
        VoteSettings(**votes)
    assert said in str(refused.value)


UNNAMED = [{"prompt": "q", "responses": ["a", "b"], "votes": [{"choice": 0}]}]
STATED = [row(0, [("a", "one")], comparisons=[{"better": 0, "worse": 1}])]


@pytest.mark.parametrize(
    ("rows", "votes", "said"),
    [
        (DOMINATED, {"annotator_cap": 0.2}, "of 3 annotators one has a share of 1/3 at least; set"),
        (DOMINATED, {"reliability": True}, "3 annotators judged 10 pairs in 10 judgements"),
        (DOMINATED, {"weigh": "comparisons"}, "read.votes.weigh has no effect"),
        (UNNAMED, {"annotator_cap": 0.4}, "read.votes.annotator_cap has no effect"),
        (UNNAMED, {"reliability": True}, "read.votes.reliability has no effect"),
        (STATED, {"annotator_cap": 0.4}, "set read.votes.recount true"),
    ],
)
def test_what_the_votes_can_not_heed_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], votes: dict[str, Any], said: str
) -> None:
    path, settings = written(tmp_path, rows), by_votes(**votes)
    with pytest.raises(PalateError) as refused:
        refuse_without_effect(read(path, settings), settings)
    assert said in str(refused.value)
    assert path in str(refused.value)


def test_a_cap_may_be_one_sources_own(tmp_path: Path) -> None:
    path = written(tmp_path, DOMINATED)
    capped = {"mine": Source(path=path, votes=VoteSettings(annotator_cap=0.4))}
    (weights,) = read(capped).annotator_weights.values()
    assert weights["a"] == pytest.approx(1 / 6)


# Dominance, end to end.


def test_a_cap_restores_what_a_dominant_annotators_taste_took(tmp_path: Path) -> None:
    """Ten annotators, one vote a pair. a0 gives half of all votes and has a taste of their own: 3
    logits for two features that nobody else cares for. A model of the eight features is trained on
    all, with the cap, and without a0; it is tested on what the others prefer, drawn anew."""
    generator = np.random.default_rng(0)
    common_F = np.array([1, -1, 1, -1, 1, 0, 0, 0.0])
    private_F = np.array([0, 0, 0, 0, 0, 3, -3, 0.0])
    num_pairs = 1200
    feature_N = generator.normal(size=(2 * num_pairs, 8)) / 2
    difference_C = feature_N[::2] - feature_N[1::2]
    is_a0 = generator.random(num_pairs) < 0.5
    logit_C = difference_C @ common_F + is_a0 * (difference_C @ private_F)
    first_C = generator.random(num_pairs) < 1 / (1 + np.exp(-logit_C))
    rows = []
    for pair in range(num_pairs):
        who = "a0" if is_a0[pair] else f"a{1 + pair % 9}"
        rows.append(
            {
                "prompt": f"question {pair}",
                "responses": [f"answer {2 * pair}", f"answer {2 * pair + 1}"],
                "votes": [{"annotator": who, "choice": 0 if first_C[pair] else 1}],
            }
        )
    path = written(tmp_path, rows)
    held_out = generator.normal(size=(20_000, 8)) / 2**0.5
    others = generator.random(20_000) < 1 / (1 + np.exp(-held_out @ common_F))

    def accuracy(settings: ReadSettings) -> float:
        differences, targets, weights = [], [], []
        for group in read(path, settings).groups:
            for c in group.comparisons:
                better, worse = (
                    int(group.responses[i].text.split()[1]) for i in (c.better, c.worse)
                )
                differences.append(feature_N[better] - feature_N[worse])
                targets.append(c.probability)
                weights.append(c.weight)
        found_F = fit_comparison_model(
            np.array(differences), np.array(weights), 1.0, np.array(targets)
        )
        return float(((held_out @ found_F > 0) == others).mean())

    plain = accuracy(ReadSettings())
    capped = accuracy(by_votes(annotator_cap=0.2))
    without = accuracy(by_votes(annotator_weights={"a0": 0.0}))
    # The same shares on votes make the labels of a0 softer, and leave them their weight.
    (weights,) = read(path, by_votes(annotator_cap=0.2)).annotator_weights.values()
    softer = accuracy(by_votes(annotator_weights=dict(weights)))
    assert without - plain > 0.04
    assert capped - plain > 0.8 * (without - plain)
    assert plain < softer < capped
    share = weights["a0"] * is_a0.sum() / (weights["a0"] * is_a0.sum() + (~is_a0).sum())
    assert share == pytest.approx(0.2)
