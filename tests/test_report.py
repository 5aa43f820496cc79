"""The report and the model card say what they were given, and only as text."""

import ast
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import palate
from palate.model.checkpoint import Sidecar
from palate.report.card import SHOWN, metric_table, model_card
from palate.report.html import html_report
from palate.statistics import Estimate

EVIL = "<script>alert(1)</script>&\"'<img src=x onerror=y>"
METRICS = {
    "accuracy": Estimate(0.7131, 0.6523, 0.7749, 211),
    "prompt-blind": Estimate(0.5417, 0.4801, 0.6032, 211),
    "longer wins": Estimate(0.4829, 0.4215, 0.5442, 211),
    "shorter wins": Estimate(0.5171, 0.4558, 0.5785, 211),
    "random": Estimate(0.5, 0.5, 0.5, 211),
    "accuracy minus prompt-blind": Estimate(0.1714, 0.0905, 0.2523, 211),
    "accuracy, mean of longer and shorter": Estimate(0.7011, 0.6318, 0.7704, 198),
    "loss": Estimate(0.5688, 0.5201, 0.6177, 217),
    "margin": Estimate(0.8412, 0.6633, 1.0191, 217),
    "spread": Estimate(0.9523, 0.9012, 1.0034, 217),
}
HISTORY = [
    {"step": 10, "loss": 0.6811, "learning_rate": 1e-4},
    {"step": 12, "eval_loss": 0.6502, "eval_accuracy": 0.6123},
    {"step": 24, "train_runtime": 3.0},
]


def sidecar(**changes: Any) -> Sidecar:
    fields: dict[str, Any] = {
        "pooling": "last",
        "head_name": "score",
        "layout": "tree",
        "dtype": "float32",
        "end_of_turn": "<|im_end|>",
        "template_arguments": {},
        "lengths": {"max_prompt_tokens": 300, "max_response_tokens": 200, "overlong": "leave_out"},
        "fingerprint": {"template": "f1e2d3", "weights": "a9b8c7"},
        "temperature": {"value": 1.3579, "part": "validation", "num_prompts": 97},
        "versions": {"torch": "2.13.0"},
    }
    return Sidecar(**{**fields, **changes})


def facts(**changes: Any) -> dict[str, Any]:
    return {
        "model": "owner/body",
        "data": {"votes.jsonl": "0011223344"},
        "num_groups": {"train": 1234, "validation": 97, "test": 217},
        "measured_on": "test",
        "ledger": {"row: malformed JSON": 13, "token: prompt cut": 8, "row: empty response": 4},
        "num_rows": 1565,
        "left_out": "31 of 2000 comparisons lost in rendering; the longer answer won 90%",
        "steps": 78,
        "best": "checkpoint-39",
        "objective": "davidson",
        "method": "lora",
        "learned": {"tie width": 0.81},
        "body": "cohere",
        "head": "linear",
        "has_class": True,
        **changes,
    }


class Page(HTMLParser):
    """Collects the elements, and the text outside of the style sheet."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def numbers(attributes: dict[str, str | None], *names: str) -> list[float]:
    return [float(attributes[name] or "nan") for name in names]


def test_the_report_holds_each_number_with_its_interval_and_n() -> None:
    page = Page(html_report(sidecar(), {"test": METRICS}, facts(), HISTORY))
    for name, m in METRICS.items():
        assert name in page.text
        row = page.text.split(name + "\n" if name == "accuracy" else name, 1)[1]
        assert re.search(rf"{m.value:.3f}\s+{m.low:.3f} to {m.high:.3f}\s*{m.n}\b", row), name
    for value in ("1234 prompts", "78 steps", "checkpoint-39", "1.358", "1565 read", "won 90%"):
        assert value in page.text
    for reason, count in (("row: malformed JSON", 13), ("token: prompt cut", 8)):
        assert re.search(rf"{reason}\s*{count}\b", page.text)
    for value in ("f1e2d3", "a9b8c7", "votes.jsonl", "0011223344", "2.13.0"):
        assert value in page.text


def test_the_training_table_has_a_row_for_each_logged_loss_and_no_other() -> None:
    """Of three entries one logs a loss, one an evaluation, one neither."""
    page = Page(html_report(sidecar(), {}, facts(), HISTORY))
    training = page.text.split("validation accuracy", 1)[1].split("Rows")[0]
    assert training.split() == ["10", "0.6811", "12", "0.6502", "0.6123"]


def test_the_page_draws_what_was_logged_twice() -> None:
    """One point makes no curve; the battery has another name where nothing was held out."""
    history = [
        *HISTORY,
        {"step": 20, "loss": 0.6, "battery_won": 0.7},
        {"step": 24, "eval_loss": 0.6, "eval_accuracy": 0.7},
        {"step": 30, "battery_won": 0.8},
    ]
    drawn = [s["aria-label"] for s in Page(html_report(sidecar(), {}, facts(), history)).all("svg")]
    for what in ("training loss", "validation loss", "validation accuracy", "battery"):
        assert sum(what in str(label) for label in drawn) == 1, what
    once = Page(html_report(sidecar(), {}, facts(), HISTORY))
    assert not once.all("svg")


def test_the_chart_puts_values_where_the_scale_says() -> None:
    """Coordinates are linear in the values: dots between the ends of their whiskers."""
    page = Page(html_report(sidecar(), {"test": METRICS}, facts(), HISTORY))
    centres = [numbers(dot, "cx")[0] for dot in page.all("circle") if dot["class"] == "dot"]
    whiskers = [numbers(w, "x1", "x2") for w in page.all("line") if w["class"] == "whisker"]
    drawn = ("accuracy", "prompt-blind", "longer wins", "shorter wins", "random")
    values = [METRICS[name].value for name in drawn]
    scale = (centres[0] - centres[1]) / (values[0] - values[1])
    start = centres[0] - scale * values[0]
    assert centres == pytest.approx([start + scale * value for value in values], abs=0.1)
    ends = [[start + scale * end for end in (METRICS[n].low, METRICS[n].high)] for n in drawn]
    assert whiskers == [pytest.approx(pair, abs=0.1) for pair in ends]
    box = (page.all("svg")[0]["viewbox"] or "").split()
    assert all(numbers(circle, "cy")[0] < float(box[3]) for circle in page.all("circle"))


def test_without_an_interval_the_report_says_so_and_draws_none() -> None:
    metrics = {name: Estimate(0.5, -math.inf, math.inf, 1) for name in METRICS}
    html = html_report(sidecar(), {"test": metrics}, facts(), HISTORY)
    page = Page(html)
    assert "inf" not in page.text
    assert len(re.findall(r"0\.500\s+none\s*1\b", page.text)) == len(METRICS)
    for tag in ("line", "circle", "text"):
        for element in page.all(tag):
            coordinates = [v for k, v in element.items() if k in ("x", "x1", "x2", "cx", "y", "cy")]
            assert all(math.isfinite(float(value or "nan")) for value in coordinates)
    assert not [line for line in page.all("line") if line["class"] == "whisker"]
    assert "| accuracy | 0.500 | none | 1 |" in metric_table(metrics)


def test_names_that_others_chose_stay_text() -> None:
    """Data files, models, validation sets and ledger reasons may hold markup."""
    told = facts(
        model=EVIL, data={EVIL: EVIL}, ledger={f"row: {EVIL}": 1}, left_out=EVIL, measured_on=EVIL
    )
    clean = Page(html_report(sidecar(), {"test": METRICS}, facts(), HISTORY))
    html = html_report(sidecar(fingerprint={"template": EVIL}), {EVIL: METRICS}, told, HISTORY)
    page = Page(html)
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in clean.elements}
    assert page.text.count(EVIL) >= 6
    assert "<script" not in html
    assert "<img" not in html
    card = model_card(sidecar(), {EVIL: METRICS}, {**told, "left_out": ""})
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == EVIL
    assert "<script" not in body
    assert "<img" not in body
    assert "A reward model on &lt;script&gt;" in body
    assert "On the further set &lt;script&gt;" in body


def test_the_report_needs_no_network() -> None:
    html = html_report(sidecar(), {"test": METRICS}, facts(), HISTORY)
    assert not re.search(r"\b(src|href|srcset)=|url\(|@import|https?:|//", html)


def test_a_run_without_held_out_data_says_that_nothing_was_measured() -> None:
    told = facts(measured_on="", num_groups={"train": 5}, ledger={}, left_out="", best=None)
    nothing = sidecar(temperature=None)
    assert "nothing was measured" in Page(html_report(nothing, {}, told, [])).text
    card = model_card(nothing, {}, told)
    assert "Nothing was held out, so nothing was measured." in card
    assert "No temperature was fitted: margins are not calibrated." in card


def test_the_card_holds_the_numbers_of_the_measured_part() -> None:
    other = {name: Estimate(0.9999, 0.9, 1.0, 3) for name in METRICS}
    card = model_card(sidecar(), {"validation": other, "test": METRICS}, facts())
    for name, m in METRICS.items():
        assert f"| {name} | {m.value:.3f} | {m.low:.3f} to {m.high:.3f} | {m.n} |" in card
    assert "0.999" not in card
    for told in (
        "1234 prompts",
        "78 steps",
        "1565 rows were read; 17 stand in the ledger",
        "1.358",
    ):
        assert told in card
    assert "validation part (97 prompts)" in card
    assert "answers over\n200 tokens: leave_out" in card


@pytest.mark.parametrize(
    ("pooling", "told", "reason"),
    [
        ("last", {"has_class": False}, "transformers has no sequence-classification class for coh"),
        ("mean", {}, "class of cohere has no place for its linear head on pooling `mean`."),
        (
            "last",
            {"head": "mlp"},
            "class of cohere has no place for its mlp head on pooling `last`",
        ),
    ],
)
def test_the_card_says_why_only_palate_loads_a_model(
    pooling: str, told: dict[str, Any], reason: str
) -> None:
    ours = sidecar(pooling=pooling, head_name="reward_head", plain=False)
    card = model_card(ours, {"test": METRICS}, facts(**told))
    assert reason in card
    assert ("has no place for" in card) == told.get("has_class", True)
    assert "The head is in `reward_head.safetensors`." in card


@pytest.mark.parametrize("temperature", [math.exp(5), math.exp(-5)])
def test_a_temperature_at_the_bound_of_its_fit_is_no_calibration(temperature: float) -> None:
    fitted = {"value": temperature, "at_bound": True, "part": "validation", "num_prompts": 3}
    bounded = sidecar(temperature=fitted)
    for text in (
        model_card(bounded, {"test": METRICS}, facts()),
        Page(html_report(bounded, {"test": METRICS}, facts(), HISTORY)).text,
    ):
        told = " ".join(text.split())
        assert f"The temperature {temperature:.3f} is a bound of its fit" in told
        assert "on 3 prompts of the validation part" in told
        assert "margins are not calibrated" in told
    assert "not calibrated" not in model_card(sidecar(), {"test": METRICS}, facts())


@pytest.mark.parametrize("part", ["test", "validation", "mine"])
def test_the_card_says_what_kind_of_part_it_was_measured_on(part: str) -> None:
    """The part that chose the checkpoint flatters the model; a further set is no part of the split,
    so nothing is known of its clusters."""
    card = model_card(sidecar(), {part: METRICS}, facts(measured_on=part))
    quality = card.split("## How good it is")[1].split("|")[0]
    named = f"On the {part} part." if part != "mine" else "On the further set mine."
    assert named in quality
    assert ("in no training cluster" in quality) == (part in ("test", "validation"))
    assert ("flatters the model" in quality) == (part == "validation")


def test_metrics_stand_in_the_order_in_which_people_read_them() -> None:
    names = [line.split(" | ")[0][2:] for line in metric_table(METRICS).splitlines()[2:]]
    assert names == [name for name in SHOWN if name in METRICS]
    assert len(names) == len(METRICS)
    reversed_order = dict(reversed(METRICS.items()))
    assert metric_table(reversed_order) == metric_table(METRICS)
    assert metric_table({}).count("\n") == 1


@pytest.mark.parametrize("model", ["owner/body", "C:\\models\\a: b", "# x", 'say "hi"', "a\nb: c"])
def test_the_front_matter_of_the_card_is_yaml_whatever_the_model_is_called(model: str) -> None:
    card = model_card(sidecar(), {"test": METRICS}, facts(model=model))
    assert card.startswith("---\n")
    front = yaml.safe_load(card.split("\n---\n")[0])
    assert front["base_model"] == model
    assert front["pipeline_tag"] == "text-classification"


def run_block(code: str) -> Any:
    """Execute a block and return the value of its last expression."""
    tree = ast.parse(code)
    last = tree.body.pop()
    assert isinstance(last, ast.Expr)
    names: dict[str, Any] = {}
    exec(compile(tree, "card", "exec"), names)
    with torch.no_grad():
        return eval(compile(ast.Expression(last.value), "card", "eval"), names)


def test_both_ways_of_use_on_the_card_run_and_give_one_reward(trained_run: Path) -> None:
    card = (trained_run / "model" / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    with_palate, without = (
        float(run_block(block.replace("this directory", str(trained_run / "model"))))
        for block in blocks
        if "trl" not in block  # tests/test_card_snippets.py has that one
    )
    assert with_palate == pytest.approx(without, abs=1e-5)
    scorer = palate.load(trained_run)
    assert with_palate == pytest.approx(scorer.score("How do birds fly?", "They flap."), abs=1e-5)


def test_the_report_of_a_run_holds_its_metrics(trained_run: Path) -> None:
    page = Page((trained_run / "report.html").read_text(encoding="utf-8"))
    stored = json.loads((trained_run / "metrics.json").read_text())["metrics"]
    assert set(stored) == {"validation", "test"}
    for part, metrics in stored.items():
        text = page.text.split(f"On the {part} part", 1)[1]
        for name in ("longer wins", "loss", "margin"):
            m = metrics[name]
            pattern = rf"{name}\s*{m['value']:.3f}\s+{m['low']:.3f} to {m['high']:.3f}\s*{m['n']}"
            assert re.search(pattern, text), name


def test_writing_reports_takes_no_model() -> None:
    """The report computes nothing: it must not even import the parts that do."""
    code = (
        "import sys, palate.report.html, palate.report.card\n"
        "print([m for m in sys.modules if m.startswith(('palate.training', 'palate.scoring',"
        " 'palate.evaluation', 'palate.pipeline'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
