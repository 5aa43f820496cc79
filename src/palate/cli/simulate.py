"""`palate simulate`: write data whose truth is known, or say how much data a question needs."""

import math

from palate.cli.parsing import parse, parser_for
from palate.cli.printed import Printed
from palate.pipeline.simulate import (
    Planned,
    SimulateConfig,
    SimulatedFiles,
    curve_json,
    plan_comparisons,
    simulate_data,
)
from palate.simulation import WORLDS
from palate.simulation.power import Needed
from palate.text import plural


def run_simulate(arguments: list[str]) -> Printed:
    description = (
        "Write preferences whose true reward is known, or say how many comparisons a question"
        " needs. --world list names the worlds."
    )
    parser = parser_for("simulate", description, SimulateConfig)
    config, _ = parse(parser, SimulateConfig, arguments)
    if config.world == "list":
        return _worlds()
    if config.question == "data":
        return _data(config, simulate_data(config))
    return _plan(config, plan_comparisons(config))


def _worlds() -> Printed:
    values = [
        {
            "world": world.name,
            "description": world.description,
            "twins": ["planted", "clean", *(["legitimate"] if world.legitimate else [])],
            "planted": dict(world.planted.labels.planted()),
        }
        for world in WORLDS.values()
    ]
    lines = [f"{w['world']:<13} {w['description']}  [{', '.join(w['twins'])}]" for w in values]
    return Printed("\n".join(lines), {"worlds": values})


def _data(config: SimulateConfig, files: SimulatedFiles) -> Printed:
    planted = files.simulated.settings.planted()
    fault = ", ".join(f"{name} {value:g}" for name, value in planted.items())
    lines = [f"world   {config.world}, {config.twin} twin, seed {config.seed}"]
    lines += [f"labels  {fault}"] if fault else []
    lines += [f"written {plural(n, 'group')} to {path}" for path, n in files.written.items()]
    values = {
        "world": config.world,
        "twin": config.twin,
        "seed": config.seed,
        "planted": dict(planted),
        "written": dict(files.written),
    }
    return Printed("\n".join(lines), values)


def _plan(config: SimulateConfig, planned: Planned) -> Printed:
    lines = [f"{planned.title}: comparisons for {config.power:.0%} power"]
    lines += [f"  {name:<28} {_said(needed)}" for name, needed in planned.needed.items()]
    lines.append(f"written {planned.output}, {planned.figure}")
    values = {
        "question": config.question,
        "curves": {name: curve_json(needed) for name, needed in planned.needed.items()},
        "output": planned.output,
        "figure": planned.figure,
    }
    return Printed("\n".join(lines), values)


def _said(needed: Needed) -> str:
    if needed.num_comparisons is None or needed.low is None or needed.high is None:
        last = needed.points[-1]
        return f"more than {last.num_comparisons:,} (power there {last.power:.2f})"
    number, low, high = (math.ceil(n) for n in (needed.num_comparisons, needed.low, needed.high))
    return f"{number:,} [{low:,}, {high:,}]"
