"""The audit's page says all that it was given, only as text, and draws it in its place."""

import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.pathologies.page import page as pathologies_page
from benchmarks.pathologies.page import strength_at
from palate.audit.findings import Example, Finding
from palate.report.audit_axes import axis
from palate.report.audit_figures import MAX_BARS, draw, number, small_interval
from palate.report.audit_html import NUM_OPEN, audit_page, fix_parts, measured, verdict

EVIL = "<script>alert(1)</script>&\"'<img src=x onerror=y>"
VOID = {"meta", "br", "line", "circle", "polyline", "polygon"}


class Page(HTMLParser):
    """Collects the elements, and the text with the path of open elements above it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[tuple[tuple[str, ...], str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.text = "".join(text for path, text in self.pieces if "style" not in path)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.pieces.append((tuple(self.open), data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def inside(self, tag: str) -> list[str]:
        return [text for path, text in self.pieces if tag in path]


def finding(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "check": "length",
        "severity": "note",
        "statistic": 0.2,
        "what": "share of comparisons",
        "message": "A message.",
    }
    return Finding(**{**fields, **changes}).as_json()


FINDINGS = [
    finding(
        check="prompt overlap",
        severity="error",
        statistic=80.0,
        threshold=0.0,
        n=1607,
        what="prompts that are in the training data",
        message="80 of 1,607 prompts are in the training data.",
        examples=tuple(Example("a.jsonl", 10 + i, f"prompt number {i}") for i in range(10)),
        fix="Split by cluster:\npalate train config.yaml --split.near_duplicates true",
    ),
    finding(
        check="length",
        severity="warn",
        statistic=0.8383,
        low=0.8238,
        high=0.8522,
        threshold=0.6,
        n=8610,
        what="share won by the longer",
        message="The longer answer wins 83.8 % of the comparisons.",
        examples=(Example("b.json", 7, "412 words lost to 35"),),
        fix="Set `objective.nuisance: [log_length]` and train again.",
        figure={
            "kind": "bins",
            "x": "decile of the ratio of lengths",
            "y": "share won",
            "reference": 0.5,
            "bins": [
                {"name": "1", "value": 0.2, "low": 0.1, "high": 0.3, "n": 50},
                {"name": "2", "value": 0.5, "low": 0.4, "high": 0.6, "n": 50},
                {"name": "3", "value": 0.9, "low": 0.8, "high": 0.95, "n": 50},
            ],
        },
    ),
    finding(check="position", statistic=None, message="All is well with the order."),
]


def report(**changes: Any) -> dict[str, Any]:
    return {
        "data": ["data/a.jsonl"],
        "against": ["train.jsonl"],
        "rows": {"read": 1611, "by reason": {"row: empty response": 4}},
        "num_groups": 1607,
        "num_comparisons": 1601,
        "sample": {"groups": 500, "seed": 17},
        "settings": {"length": {"warn": 0.1, "kinds": ["a1", "b2"]}, "tokenizer": None},
        "versions": {"palate": "0.1.0"},
        "findings": FINDINGS,
        "skipped": [{"check": "straight-lining", "reason": "no vote names its annotator"}],
        **changes,
    }


def test_the_page_holds_every_finding_and_every_example() -> None:
    page = Page(audit_page(report()))
    for each in FINDINGS:
        # Once in the table, once in its section.
        assert page.text.count(each["message"]) == 2, each["check"]
        assert each["what"] in page.text
        for example in each["examples"]:
            assert f"{example['file']}:{example['line']}\n{example['text']}\n" in page.text
            assert example["text"] in page.inside("q")
    assert len(page.inside("q")) == 11
    for value in ("0.838 (0.824 to 0.852)", "threshold 0.600", "n = 8,610", "n = 1,607"):
        assert value in page.text


def test_the_page_holds_what_was_skipped_the_ledger_the_sample_and_the_settings() -> None:
    page = Page(audit_page(report()))
    assert "straight-lining" in page.text and "no vote names its annotator" in page.text
    for name, value in (
        ("read", "1,611"),
        ("by reason: row: empty response", "4"),
        ("groups", "500"),
        ("seed", "17"),
        ("length.warn", "0.1"),
        ("length.kinds", "a1, b2"),
        ("tokenizer", "none"),
        ("palate", "0.1.0"),
    ):
        assert re.search(rf"{re.escape(name)}{re.escape(value)}\n", page.text), name
    assert "1607 prompts" in page.text and "held against train.jsonl" in page.text


def test_findings_stand_in_the_order_given_and_the_table_leads_to_their_sections() -> None:
    page = Page(audit_page(report()))
    names = [each["check"] for each in FINDINGS]
    assert [text.strip() for text in page.inside("a")] == names
    links = [attributes["href"] for attributes in page.all("a")]
    assert links == ["#finding-1", "#finding-2", "#finding-3"]
    assert [f"#{attributes['id']}" for attributes in page.all("section")] == links
    chips = [a["class"] for a in page.all("span") if a["class"] != "line"]
    assert chips == ["chip error", "chip warn", "chip note"] * 2


def test_examples_of_the_gravest_findings_are_open_and_the_others_closed() -> None:
    examples = (Example("a", 1, "text"),)
    graves = [finding(severity="warn", examples=examples) for _ in range(NUM_OPEN + 1)]
    page = Page(audit_page(report(findings=[*graves, finding(examples=examples)])))
    is_open = ["open" in attributes for attributes in page.all("details")]
    assert is_open == [True] * NUM_OPEN + [False, False, False]


def test_the_table_holds_the_first_sentence_and_the_section_the_whole_message() -> None:
    message = "It wins 2.5 % of 3.1 million. Labels can't tell."
    page = Page(audit_page(report(findings=[finding(message=message)])))
    assert page.text.count("It wins 2.5 % of 3.1 million.") == 2
    assert page.text.count("Labels can't tell.") == 1


def test_nothing_in_the_data_becomes_an_element() -> None:
    bars = [{"name": EVIL, "value": 0.5, "low": 0.4, "high": 0.6, "n": 3}]
    evil = finding(
        check=EVIL,
        message=EVIL,
        what=EVIL,
        examples=(Example(EVIL, 3, EVIL),),
        fix=f"{EVIL}\n`{EVIL}`\nUse `{EVIL}` now",
        figure={"kind": "bars", "bars": bars, "y": EVIL, "x": EVIL},
    )
    fields: dict[str, Any] = {
        "data": [EVIL],
        "against": [EVIL],
        "findings": [evil],
        "skipped": [{"check": EVIL, "reason": EVIL}],
        **{key: {EVIL: EVIL} for key in ("rows", "sample", "settings", "versions")},
    }
    page = Page(audit_page(report(**fields)))
    assert not page.all("script") and not page.all("img")
    # title, heading, against; check, message, what twice each and once; place and text of the
    # example; fix three times; the bar's whole name (it is drawn cut), caption twice; skipped two;
    # four tables with name and value.
    assert page.text.count(EVIL) == 3 + 2 + 2 + 1 + 2 + 3 + 1 + 2 + 2 + 8


def test_nothing_is_loaded_from_elsewhere() -> None:
    html = audit_page(report())
    page = Page(html)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "image", "use"}
    assert "http" not in html and "url(" not in html and "@import" not in html
    assert all("src" not in attributes for _, attributes in page.elements)
    assert not any(name.startswith("on") for _, a in page.elements for name in a)


def test_an_audit_without_findings_is_a_page() -> None:
    page = Page(audit_page(report(findings=[], skipped=[], against=[], rows={})))
    assert "No error and no warning; 0 notes." in page.text
    assert "No check found anything to say." in page.text
    assert "None: every check was made." in page.text
    assert "held against" not in page.text


@pytest.mark.parametrize(
    ("severities", "begin"),
    [
        (["error", "warn", "warn", "note"], "1 error, 2 warnings and 1 note: mend"),
        (["error", "error"], "2 errors, 0 warnings and 0 notes: mend"),
        (["warn", "note", "note"], "No error, 1 warning and 2 notes: look"),
        (["note"], "No error and no warning; 1 note."),
    ],
)
def test_the_verdict_counts_by_severity(severities: list[str], begin: str) -> None:
    assert verdict([finding(severity=severity) for severity in severities]).startswith(begin)


@pytest.mark.parametrize(
    ("value", "low", "high", "words"),
    [
        (0.8383, 0.8238, 0.8522, "0.838 (0.824 to 0.852)"),
        (80.0, None, None, "80"),
        (1.0, None, None, "1"),
        (1.0, 0.97, 1.0, "1.000 (0.970 to 1.000)"),
        (0.125, None, None, "0.125"),
        (12345, None, None, "12,345"),
        (0.0001234, None, None, "1.2e-04"),
        (-0.02, -0.031, 0.0, "-0.020 (-0.031 to 0)"),
        (None, None, None, "-"),
        (0.5, -math.inf, math.inf, "0.500"),
    ],
)
def test_statistics_in_figures(value: Any, low: Any, high: Any, words: str) -> None:
    assert measured({"statistic": value, "low": low, "high": high}) == words


def test_commands_and_settings_of_a_fix_are_code_and_prose_is_not() -> None:
    fix = "Split by cluster:\npalate train a.yaml\n--split.near true\nobjective.nuisance: [length]"
    assert fix_parts(fix) == [
        (False, "Split by cluster:"),
        (True, "palate train a.yaml"),
        (True, "--split.near true"),
        (True, "objective.nuisance: [length]"),
    ]
    assert fix_parts('read: {votes: {annotator_weights: {"a 1": 0.5}}}')[0][0] is True
    [(is_code, prose)] = fix_parts("Set `a.b: 1` & see, where 1 < 2.")
    assert not is_code
    assert prose == "Set <code>a.b: 1</code> &amp; see, where 1 &lt; 2."
    assert fix_parts("`a.b: 1`") == [(True, "a.b: 1")]
    [(_, prose)] = fix_parts("Set read.merge_prompts true, with --fail_on error; see docs/data.md.")
    assert prose == (
        "Set <code>read.merge_prompts</code> true, with <code>--fail_on</code> error;"
        " see docs/data.md."
    )
    assert fix_parts("Leave these rows out: they say nothing.")[0][0] is False


def test_the_interval_stands_against_the_threshold() -> None:
    """0 to 0.4 with 6 % room is 0 to 0.424, over the units 6 to 154, so 349.06 units for 1:
    0.2 stands at 6 + 69.81, 0.1 at 6 + 34.91, 0.3 at 6 + 104.72, the threshold 0.4 at 6 + 139.62.
    """
    svg = Page(str(small_interval(finding(low=0.1, high=0.3, threshold=0.4))))
    assert [a["cx"] for a in svg.all("circle")] == ["75.81"]
    lines = {a["class"]: (a["x1"], a["x2"]) for a in svg.all("line")}
    assert lines["threshold"] == ("145.62", "145.62")
    assert lines["whisker"] == ("40.91", "110.72")


@pytest.mark.parametrize(
    "changes",
    [
        {"statistic": None},
        {"statistic": 80.0, "threshold": 0.0},
        {"statistic": math.nan, "low": 0.1, "high": 0.3},
        {"statistic": 0.3},
    ],
)
def test_a_statistic_with_nothing_to_hold_against_has_no_plot(changes: dict[str, Any]) -> None:
    assert small_interval(finding(**changes)) == ""


def test_bins_rise_with_their_values_and_the_reference_lies_at_its_value() -> None:
    svg = Page(str(draw(FINDINGS[1])))
    circles = [(float(a["cx"] or 0), float(a["cy"] or 0)) for a in svg.all("circle")]
    assert [x for x, _ in circles] == sorted(x for x, _ in circles)
    assert [y for _, y in circles] == sorted((y for _, y in circles), reverse=True)
    [reference] = [a for a in svg.all("line") if a["class"] == "reference"]
    assert reference["y1"] == svg.all("circle")[1]["cy"]
    whiskers = [a for a in svg.all("line") if a["class"] == "whisker"]
    assert len(whiskers) == 3
    assert "share won, by decile of the ratio of lengths" in svg.text
    assert [name for name in ("1", "2", "3") if name in svg.inside("text")] == ["1", "2", "3"]


def test_bars_name_all_values_and_say_how_many_are_not_drawn() -> None:
    name = "organisation/model-with-a-name-that-goes-on-and-on-instruct"
    bars = [{"name": f"{name}-{i}", "value": i / 100, "n": 1000 + i} for i in range(MAX_BARS + 3)]
    svg = Page(str(draw(finding(figure={"kind": "bars", "y": "wins", "bars": bars}))))
    assert len(svg.all("circle")) == MAX_BARS
    assert "(3 more are not drawn)" in svg.text
    assert f"{name}-7" in svg.inside("title")
    assert "0.070 (n = 1,007)" in svg.text
    assert not [a for a in svg.all("line") if a["class"] == "whisker"]


def test_a_curve_goes_from_left_to_right_with_its_band() -> None:
    points = [
        {"x": x, "value": x / 10, "low": x / 10 - 0.05, "high": x / 10 + 0.05} for x in (4, 1, 3)
    ]
    svg = Page(
        str(draw(finding(figure={"kind": "curve", "x": "n", "y": "power", "points": points})))
    )
    xs = [float(a["cx"] or 0) for a in svg.all("circle")]
    assert xs == sorted(xs) and len(set(xs)) == 3
    [line], [band] = svg.all("polyline"), svg.all("polygon")
    assert len((line["points"] or "").split()) == 3 and len((band["points"] or "").split()) == 6


def test_the_interval_figure_draws_the_statistic() -> None:
    drawn = finding(low=0.1, high=0.3, threshold=0.4, n=50, figure={"kind": "interval"})
    svg = Page(str(draw(drawn)))
    assert "0.200 (n = 50)" in svg.text and svg.inside("title") == [drawn["check"]]
    [dot] = svg.all("circle")
    [threshold] = [a for a in svg.all("line") if a["class"] == "threshold"]
    assert float(dot["cx"] or 0) < float(threshold["x1"] or 0)


@pytest.mark.parametrize(
    ("figure", "names", "values"),
    [
        (
            {
                "kind": "rates",
                "annotators": ["ann", "bob"],
                "rates": [0.25, 0.75],
                "intervals": [(0.125, 0.375), (0.5, 0.875)],
            },
            ["ann", "bob"],
            ["0.250", "0.750"],
        ),
        (
            {"kind": "shares", "annotators": ["ann", "bob"], "shares": [0.625, 0.375]},
            ["ann", "bob"],
            ["0.625", "0.375"],
        ),
        (
            {
                "kind": "agreement",
                "raw": 0.875,
                "chance": 0.5,
                "alpha": None,
                "pairs": [{"first": "ann", "second": "bob", "kappa": 0.75, "n": 40}],
            },
            ["raw agreement", "agreement by chance", "kappa, ann and bob"],
            ["0.875", "0.500", "0.750 (n = 40)"],
        ),
    ],
)
def test_figures_of_annotators_are_bars(
    figure: dict[str, Any], names: list[str], values: list[str]
) -> None:
    svg = Page(str(draw(finding(figure=figure))))
    assert svg.inside("title") == names
    drawn = [text.strip() for text in svg.inside("text")]
    assert [text for text in drawn if text in values] == values
    assert len(svg.all("circle")) == len(names)
    num_whiskers = len([a for a in svg.all("line") if a["class"] == "whisker"])
    assert num_whiskers == len(figure.get("intervals", ()))


def test_a_probe_has_each_of_its_two_measures_against_its_own_limit() -> None:
    """0 to 0.5 with 6 % room is 0 to 0.53 over the units 16 to 384: 0.25 stands at 16 + 173.58."""
    figure = {
        "kind": "probe",
        "effect": [0.5, 0.125, 0.375],
        "flips": [0.125, 0.0625, 0.25],
        "limits": [0.25, 0.0625],
    }
    svg = Page(str(draw(finding(figure=figure))))
    assert len(svg.all("figure")) == 2
    assert svg.inside("title") == ["effect", "flips"]
    thresholds = [a["x1"] for a in svg.all("line") if a["class"] == "threshold"]
    assert thresholds[0] == "189.58" and len(thresholds) == 2
    assert "share of pairs that flip" in svg.text


@pytest.mark.parametrize(
    "figure",
    [
        {},
        {"kind": "pie", "bars": [{"name": "a", "value": 1}]},
        {"kind": "bars"},
        {"kind": "bins", "bins": []},
        {"kind": "curve", "points": [{"x": None, "value": 0.5}]},
        {"kind": "bars", "bars": [{"name": "a", "value": math.nan}, {"name": "b", "value": None}]},
    ],
)
def test_a_figure_without_anything_to_draw_is_none(figure: dict[str, Any]) -> None:
    assert draw(finding(figure=figure)) == ""


def test_values_that_are_missing_leave_the_others_where_they_are() -> None:
    known = [{"name": "a", "value": 0.5, "low": None, "high": math.inf}]
    gap = [*known, {"name": "b", "value": None, "low": 0.1, "high": 0.9}]
    drawn = [str(draw(finding(figure={"kind": "bars", "bars": bars}))) for bars in (known, gap)]
    assert drawn[0] == drawn[1] != ""


@given(
    st.lists(st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) > 1e-6), min_size=1)
)
def test_axes_hold_their_values_and_have_round_ticks(values: list[float]) -> None:
    place = axis(values, 10, 210)
    assert place.low <= min(values) and max(values) <= place.high
    positions = [position for position, _ in place.ticks]
    assert 2 <= len(positions) <= 6
    assert all(10 <= position <= 210 for position in positions)
    steps = [b - a for a, b in pairwise(positions)]
    assert max(steps) - min(steps) < 0.03
    assert len({text for _, text in place.ticks}) == len(positions)


def test_numbers_as_people_read_them() -> None:
    shown = [number(value) for value in (0, 0.0, 1, 1.0, 3.0, 1234567, 123.456, True, "x")]
    assert shown == ["0", "0", "1", "1.000", "3", "1,234,567", "123.5", "-", "-"]


def power(*alarms: tuple[float, int]) -> list[dict[str, Any]]:
    return [{"strength": strength, "alarms": count, "of": 200} for strength, count in alarms]


def test_eighty_percent_power_lies_on_the_line_between_measured_points() -> None:
    """From 120 of 200 at 0.5 to 200 at 1.0 the share rises from 0.6 to 1: 0.8 is half way."""
    assert strength_at(power((1.0, 200), (0.25, 30), (0.5, 120))) == pytest.approx(0.75)
    assert strength_at(power((0.5, 10), (1.0, 159))) is None
    assert strength_at(power((0.5, 190), (1.0, 200))) == 0.5


def test_the_page_of_pathologies_says_which_goals_were_missed() -> None:
    """Wilson's interval of 200 of 200 begins at 200 / (200 + 1.96²) = 0.981."""
    value = {"value": 0.5, "low": 0.4, "high": 0.6}
    result = {
        "settings": {"seeds": 200, "num_pairs": 6000, "versions": {"palate": "0.1.0"}},
        "rows": [
            {
                "name": "length",
                "plant": "a|b",
                "detector": "audit",
                "detected": {"alarms": 200, "of": 200},
                "clean": {"alarms": 0, "of": 200},
                "legitimate": None,
                "fix": "nuisance",
                "effect": {"what": "flips", "before": value, "after": {**value, "value": 0.125}},
                "accuracy": {"before": value, "after": value},
                "goals": {"detected": True, "quiet": False},
                "note": "Too loud.",
            }
        ],
        "power": {"length": power((0.5, 120), (1.0, 200)), "hedge": power((1.0, 3))},
        "transformers": [{"bias": "length", "planted_d": value}, {"bias": "hedge", "seeds": 5}],
    }
    text = pathologies_page(json.loads(json.dumps(result)), "curves.svg")
    [row] = [line for line in text.splitlines() if line.startswith("| **length**")]
    assert "200 of 200 (0.981 to 1.000)" in row and "a\\|b" in row
    assert "flips: 0.500 (0.400 to 0.600) → 0.125 (0.400 to 0.600)" in row
    assert "**no**: quiet" in row
    assert "0 of 1 meet all their goals. Not: length." in text
    assert "| length | 0.75 | 0.5: 120 of 200, 1: 200 of 200 |" in text
    assert "| hedge | not up to 1 | 1: 3 of 200 |" in text
    assert "](curves.svg)" in text and "Too loud." in text
    assert "| hedge | - | 5 |" in text
