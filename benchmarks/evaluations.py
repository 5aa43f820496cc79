"""Real models and some that were broken on purpose, each evaluated whole: verdicts and cost.

    python -m benchmarks.evaluations --data hh_harmless.jsonl.gz --output evaluations.json

- starter, hh: examples/starter_minilm.yaml and one fold of examples/hh_harmless_minilm.yaml on the
  encoder of the `offline` extra, each on the part that it never saw.
- causal: a small Llama trained on simulated preferences without a fault, on 600 new prompts.
- Pooling at a wrong position, put in after the checkpoint's own check has passed: the encoder's at
  a fixed word, the Llama's at the first token and at the token before the last.

Cost: token slots of an evaluation over those of scoring the same prompts once, counted with a body
that computes nothing, since they do not depend on its rewards. Models that are trained already are
taken as they are; every number is measured anew.
"""

import argparse
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.pathologies.biases import PROBE_OF
from benchmarks.pathologies.confirm import NUM_PAIRS, Trial, row_of
from benchmarks.pathologies.small_model import save_small_model
from palate.artifacts.files import write_json
from palate.artifacts.rundir import versions
from palate.cli.parsing import parse, parser_for
from palate.model.reward_model import Output
from palate.pipeline import evaluate as pipeline
from palate.pipeline.config import TrainConfig
from palate.pipeline.evaluate import EvaluateConfig, evaluate
from palate.pipeline.evaluate_config import NOWHERE
from palate.pipeline.quickstart import STARTER_SET, minilm_directory
from palate.pipeline.train import train
from palate.scoring.scorer import Scorer
from palate.simulation import label

Break = Callable[[Scorer], None]
FIXED_WORD = 3
EXAMPLES = {"starter": "starter_minilm", "hh": "hh_harmless_minilm"}


def fixed_word(scorer: Scorer) -> None:
    """An encoder's pooler reads a word near the start in place of [CLS]."""
    scorer.model.transformer.bert.pooler.register_forward_pre_hook(
        lambda _, states: (torch.roll(states[0], -FIXED_WORD, dims=1),)
    )


def first_token(scorer: Scorer) -> None:
    """A causal body's first token has seen nothing of the text."""
    _read_at(scorer, lambda column_N: torch.zeros_like(column_N))


def token_before(scorer: Scorer) -> None:
    """The token before the one on which the head was trained."""
    _read_at(scorer, lambda column_N: column_N - 1)


def _read_at(scorer: Scorer, moved: Callable[[torch.Tensor], torch.Tensor]) -> None:
    scorer.model.layout = "rows"  # where the column before a sequence's last is its own

    def move(_: Any, given: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return given, {**named, "end_column_N": moved(named["end_column_N"])}

    scorer.model.register_forward_pre_hook(move, with_kwargs=True)


class Count:
    """Token slots of the passes of the models loaded meanwhile, which compute nothing: rewards are
    random."""

    def __init__(self) -> None:
        self.slots = 0
        self.random = torch.Generator().manual_seed(0)

    def watch(self, scorer: Scorer) -> None:
        def counted(**plan: Any) -> Output:
            self.slots += plan["input_ids_RT"].numel()
            shape = (len(plan["end_row_N"]), scorer.model.head.in_features)
            hidden_ND = torch.randn(shape, generator=self.random)
            return Output(scorer.model.reward_of(hidden_ND), hidden_ND)

        scorer.model.forward = counted


@contextmanager
def loading(then: Callable[[Scorer], None]) -> Iterator[None]:
    """`then` is done to every scorer that an evaluation loads."""
    real = pipeline.load

    def load(*arguments: Any, **settings: Any) -> Scorer:
        scorer = real(*arguments, **settings)
        then(scorer)
        return scorer

    pipeline.load = load  # type: ignore[assignment]
    try:
        yield
    finally:
        pipeline.load = real


def cost(config: EvaluateConfig) -> dict[str, Any]:
    """Token slots of an evaluation, and how many times those of scoring the same prompts once."""
    once, whole = Count(), Count()
    with loading(once.watch):
        evaluate(replace(config, quick=True))  # each answer once, and nothing else but references
    with loading(whole.watch):
        result = evaluate(config)
    return {
        "num_prompts": result.num_prompts,
        "slots": whole.slots,
        "times scoring": whole.slots / once.slots,
    }


def said(config: EvaluateConfig, damage: Break = lambda scorer: None) -> dict[str, Any]:
    """What stands on the page; its verdict is printed too."""
    shutil.rmtree(config.output, ignore_errors=True)
    with loading(damage):
        values = evaluate(config).values
    print(f"\n{config.output}:", *values["verdict"], sep="\n  ", flush=True)
    return {
        "verdict": values["verdict"],
        "findings": [f"{f['severity']}: {f['check']}: {f['message']}" for f in values["findings"]],
        "metrics": values["metrics"],
        "battery": {
            c["name"]: {name: c[name] for name in ("num_pairs", "num_won", "num_passed")}
            for c in values["battery"]["categories"]
        },
        "battery_cut": values["battery"]["cut"],
        "probe_sample": values["probe_sample"],
        "probes": {
            p["name"]: {
                name: p[name] for name in ("verdict", "effect", "flips", "num_left_out", "reason")
            }
            for p in values["probes"]
        },
    }


def real_run(runs: Path, name: str, data: str) -> EvaluateConfig:
    """Of an example, trained where it is not there yet."""
    run = runs / name
    if not (run / "metrics.json").exists():
        arguments = [f"examples/{EXAMPLES[name]}.yaml", "--data", data, "--output", str(run)]
        arguments += ["--model", str(minilm_directory())]
        train(parse(parser_for("train", "", TrainConfig), TrainConfig, arguments)[0])
    return EvaluateConfig(model=str(run), data=data, part="test", output=NOWHERE)


def causal_run(runs: Path) -> EvaluateConfig:
    """A small Llama on simulated preferences, and the prompts that it never saw."""
    body, folder = runs / "body", runs / "causal"
    if not (body / "config.json").exists():
        save_small_model(body)
    folder.mkdir(parents=True, exist_ok=True)
    trial = Trial(1, folder, str(body))
    world = next(iter(PROBE_OF))
    if not (folder / f"{world}-clean" / "metrics.json").exists():
        trial.trained(world, "clean")
    data = folder / "new.jsonl"
    data.write_text("".join(map(row_of, label(trial.scene).groups[NUM_PAIRS:])))
    return EvaluateConfig(model=str(folder / f"{world}-clean"), data=str(data), output=NOWHERE)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", required=True, help="hh_harmless.jsonl.gz")
    parser.add_argument("--output", required=True)
    parser.add_argument("--runs", default="runs/evaluations", help="where runs and pages go")
    flags = parser.parse_args()
    runs = Path(flags.runs)
    found: dict[str, Any] = {}
    wrong: dict[str, tuple[str, Break]] = {
        "starter, pooled at a fixed word": ("starter", fixed_word),
        "causal, pooled at the first token": ("causal", first_token),
        "causal, pooled one token early": ("causal", token_before),
    }
    configs = {
        "starter": real_run(runs, "starter", str(STARTER_SET)),
        "hh": real_run(runs, "hh", flags.data),
        "causal": causal_run(runs),
    }
    for name, config in configs.items():
        found[name] = said(replace(config, output=str(runs / f"{name}-evaluated")))
    for number, (name, (whole, damage)) in enumerate(wrong.items()):
        output = str(runs / f"broken-{number}-evaluated")
        found[name] = said(replace(configs[whole], output=output), damage)
    for name in EXAMPLES:
        found[name]["cost"] = {
            part: cost(replace(configs[name], part=part)) for part in ("all", "test")
        }
        print(f"\n{name}: {found[name]['cost']}", flush=True)
    write_json(Path(flags.output), {**found, "versions": versions()})


if __name__ == "__main__":
    main()
