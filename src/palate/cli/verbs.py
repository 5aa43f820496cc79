"""One function a verb: parse, call the pipeline, say what came of it."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from palate.cli.parsing import UsageError, parse, parser_for, unknown_key
from palate.cli.printed import Printed
from palate.model.support import Trust
from palate.pipeline.config import TrainConfig
from palate.pipeline.quickstart import QuickstartConfig, quickstart
from palate.pipeline.score_file import ScoreConfig, score_file
from palate.pipeline.train import TrainResult, train
from palate.report.card import shown
from palate.scoring.scorer import Scorer, load
from palate.statistics import Estimate, as_json
from palate.text import plural


def _metrics_text(metrics: Mapping[str, Estimate]) -> str:
    return "\n".join(f"  {name:<38} {metrics[name]}" for name in shown(metrics))


def run_train(arguments: list[str]) -> Printed:
    parser = parser_for("train", "Train a reward model from preferences.", TrainConfig)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        default=argparse.SUPPRESS,
        help="say what would be trained, and stop",
    )
    config, flags = parse(parser, TrainConfig, arguments)
    dry_run = flags.get("dry_run", False)
    result = train(config, dry_run=dry_run)
    if dry_run:
        return Printed(result.summary, {"dry_run": result.summary})
    return _trained(result)


def _trained(result: TrainResult) -> Printed:
    heading = (
        f"measured on the {result.measured_on} part:" if result.metrics else "nothing held out"
    )
    text = (
        f"{heading}\n{_metrics_text(result.metrics)}\n"
        f"model   {result.directory}/model\nreport  {result.directory}/report.html"
    )
    values = {
        "directory": str(result.directory),
        "measured_on": result.measured_on,
        "metrics": as_json(result.metrics),
    }
    return Printed(text, values)


def run_quickstart(arguments: list[str]) -> Printed:
    parser = parser_for("quickstart", "The main job on the starter set.", QuickstartConfig)
    config, _ = parse(parser, QuickstartConfig, arguments)
    lines: list[str] = []
    result = quickstart(config, lines.append)
    return Printed("\n".join(lines), _trained(result).json)


def run_score(arguments: list[str]) -> Printed:
    parser = parser_for("score", "Score a file of answers.", ScoreConfig)
    config, _ = parse(parser, ScoreConfig, arguments)
    result = score_file(config)
    resumed = f", {result.num_resumed} of them in an earlier run" if result.num_resumed else ""
    text = (
        f"{plural(result.num_rows, 'row')} written to {result.output}{resumed};"
        f" {result.num_errors} with an error"
        + (f", {result.num_cut} with a prompt or answer cut to the limit" if result.num_cut else "")
    )
    return Printed(text, asdict(result))


def _text_parser(verb: str, description: str, support: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"palate {verb}", description=description, allow_abbrev=False
    )
    parser.add_argument("model", help="a palate run, or any scalar reward model")
    parser.add_argument("prompt", help="the user's message")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument(
        "--support",
        action="store_true",
        help=f"{support} (docs/trust.md); for models with stored trust",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument(
        "--allow-changed",
        default="",
        help="parts of the checkpoint that may differ from the training, comma-separated",
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that the checkpoint brings along",
    )
    return parser


def _parse_texts(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    flags, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = ["json", "support", "device", "allow-changed", "trust-remote-code"]
        raise UsageError(unknown_key(unknown[0].split("=")[0].lstrip("-"), known))
    return flags


def _load_for(flags: argparse.Namespace) -> Scorer:
    allowed = [part for part in flags.allow_changed.split(",") if part]
    return load(
        flags.model,
        device=flags.device,
        allow_changed=allowed,
        trust_remote_code=flags.trust_remote_code,
    )


def run_rank(arguments: list[str]) -> Printed:
    parser = _text_parser(
        "rank",
        "Rank answers to one prompt, best first.",
        "also how far each answer lies from the training data",
    )
    parser.add_argument("responses", nargs="+", help="two or more answers")
    flags = _parse_texts(parser, arguments)
    if len(flags.responses) < 2:
        raise UsageError("one answer can't be ranked; give two or more")
    scorer = _load_for(flags)
    trust = scorer.fitted_trust() if flags.support else None
    lines, values = [], []
    for place, ranked in enumerate(scorer.rank(flags.prompt, flags.responses), start=1):
        line, value = f"{place}. reward {ranked.reward:+.4f}", asdict(ranked)
        if trust is not None and ranked.support_distance is not None:
            line += f"  {_distance_text(trust, ranked.support_distance)}"
            value["support_beyond"] = trust.beyond(ranked.support_distance)
        lines.append(f"{line}  {flags.responses[ranked.index]}")
        values.append(value)
    return Printed("\n".join(lines), {"ranking": values})


def _distance_text(trust: Trust, distance: float) -> str:
    beyond = trust.beyond(distance)
    place = f"farther than {beyond:.0%}" if beyond else "nearer than half"
    return f"distance {distance:.2f} ({place} of {trust.facts.reference})"


def run_compare(arguments: list[str]) -> Printed:
    parser = _text_parser(
        "compare",
        "Probability that the first answer is preferred.",
        "also how sure the margin is, and how far both answers lie from the training data",
    )
    parser.add_argument("first")
    parser.add_argument("second")
    flags = _parse_texts(parser, arguments)
    scorer = _load_for(flags)
    texts = (flags.prompt, flags.first, flags.second)
    compared = scorer.compare_with_uncertainty(*texts) if flags.support else None
    probability = scorer.compare(*texts) if compared is None else compared.probability
    has_one = scorer.sidecar is not None and scorer.sidecar.temperature is not None
    why = "a temperature at a bound of its fit" if has_one else "no temperature"
    note = "calibrated" if scorer.is_calibrated else f"not calibrated: the checkpoint has {why}"
    values: dict[str, Any] = {"probability": probability, "calibrated": scorer.is_calibrated}
    if compared is None:
        return Printed(f"P(first preferred) = {probability:.4f}  ({note})", values)
    trust = scorer.fitted_trust()
    first, second = compared.support_distances
    lines = [
        f"P(first preferred) = {probability:.4f}  (averaged over the head's posterior; {note})",
        f"margin {compared.margin:+.4f}, standard deviation {compared.margin_std:.4f}",
        f"first   {_distance_text(trust, first)}",
        f"second  {_distance_text(trust, second)}",
    ]
    values |= {
        "margin": compared.margin,
        "margin_std": compared.margin_std,
        "support_distances": [first, second],
        "support_beyonds": [trust.beyond(first), trust.beyond(second)],
    }
    return Printed("\n".join(lines), values)
