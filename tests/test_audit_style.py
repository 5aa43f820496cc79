"""Length, style, openings and endings: numbers derived by hand, and faults beside their twins."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.audit.columns import Audited
from palate.audit.decided import decided_comparisons, joint_model
from palate.audit.findings import Finding, Skipped
from palate.audit.phrases import phrase_findings
from palate.audit.scan import columns_of
from palate.audit.settings import AuditSettings, StyleThresholds
from palate.audit.shares import discoveries, sign_test, won_share
from palate.audit.style import style_findings
from palate.preferences import Comparison, Message, PreferenceGroup, Response
from palate.statistics import cluster_mean
from palate.text import STYLE_FEATURES, style_features

ONES = np.ones(10)


def test_share_of_single_comparisons_is_wilsons() -> None:
    """8 of 10: centre (0.8 + 3.8415/20)/1.38415 = 0.7167, half-width 1.96/1.38415 *
    sqrt(0.016 + 3.8415/400) = 0.2266. Sign test: 2 (1 + 10 + 45) / 1024."""
    won = np.array([1.0] * 8 + [0.0] * 2)
    share = won_share(won, np.arange(10), ONES)
    assert share.value == 0.8
    assert share.low == pytest.approx(0.4902, abs=1e-4)
    assert share.high == pytest.approx(0.9433, abs=1e-4)
    assert share.p_value == pytest.approx(112 / 1024)
    assert not share.differs


def test_comparisons_of_one_cluster_count_once() -> None:
    won = np.array([1.0] * 8 + [0.0] * 2)
    alone = won_share(won, np.arange(10), ONES)
    repeated = won_share(np.repeat(won, 5), np.repeat(np.arange(10), 5), np.full(50, 0.2))
    assert (repeated.low, repeated.high) == pytest.approx((alone.low, alone.high))
    assert repeated.p_value == alone.p_value
    assert (repeated.num_comparisons, repeated.num_clusters) == (50, 10)


def test_all_won_has_an_interval_still() -> None:
    """Wilson at 10 of 10: 1 / (1 + 3.8415/10)."""
    share = won_share(np.ones(10), np.arange(10), ONES)
    assert (share.value, share.high) == (1.0, pytest.approx(1.0))
    assert share.low == pytest.approx(1 / 1.38415, abs=1e-4)
    assert share.differs


def test_share_agrees_with_the_cluster_bootstrap() -> None:
    random = np.random.default_rng(0)
    cluster = np.repeat(np.arange(400), random.integers(1, 9, 400))
    taste = random.random(400)
    won = (random.random(len(cluster)) < taste[cluster]).astype(float)
    weight = 1.0 / np.bincount(cluster)[cluster]
    share = won_share(won, cluster, weight)
    bootstrap = cluster_mean(won, cluster.tolist(), weight)
    assert share.value == pytest.approx(bootstrap.value)
    assert share.low == pytest.approx(bootstrap.low, abs=0.005)
    assert share.high == pytest.approx(bootstrap.high, abs=0.005)


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no comparisons"):
        won_share(np.zeros(0), np.zeros(0), np.zeros(0))
    assert sign_test(0, 0) == 1.0


@pytest.mark.parametrize(
    ("p_values", "called"),
    [
        ([0.5, 0.01, 0.04, 0.02, 0.03], [False, True, True, True, True]),  # limits .01 to .05
        ([0.04, 0.03, 0.045], [True, True, True]),  # the largest passes and carries the others
        ([0.02, 0.2, 0.9], [False, False, False]),  # .02 is above .05 / 3
        ([], []),
    ],
)
def test_benjamini_hochberg(p_values: list[float], called: list[bool]) -> None:
    assert discoveries(p_values, 0.05).tolist() == called


def pair(number: int, better: str, worse: str) -> PreferenceGroup:
    prompt = (Message("user", f"Question {number}?"),)
    return PreferenceGroup(prompt, (Response(better), Response(worse)), (Comparison(0, 1),))


def words(count: int, number: int) -> str:
    """Plain words, so that nothing but their number differs; the seed makes answers different."""
    stock = ("stone", "river", "cloud", "field", "tower", "grass", "table", "bread", "chalk")
    return " ".join(stock[(number * 7 + i * i) % 9] for i in range(count))


def longer_wins(num_won: int, num_lost: int) -> Audited:
    return columns_of(
        [
            pair(i, words(30, i), words(10, i)) if i < num_won else
            pair(i, words(10, i), words(30, i))
            for i in range(num_won + num_lost)
        ]
    )  # fmt: skip


def named(found: list[Finding | Skipped], check: str) -> Finding:
    (one,) = [each for each in found if each.check == check and isinstance(each, Finding)]
    return one


def test_joint_coefficient_by_hand() -> None:
    """One feature that differs by the same amount everywhere: the coefficient is the log-odds
    log(150 / 50), its error sqrt(1/150 + 1/50), both drawn in by the ridge of one pair."""
    decided = decided_comparisons(longer_wins(150, 50).columns)
    features = list(STYLE_FEATURES)
    only = features.index("log words")
    flat = decided.columns.features_NF
    others = [i for i in range(len(features)) if i != only]
    flat[:, others] = 0
    joint = joint_model(decided, AuditSettings())
    value, low, high = joint.interval(only)
    assert value == pytest.approx(math.log(3), abs=0.04)
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(1 / 150 + 1 / 50), abs=0.015)
    assert not joint.coefficient_F[others].any()


def test_joint_errors_know_clusters() -> None:
    """Each pair five times, in its own cluster and five prompts of it: no more is known."""
    groups = [
        pair(i, words(30, i), words(10, i)) if i < 75 else pair(i, words(10, i), words(30, i))
        for i in range(100)
    ]
    alone = decided_comparisons(columns_of(groups).columns)
    often = decided_comparisons(columns_of([group for group in groups for _ in range(5)]).columns)
    feature = list(STYLE_FEATURES).index("log words")
    widths = [
        (high - low)
        for decided in (alone, often)
        for _, low, high in [joint_model(decided, AuditSettings()).interval(feature)]
    ]
    assert widths[1] == pytest.approx(widths[0], rel=0.1)


def test_the_joint_model_takes_whole_clusters_of_many() -> None:
    decided = decided_comparisons(longer_wins(60, 40).columns)
    joint = joint_model(decided, AuditSettings(max_modelled_comparisons=30))
    assert joint.num_comparisons == 30


@pytest.mark.parametrize(
    ("num_won", "num_lost", "severity"),
    [(75, 25, "warn"), (25, 75, "warn"), (59, 41, "note"), (14, 6, "note")],
)
def test_length(num_won: int, num_lost: int, severity: str) -> None:
    """14 of 20 is a lift of 20 points whose interval holds one half."""
    found = named(style_findings(longer_wins(num_won, num_lost), AuditSettings()), "length")
    total = num_won + num_lost
    assert found.statistic == pytest.approx(num_won / total)
    assert found.severity == severity
    assert found.n == total
    assert found.threshold == pytest.approx(0.6 if num_won > num_lost else 0.4)
    (only,) = found.figure["bins"]
    assert (only["name"], only["value"], only["n"]) == ("2.82", found.statistic, total)
    if num_won == 75:
        assert "75.0 %" in found.message
        assert "probe" in found.message
        assert len(found.examples) == 10
        assert found.examples[0].text.startswith("30 words won over 10")


def test_length_of_equal_lengths_and_of_few_is_skipped() -> None:
    equal = columns_of([pair(i, words(9, i), words(9, i + 1)) for i in range(30)])
    (skipped,) = [f for f in style_findings(equal, AuditSettings()) if f.check == "length"]
    assert isinstance(skipped, Skipped)
    few = style_findings(longer_wins(10, 5), AuditSettings())
    assert all(isinstance(each, Skipped) for each in few)


def with_phrase(
    num_won: int, num_lost: int, num_without: int, phrase: str = " I hope this helps!"
) -> Audited:
    """Pairs of equal length in which the winner, the loser or neither has the phrase."""
    groups = []
    for i in range(num_won + num_lost + num_without):
        better, worse = words(30, i) + ".", words(30, i + 1) + "."
        if i < num_won:
            better += phrase
        elif i < num_won + num_lost:
            worse += phrase
        groups.append(pair(i, better, worse))
    return columns_of(groups)


def test_an_ending_that_always_wins_is_an_error() -> None:
    found = phrase_findings(with_phrase(95, 5, 100), AuditSettings())
    ending = named(found, "ending: i hope this helps")
    assert ending.severity == "error"
    assert ending.statistic == 0.95
    assert ending.n == 100
    assert ending.threshold == pytest.approx(0.8)
    assert '"i hope this helps" win 95.0 %' in ending.message
    assert "(50.0 % of all)" in ending.message
    assert named(found, "openings and endings").statistic == 1
    style = named(style_findings(with_phrase(95, 5, 100), AuditSettings()), "style")
    (closing,) = [bar for bar in style.figure["bars"] if bar["name"] == "closing"]
    assert (closing["value"], closing["n"]) == (0.95, 100)


def test_the_same_ending_on_both_sides_is_nothing() -> None:
    found = phrase_findings(with_phrase(50, 50, 100), AuditSettings())
    assert [each.check for each in found] == ["openings and endings"]
    assert named(found, "openings and endings").statistic == 0


def test_an_ending_that_wins_often_is_a_warning() -> None:
    """72 of 100: a legitimate preference may look like that."""
    ending = named(
        phrase_findings(with_phrase(72, 28, 100), AuditSettings()), "ending: i hope this helps"
    )
    assert ending.severity == "warn"
    assert "probe" in ending.message


def test_an_opening_is_found_too() -> None:
    groups = [
        pair(i, ("Great question! " if i < 90 else "") + words(20, i), words(20, i + 1))
        for i in range(150)
    ]
    found = named(phrase_findings(columns_of(groups), AuditSettings()), "opening: great question")
    assert found.severity == "error"


def test_an_ending_of_the_longer_answers_is_no_error() -> None:
    """Longer answers win 90 %, and many of them end alike: the ending has no part of its own."""
    groups = []
    for i in range(300):
        long, short = words(40, i) + ". And so it goes.", words(10, i) + "."
        if i >= 100:
            long = words(44, i) + "."
        groups.append(pair(i, long, short) if i % 10 else pair(i, short, long))
    ending = named(phrase_findings(columns_of(groups), AuditSettings()), "ending: and so it goes")
    assert ending.statistic == 0.9
    assert ending.severity == "warn"
    assert "at equal length 5" in ending.message


def test_rare_and_narrow_phrases_are_no_errors() -> None:
    """19 comparisons are too few to look at; 49 clusters too few for an error."""
    assert len(phrase_findings(with_phrase(19, 0, 100), AuditSettings())) == 1
    narrow = phrase_findings(with_phrase(49, 0, 100), AuditSettings())
    assert named(narrow, "ending: i hope this helps").severity == "warn"
    broad = AuditSettings(style=StyleThresholds(extreme_min_clusters=49))
    again = phrase_findings(with_phrase(49, 0, 100), broad)
    assert named(again, "ending: i hope this helps").severity == "error"


def test_chance_alone_warns_of_nothing() -> None:
    """30 endings, each with 40 comparisons of fair coins: at most one is called, over 8 draws."""
    num_called = 0
    for seed in range(8):
        random = np.random.default_rng(seed)
        groups = []
        for i in range(1200):
            plain = words(20, i) + "."
            marked = plain + f" Go {'abcdefghij'[i % 10]}{i % 3}."
            won = random.random() < 0.5
            groups.append(pair(i, marked, plain) if won else pair(i, plain, marked))
        found = phrase_findings(columns_of(groups), AuditSettings())
        num_called += len([each for each in found if each.check.startswith("ending")])
    assert num_called <= 1


SLOW: dict[str, str] = {
    "list": r"(?m)^\s*([-*•]|\d+[.)])\s",
    "code": r"`",
    "bold": r"\*\*",
    "question": r"\?",
    "ends in a question": r"\?\s*$",
    "parentheses": r"\(",
    "quotation": r"\"",
    "colon": r":",
    "dash": r"—|–| - ",
    "first person": r"\b(I|I'm|I'd|I've|I'll|my)\b",
    "second person": r"(?i)\b(you|your|you're)\b",
    "hedge": r"(?i)\b(may|might|perhaps|probably|usually|often|generally|possibly|likely|roughly"
    r"|depends?|sometimes)\b",
    "absolute": r"(?i)\b(always|every|definitely|certainly|clearly|obviously|absolutely"
    r"|guaranteed?)\b",
    "negation": r"(?i)\b(no|not|never|cannot)\b|n't\b",
    "apology": r"(?i)\b(sorry|apolog\w*|unfortunately|afraid)\b",
    "closing": r"(?i)let me know|hope (this|that) helps|feel free|happy to help|anything else"
    r"|good luck",
    "praise": r"(?i)\b(great|excellent|fantastic|good|wonderful) (question|point|idea|choice)",
    "reason": r"(?i)\b(because|since|so that|which means)\b",
    "contrast": r"(?i)\b(but|however|although|though)\b",
}
"""What the features that are a pattern mean, as one pattern each."""
PIECES = (
    *"may MIGHT depends dependſ often lıkely sometİmes absolutely GUARANTEED you YOUR'RE".split(),
    *"my I i".split(),
    *"not cannoT don't DON'T sorry apolog apologıes great question Good point because".split(),
    *("so that", "which means", "let me know", "hope that helps", "although", "But", "²", "३", "7"),
    *(" ", " ", " ", "\n", "_", "-", "- ", "* ", "1) ", "•", "—", " - ", "?", "!", ".", ","),
    *("\u212a", "**", "`", "(", '"', ":", "\u2028", "é", "naïve", "ſo that", "İt"),
)


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_quick_features_are_what_their_patterns_say(text: str) -> None:
    values = dict(zip(STYLE_FEATURES, style_features(text), strict=True))
    for name, pattern in SLOW.items():
        assert values[name] == float(bool(re.search(pattern, text))), name
    num_words = len(text.split())
    num_sentences = max(1, len(re.findall(r"[.!?](?:\s|$)", text)))
    counts = {
        "log words": math.log1p(num_words),
        "sentences": num_sentences,
        "words per sentence": num_words / num_sentences,
        "letters per word": len(text) / max(1, num_words),
        "lines": text.count("\n"),
        "exclamation marks": text.count("!"),
        "log digits": math.log1p(sum(character.isdigit() for character in text)),
        "commas per word": text.count(",") / max(1, num_words),
    }
    assert {name: values[name] for name in counts} == counts
    assert SLOW.keys() | counts.keys() == values.keys()
    assert [feature(text) for feature in STYLE_FEATURES.values()] == list(values.values())
