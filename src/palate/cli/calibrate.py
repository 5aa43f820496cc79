"""`palate calibrate`: a length calibration for a trained model."""

from dataclasses import asdict

from palate.cli.parsing import parse, parser_for
from palate.cli.printed import Printed
from palate.pipeline.calibrate import CalibrateConfig, CalibrateResult, calibrate
from palate.statistics import as_json
from palate.text import plural


def run_calibrate(arguments: list[str]) -> Printed:
    parser = parser_for("calibrate", "Fit a length calibration on a pool.", CalibrateConfig)
    config, _ = parse(parser, CalibrateConfig, arguments)
    result = calibrate(config)
    return Printed(_text(result), _values(result))


def _text(result: CalibrateResult) -> str:
    found = result.calibration
    chosen = f"alpha {found.alpha:.2f}"
    if not found.alpha:
        chosen = "alpha 0: the labels ask for nothing to be taken off"
        if found.best_alpha:
            chosen += f" (the least loss was at {found.best_alpha:.2f}, within chance)"
    return (
        f"{result.ledger.summary(result.num_rows_kept)}\n"
        f"{plural(result.num_prompts, 'prompt')}, {plural(found.num_clusters, 'cluster')},"
        f" {plural(found.num_comparisons, 'comparison')} of unlike length\n"
        f"{chosen}; fall of the loss {found.gain}\n"
        f"reward per unit of log length, within prompts: {result.slope[0]:+.3f} before,"
        f" {result.slope[1]:+.3f} after\n"
        f"accuracy on the pool: {result.accuracy[0]} before, {result.accuracy[1]} after\n"
        f"written to {result.path}; use it with --length_calibration true"
    )


def _values(result: CalibrateResult) -> dict[str, object]:
    found = result.calibration
    before, after = result.accuracy
    return {
        "alpha": found.alpha,
        "curve": asdict(found.curve),
        "temperature": found.temperature,
        "slope": {"before": result.slope[0], "after": result.slope[1]},
        "metrics": as_json(
            {"gain": found.gain, "accuracy before": before, "accuracy after": after}
        ),
        "num_prompts": result.num_prompts,
        "num_rows": result.ledger.num_rows_read,
        "ledger": result.ledger.by_reason(),
        "path": result.path,
    }
