"""The page of an evaluation: how good, compared with what, what to fear; then all of it to read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from palate.report.audit_figures import number
from palate.report.page import Quote, Section, Table, render_page
from palate.text import plural

Values = Mapping[str, Any]

ACCURACIES = (
    "accuracy",
    "agreement of annotators",
    "prompt-blind",
    "prompts swapped",
    "longer wins",
    "shorter wins",
    "more markdown",
    "random",
)
"""Bars of the first figure, in this order; those not measured are left out."""
HOW_MEASURED = (
    "Within a prompt comparisons are averaged, over prompts the mean is taken; equal rewards count"
    " half; intervals resample prompt clusters, and one cluster gives none."
)
CURVES = (
    (("loss",), "training loss"),
    (("eval_loss",), "validation loss"),
    (("eval_accuracy",), "validation accuracy"),
    (("eval_battery_won", "battery_won"), "share of the battery's pairs won"),
)
"""Curves of the training, each with the names that it has in the log."""


def evaluation_page(values: Values) -> str:
    """The page of an evaluation's JSON (`palate evaluate --json`), self-contained."""
    return render_page(
        f"palate evaluate: {values['model']}",
        f"Evaluation of {values['model']}",
        values["verdict"],
        [
            *evaluation_sections(values),
            *([_all_metrics(values["metrics"])] if values["metrics"] else []),
            *_rows(values["rows"]["ledger"]),
            _protocol(values),
        ],
    )


def evaluation_sections(values: Values) -> list[Section]:
    """What was found and measured, in the order of the page."""
    return [section for section in _sections(values) if section is not None]


def _sections(values: Values) -> Iterator[Section | None]:
    yield _findings(values)
    if values["metrics"]:
        yield _accuracy(values)
    yield from _versus(values["versus"])
    yield _calibration(values.get("calibration"))
    yield _strata(values)
    yield _probes(values)
    yield _battery(values.get("battery"))
    yield _drift(values.get("drift"))
    yield from _suite(values["suite"])
    yield from training_section(values.get("training") or ())
    yield from _reading(values["reading"])


def _findings(values: Values) -> Section:
    rows = [((f["severity"], f["severity"]), f["check"], f["message"]) for f in values["findings"]]
    return Section(
        title="What was found",
        text="" if rows else "No check found anything to say.",
        tables=[Table(headings=("severity", "check", "finding"), rows=rows)] if rows else (),
        note="error: the reward is broken or its numbers flatter. warn: look before you optimise"
        " against it. note: a fact, or all is well.",
    )


def _accuracy(values: Values) -> Section:
    return Section(
        title="How good, compared with what",
        text=f"{plural(values['num_prompts'], 'prompt')} measured"
        f"{', of the ' + values['part'] + ' part' if values['part'] != 'all' else ''}.",
        figures=[accuracies(values["metrics"])],
        note=HOW_MEASURED,
    )


def accuracies(metrics: Mapping[str, Values]) -> Mapping[str, Any]:
    """The accuracy beside its baselines, as a figure."""
    bars = [{"name": name, **metrics[name]} for name in ACCURACIES if name in metrics]
    return {"kind": "bars", "y": "share of comparisons won", "reference": 0.5, "bars": bars}


def _versus(compared: Sequence[Values]) -> Iterator[Section]:
    for versus in compared:
        bars = [
            {"name": versus[name], **versus[f"{name}_accuracy"]} for name in ("first", "second")
        ]
        rows = [
            ("difference", _interval(versus["difference"])),
            ("right by the first alone", str(versus["num_first_only"])),
            ("right by the second alone", str(versus["num_second_only"])),
            ("with equal rewards", str(versus["num_with_ties"])),
        ]
        yield Section(
            title=f"Against {versus['second']}",
            text=versus["sentence"],
            figures=[{"kind": "bars", "y": "accuracy", "reference": 0.5, "bars": bars}],
            tables=[Table(headings=("comparisons", "value"), rows=rows, numbers=frozenset({1}))],
        )


def _calibration(calibration: Values | None) -> Section | None:
    if calibration is None:
        return None
    points = [
        {"x": b["predicted"], "value": b["observed"], "low": b["low"], "high": b["high"]}
        for b in calibration["bins"]
    ]
    rows = [
        (name, _interval(m), number(m["null_mean"]), number(m["null_high"]))
        for name, m in calibration["measures"].items()
    ]
    headings = ("measure, lower is better", "value", "null: mean", "null: 95th percentile")
    return Section(
        title="Does 0.8 mean 0.8",
        text=f"{calibration['sentence']} Temperature: {calibration['temperature']}.",
        figures=[
            {
                "kind": "curve",
                "x": "predicted probability of the predicted winner",
                "y": "share of comparisons that it won",
                "diagonal": True,
                "points": points,
            }
        ],
        tables=[Table(headings=headings, rows=rows, numbers=frozenset({1, 2, 3}))],
        note="The null is what a calibrated model with these margins would show on as many prompts."
        " An error of calibration below its 95th percentile can't be told from none.",
    )


def _strata(values: Values) -> Section | None:
    figures: list[Mapping[str, Any]] = [
        {
            "kind": "bars",
            "y": f"accuracy by {title}",
            "reference": 0.5,
            "bars": [{"name": name, **metric} for name, metric in parts.items()],
        }
        for title, parts in values["strata"].items()
    ]
    if values["reward_by_length"]:
        figures.append(
            {
                "kind": "curve",
                "x": "words of the answer",
                "y": "reward less its prompt's mean, of each tenth of the answers",
                "reference": 0,
                "points": values["reward_by_length"],
            }
        )
    return Section(title="Where it is right, and where not", figures=figures) if figures else None


def _probes(values: Values) -> Section | None:
    probes, sample = values["probes"], values["probe_sample"]
    if not probes:
        return None
    changes = [p for p in probes if p["expectation"] in ("near 0", "not above 0", "strictly lower")]
    effects = [{"name": p["name"], **p["effect"]} for p in changes]
    flips = [{"name": p["name"], **p["flips"]} for p in changes]
    rows = [
        (
            (p["verdict"], p["verdict"]),
            p["name"],
            p["what"],
            p["expectation"],
            _interval(p["effect"]),
            _interval(p["flips"]),
        )
        for p in probes
    ]
    headings = ("", "probe", "what was done", "should be", "effect", "flips")
    left_out = [f"{name} ({why})" for name, why in sample["skipped"].items()]
    return Section(
        title="What a phrase is worth to it",
        text=f"The same answers, changed where it must not matter or where it must:"
        f" {plural(sample['num_pairs'], 'pair')} of {plural(sample['num_prompts'], 'prompt')},"
        f" {plural(sample['num_texts'], 'text')} scored.",
        figures=[
            {
                "kind": "bars",
                "y": "change of the reward, in standard deviations of the margins",
                "reference": 0,
                "bars": effects,
            },
            {"kind": "bars", "y": "share of pairs that flip", "reference": 0, "bars": flips},
        ],
        tables=[Table(headings=headings, rows=rows, numbers=frozenset({4, 5}))],
        quotes=[
            Quote(
                about=f"{p['name']}: {p['reason']}."
                f" The worst, {example['file']}:{example['line']}:",
                texts=[
                    (f"wins by {number(example['beyond'])}", example["text"]),
                    ("should have won", example["rival"]),
                ],
            )
            for p in probes
            if p["verdict"] == "fail"
            for example in p["examples"][:1]
        ],
        note="Where a probe's effect is a margin (must win) or the share of it that is left (must"
        " shrink), its figure is in the table alone."
        + (f" Not made: {'; '.join(left_out)}." if left_out else ""),
    )


def _battery(battery: Values | None) -> Section | None:
    if battery is None:
        return None
    rows = [
        (
            c["name"],
            f"{c['num_passed']} of {c['num_pairs']}",
            f"{c['num_won']} of {c['num_pairs']}",
            _interval(c["passed"]),
            _interval(c["margin"]),
        )
        for c in battery["categories"]
    ]
    failed = [(f["category"], f["id"], f["prompt"], number(f["margin"])) for f in battery["failed"]]
    return Section(
        title="Pairs that any working reward model gets right",
        text=f"{', '.join(battery['files'])}: {battery['categories'][0]['num_pairs']} pairs about"
        f" which there is no dispute. Margin: {battery['unit']}.",
        tables=[
            Table(
                headings=("category", "passed", "won", "share passed", "margin"),
                rows=rows,
                numbers=frozenset({1, 2, 3, 4}),
            )
        ],
        folded=[
            Table(
                headings=("category", "pair", "prompt", "margin"),
                rows=failed,
                numbers=frozenset({3}),
            )
        ]
        if failed
        else (),
        note="These pairs are easy on purpose: a category that fails says that something is broken"
        " or was never learned, not that the model is a little weaker.",
    )


def _drift(drift: Values | None) -> Section | None:
    if drift is None:
        return None
    rows = [
        (
            (f["verdict"], f["verdict"]),
            f["name"],
            _interval(f),
            number(f["expected"]),
            number(f["warn"]),
            "never" if f["fail"] is None else number(f["fail"]),
            f["message"],
        )
        for f in drift["findings"]
    ]
    skipped = "".join(f" Not made: {name} ({why})." for name, why in drift["skipped"].items())
    left_out = "".join(f" Left out: {why} {count}." for why, count in drift["left_out"].items())
    better = plural(drift["num_reference"], "better answer") if drift["num_reference"] else ""
    headings = ("", "number", "value", "without drift", "warns above", "fails above", "finding")
    return Section(
        title="How far a policy's answers have drifted",
        text=f"{plural(drift['num_answers'], 'answer')} to {plural(drift['num_prompts'], 'prompt')}"
        f" of {drift['file']}, held against the training data"
        f"{f' and {better} of the evaluation data' if better else ''}.",
        tables=[Table(headings=headings, rows=rows, numbers=frozenset({2, 3, 4, 5}))],
        note="A shift warns either way, and a ratio below 1 over its limit too; a verdict needs an"
        " interval that leaves out what chance makes of it. Answers like those of the training may"
        f" be wrong all the same.{skipped}{left_out}",
    )


def _suite(suite: Mapping[str, Values]) -> Iterator[Section]:
    for name, result in suite.items():
        rows = [
            (
                score,
                _interval(found["value"]),
                _interval(found["half_credit"]),
                _interval(found["longer_wins"]),
                str(found["num_items"]),
                str(found["num_ties"]),
            )
            for score, found in result["scores"].items()
        ]
        headings = ("number", "as published", "ties half", "longer wins", "items", "ties")
        yield Section(
            title=f"Benchmark {name}",
            tables=[Table(headings=headings, rows=rows, numbers=frozenset(range(1, 6)))],
            note=" ".join(f"{note}." for note in result["notes"]),
        )


def training_section(log: Sequence[Values]) -> list[Section]:
    """Curves of what was logged twice or more; nothing where nothing was."""
    figures = []
    for names, what in CURVES:
        points = [
            {"x": entry["step"], "value": entry[name]}
            for entry in log
            for name in names
            if name in entry and "step" in entry
        ]
        if len(points) > 1:
            figures.append({"kind": "curve", "x": "step", "y": what, "points": points})
    return [Section(title="Training", figures=figures)] if figures else []


def _reading(reading: Values) -> Iterator[Section]:
    both = zip(reading["highest"], reading["lowest"], strict=False)
    if reading["highest"]:
        yield Section(
            title="To read: the highest and the lowest rewards",
            quotes=[
                Quote(
                    about="",
                    texts=[
                        (f"reward {number(a['reward'])} · {a['prompt']}", a["text"])
                        for a in (high, low)
                    ],
                )
                for high, low in both
            ],
        )
    if reading["mistakes"]:
        yield Section(
            title="To read: the most confident mistakes",
            quotes=[
                Quote(
                    about=f"{m['file']}:{m['line']} · {m['prompt']}",
                    texts=[
                        (
                            f"people preferred this, reward {number(m['better_reward'])}",
                            m["better"],
                        ),
                        (f"the model preferred this, {number(m['worse_reward'])}", m["worse"]),
                    ],
                )
                for m in reading["mistakes"]
            ],
        )


def _all_metrics(metrics: Mapping[str, Values]) -> Section:
    rows = [(name, number(m["value"]), _ends(m), m["n"]) for name, m in metrics.items()]
    headings = ("metric", "value", "95 % interval", "n")
    table = Table(headings=headings, rows=rows, numbers=frozenset({1, 2, 3}))
    return Section(title="All metrics", folded=[table])


def _rows(ledger: Mapping[str, int]) -> list[Section]:
    return [Section(title="Left out or cut", tables=[ledger_table(ledger)])] if ledger else []


def ledger_table(ledger: Mapping[str, int]) -> Table:
    """What was left out or cut, by reason."""
    rows = list(ledger.items()) or [("nothing", 0)]
    return Table(headings=("in the ledger", "entries"), rows=rows, numbers=frozenset({1}))


def _protocol(values: Values) -> Section:
    rows = [
        (f"{name}: {part}" if part else name, str(found))
        for name, value in values["protocol"].items()
        for part, found in (value.items() if isinstance(value, Mapping) else [("", value)])
    ]
    return Section(
        title="Protocol",
        text="What is needed to compute the same numbers again.",
        tables=[Table(headings=("what", "value"), rows=rows)],
    )


def _interval(metric: Values | None) -> str:
    return "-" if metric is None else f"{number(metric['value'])} {_ends(metric)}".strip()


def _ends(metric: Values) -> str:
    low, high = metric.get("low"), metric.get("high")
    if low is None or high is None:
        return ""
    return f"({number(low)} to {number(high)})"
