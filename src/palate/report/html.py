"""The page of a training run: what `palate evaluate` shows, then how the model came to be."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from palate.model.checkpoint import Sidecar
from palate.report.card import about_part, calibration, interval, shown
from palate.report.evaluation_html import (
    HOW_MEASURED,
    accuracies,
    evaluation_sections,
    ledger_table,
    training_section,
)
from palate.report.page import Section, Table, render_page
from palate.statistics import Estimate, as_json
from palate.text import plural

NOTHING = "Nothing was held out, so nothing was measured."


def html_report(
    sidecar: Sidecar,
    results: Mapping[str, Mapping[str, Estimate]],
    facts: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """The page, self-contained; `history` is the trainer's log, and `evaluation` what was found on
    the measured part, as in evaluation.json."""
    if evaluation is not None:
        verdict, found = evaluation["verdict"], evaluation_sections(evaluation)
    else:
        verdict, found = [] if results else [NOTHING], training_section(history)
    sections = [_run(sidecar, facts), *found, *_parts(sidecar, results), *_log(history)]
    sections += [_rows(facts), _identity(sidecar, facts)]
    return render_page(
        f"palate: {facts['model']}",
        f"Reward model on {facts['model']}",
        verdict,
        sections,
    )


def _run(sidecar: Sidecar, facts: Mapping[str, Any]) -> Section:
    best = f"; the model is {facts['best']}, the best by validation loss" if facts["best"] else ""
    learned = "".join(
        f" Learned beside the rewards: {name} {value}." for name, value in facts["learned"].items()
    )
    return Section(
        title="The run",
        text=f"Trained on {plural(facts['num_groups']['train'], 'prompt')},"
        f" {plural(facts['steps'], 'step')}{best}. Objective {facts['objective']}, method"
        f" {facts['method']}.{learned} {calibration(sidecar.temperature)}",
    )


def _parts(sidecar: Sidecar, results: Mapping[str, Mapping[str, Estimate]]) -> Iterator[Section]:
    """Every metric of every held-out part."""
    for part, metrics in results.items():
        title, note = about_part(part, sidecar.temperature)
        rows = [
            (name, f"{metrics[name].value:.3f}", interval(metrics[name]), metrics[name].n)
            for name in shown(metrics)
        ]
        yield Section(
            title=f"On {title}",
            text=note,
            figures=[accuracies(as_json(metrics))],
            tables=[
                Table(
                    headings=("metric", "value", "95 % interval", "prompts"),
                    rows=rows,
                    numbers=frozenset({1, 2, 3}),
                )
            ],
            note=f"{HOW_MEASURED} The prompt-blind baseline is a logistic model of the answers'"
            " style and words, fitted on the training part.",
        )


def _log(history: Sequence[Mapping[str, Any]]) -> list[Section]:
    columns = ("loss", "eval_loss", "eval_accuracy")
    rows = [
        (entry["step"], *(f"{entry[name]:.4f}" if name in entry else "" for name in columns))
        for entry in history
        if "loss" in entry or "eval_loss" in entry
    ]
    if not rows:
        return []
    table = Table(
        headings=("step", "loss", "validation loss", "validation accuracy"),
        rows=rows,
        numbers=frozenset(range(4)),
    )
    return [Section(title="Training log", folded=[table])]


def _rows(facts: Mapping[str, Any]) -> Section:
    text = f"{facts['num_rows']} read. {facts['left_out']}"
    return Section(title="Rows", text=text, tables=[ledger_table(facts["ledger"])])


def _identity(sidecar: Sidecar, facts: Mapping[str, Any]) -> Section:
    rows = [
        *sidecar.fingerprint.items(),
        *sidecar.versions.items(),
        *facts["data"].items(),
    ]
    table = Table(headings=("of what", "hash or version"), rows=rows)
    return Section(title="Identity", tables=[table])
