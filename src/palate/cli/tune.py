"""`palate tune`: a learning rate and a number of prompts a step, with what they rest on."""

import math

from palate.cli.parsing import parse, parser_for
from palate.cli.printed import Printed
from palate.pipeline.tune import TuneConfig, TuneResult, as_values, tune
from palate.training.learning_rate import RateTest
from palate.training.noise_scale import MIN_STEPS_AN_EPOCH

NUM_ROWS = 12


def run_tune(arguments: list[str]) -> Printed:
    parser = parser_for("tune", "Suggest a learning rate and prompts a step.", TuneConfig)
    config, _ = parse(parser, TuneConfig, arguments)
    result = tune(config)
    text = "\n".join([_rate_table(result.rate_test), "", *_suggestions(result)])
    return Printed(f"{text}\nwritten to {config.tune.output}", as_values(result))


def _rate_table(test: RateTest) -> str:
    """About `NUM_ROWS` of the tested rates, evenly spaced, and the one with the lowest loss."""
    stride = math.ceil(len(test.rates) / NUM_ROWS)
    lowest = min(range(len(test.rates)), key=lambda place: test.smoothed[place])
    places = sorted({*range(0, len(test.rates), stride), len(test.rates) - 1, lowest})
    notes = {len(test.rates) - 1: "diverged" if test.diverged_at else "", lowest: "lowest"}
    rows = [
        f"{test.rates[place]:>13.1e}  {test.smoothed[place]:.4f}  {notes.get(place, '')}".rstrip()
        for place in places
    ]
    return "\n".join(["learning rate  smoothed loss", *rows])


def _suggestions(result: TuneResult) -> list[str]:
    rates, noise, training = result.rate_test, result.noise_scale, result.training
    scale = noise.prompts
    known = math.isfinite(scale.high)
    interval = f"[{scale.low:.0f}, {scale.high:.0f}]" if known else f"[{scale.low:.0f}, no bound]"
    measured = f"noise scale {scale.value:.0f} {interval} prompts over {scale.n} steps"
    return [
        f"learning rate     {rates.suggested:.1e} (one tenth of the rate with the lowest loss, at"
        f" {training.prompts_per_step} prompts a step)"
        if rates.suggested
        else "learning rate     none: no rate lowered the loss by more than its noise; try more"
        " tune.rate_steps or training.prompts_per_step",
        f"prompts a step    {noise.suggested} (the nearest power of two of which an epoch has"
        f" {MIN_STEPS_AN_EPOCH} steps: {measured})"
        if noise.suggested
        else f"prompts a step    none: the gradient is not told from its noise ({measured}); try"
        " more tune.noise_steps or training.prompts_per_step",
    ]
