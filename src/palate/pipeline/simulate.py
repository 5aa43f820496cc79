"""`palate simulate`: data whose truth is known, and how much data a question needs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from palate.artifacts.files import atomic_path, write_json
from palate.errors import PalateError
from palate.pipeline.simulate_detectors import DETECTORS
from palate.preferences import PreferenceGroup, to_canonical
from palate.report.power_figure import require_matplotlib, write_power_figure
from palate.simulation import WORLDS, Simulated, world
from palate.simulation.power import (
    Needed,
    PowerAt,
    PowerPoint,
    detect_bias,
    needed_comparisons,
    tell_apart,
)

Question = Literal["data", "accuracy", "bias"]
ACCURACY_TRIALS = 20_000
BIAS_TRIALS = 40
_HEEDED: Mapping[Question, frozenset[str]] = {
    "data": frozenset({"world", "twin", "num_prompts", "strength"}),
    "accuracy": frozenset({"low", "high", "discordance", "alpha", "power", "trials"}),
    "bias": frozenset({"world", "strength", "power", "trials", "max_comparisons"}),
}
"""Settings that each question reads, beside question, output and seed."""


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """What to simulate: a world's data, or how many comparisons a question needs."""

    question: Question = "data"
    """data: write a world's preferences. accuracy: how many comparisons tell two accuracies apart.
    bias: how many comparisons until the audit's check finds a world's fault."""
    world: str = ""
    """Name of a world (data, bias); `list` prints all of them."""
    twin: Literal["planted", "clean", "legitimate"] = "planted"
    """data: planted has the fault; clean is the same without it; legitimate has what the fault is
    about in better answers, so that nothing is wrong."""
    seed: int = 0
    output: str = ""
    """data: a .jsonl file (default simulated.jsonl); a world with parts writes one for each, as
    simulated.train.jsonl. accuracy and bias: a .json file (default plan.json), with a figure of the
    same name that ends in .svg."""
    num_prompts: int = 2000
    """data: prompts to write."""
    strength: float = 1.0
    """data, bias: size of the fault, as a multiple of the world's own: of one logit in most."""
    low: float = 0.70
    """accuracy: the lower of the two accuracies."""
    high: float = 0.73
    """accuracy: the higher."""
    discordance: float = 0.2
    """accuracy: share of comparisons that exactly one of the two models gets right, where both are
    asked the same."""
    alpha: float = 0.05
    """accuracy: level of the two-sided test."""
    power: float = 0.8
    """accuracy, bias: how likely the difference or the fault is to be found."""
    trials: int | None = None
    """accuracy, bias: simulated studies at each number of comparisons; by default 20,000 and 40."""
    max_comparisons: int = 6000
    """bias: the largest number tried."""

    def __post_init__(self) -> None:
        heeded = {"question", "seed", "output"} | _HEEDED[self.question]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in heeded and value != field.default:
                raise PalateError(
                    f"{field.name} {value} has no effect with question {self.question}; it heeds"
                    f" {', '.join(sorted(_HEEDED[self.question]))}"
                )
        for name in ("num_prompts", "max_comparisons"):
            if getattr(self, name) < 1:
                raise PalateError(f"{name} is {getattr(self, name)}, must be 1 or more")
        if not 0 < self.power < 1:
            raise PalateError(f"power is {self.power}, must be between 0 and 1")
        if self.trials is not None and self.trials < 10:
            raise PalateError(f"trials is {self.trials}, must be 10 or more")
        if self.question != "accuracy" and self.world not in (*WORLDS, "list"):
            said = f"world {self.world!r} is none of" if self.world else "no world named; choose"
            raise PalateError(f"{said} {', '.join(WORLDS)} (--world list describes them)")
        suffix = ".jsonl" if self.question == "data" else ".json"
        if not self.path.name.endswith(suffix):
            raise PalateError(f"output {self.output!r} must end in {suffix}")

    @property
    def path(self) -> Path:
        """Where to write; the data's parts and the plan's figure stand beside it."""
        default = "simulated.jsonl" if self.question == "data" else "plan.json"
        return Path(self.output or default)


@dataclass(frozen=True)
class SimulatedFiles:
    """What was written of a world."""

    simulated: Simulated
    written: Mapping[str, int]
    """Path to its number of groups."""


@dataclass(frozen=True)
class Planned:
    """The answer to a planning question."""

    title: str
    needed: Mapping[str, Needed]
    """By the name of the curve."""
    output: str
    figure: str


def simulate_data(config: SimulateConfig) -> SimulatedFiles:
    """Write a twin of a world as canonical JSONL, one file, or one for each of its parts.

    Raises PalateError where a file is there already.
    """
    paths = _part_paths(config)
    _refuse_existing(list(paths.values()) or [config.path])
    simulated = world(config.world, config.twin, config.seed, config.num_prompts, config.strength)
    if not simulated.parts:
        files = {config.path: simulated.groups}
    else:
        files = {paths[name]: simulated.part(name) for name in simulated.parts}
    written = {}
    for path, groups in files.items():
        _write_rows(path, groups)
        written[str(path)] = len(groups)
    return SimulatedFiles(simulated, written)


def _part_paths(config: SimulateConfig) -> dict[str, Path]:
    names = WORLDS[config.world].twin(config.twin).part_names
    return {name: config.path.with_suffix(f".{name}.jsonl") for name in names}


def _refuse_existing(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.exists():
            raise PalateError(f"{path}: exists already; remove it or choose another output")


def _write_rows(path: Path, groups: Sequence[PreferenceGroup]) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        for group in groups:
            handle.write(json.dumps(to_canonical(group), ensure_ascii=False) + "\n")


def plan_comparisons(config: SimulateConfig) -> Planned:
    """Answer a planning question; write the curves as JSON, and their figure.

    Raises PalateError where a file is there already, or for rates and worlds that cannot be asked.
    """
    require_matplotlib()
    figure = config.path.with_suffix(".svg")
    _refuse_existing([config.path, figure])
    if config.question == "accuracy":
        title = f"telling {config.low:g} from {config.high:g}"
        needed = _accuracy(config)
    else:
        title = f"finding {config.world} at strength {config.strength:g}"
        needed = {"audit": _bias(config)}
    curves = {name: curve_json(found) for name, found in needed.items()}
    settings = {name: getattr(config, name) for name in sorted(_HEEDED[config.question])}
    write_json(
        config.path,
        {"question": config.question, "seed": config.seed, **settings, "curves": curves},
    )
    write_power_figure(figure, title, curves, config.power)
    return Planned(title, needed, str(config.path), str(figure))


def _accuracy(config: SimulateConfig) -> dict[str, Needed]:
    ways: dict[str, PowerAt] = {
        "same prompts": tell_apart(
            config.low, config.high, discordance=config.discordance, alpha=config.alpha
        ),
        "prompts of its own for each": tell_apart(
            config.low, config.high, discordance=None, alpha=config.alpha
        ),
    }
    return {
        name: needed_comparisons(
            power_at,
            target=config.power,
            trials=config.trials or ACCURACY_TRIALS,
            seed=config.seed,
        )
        for name, power_at in ways.items()
    }


def _bias(config: SimulateConfig) -> Needed:
    if config.world not in DETECTORS:
        raise PalateError(
            f"world {config.world!r}: how much data its fault needs is not asked of a strength;"
            f" these can be asked: {', '.join(DETECTORS)}"
        )
    power_at = detect_bias(
        config.world,
        config.strength,
        DETECTORS[config.world],
        limit=config.max_comparisons,
        seed=config.seed,
    )
    return needed_comparisons(
        power_at,
        target=config.power,
        trials=config.trials or BIAS_TRIALS,
        start=min(250, config.max_comparisons),
        limit=config.max_comparisons,
        seed=config.seed,
    )


def curve_json(needed: Needed) -> dict[str, Any]:
    """A power curve as plain JSON."""
    return {
        "target": needed.target,
        "num_comparisons": needed.num_comparisons,
        "low": needed.low,
        "high": needed.high,
        "points": [_point_json(point) for point in needed.points],
    }


def _point_json(point: PowerPoint) -> dict[str, Any]:
    low, high = point.interval
    return {
        "num_comparisons": point.num_comparisons,
        "power": point.power,
        "low": low,
        "high": high,
        "num_trials": point.num_trials,
    }
