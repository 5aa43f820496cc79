"""The snippets on the model card run as they stand there, and all give one reward."""

import ast
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import palate
from palate.model.checkpoint import Sidecar, read_sidecar
from palate.model.settings import BodySettings
from palate.pipeline.config import SplitSettings
from palate.report.card import EXAMPLE, SERVED_BY_VLLM, model_card
from palate.scoring.scorer import Scorer, scoring_item
from palate.statistics import Estimate
from tests.runs import pair_rows, quick_training, write_rows
from tests.tiny import CAUSAL, CHATML, byte_tokenizer, save_tiny, word_piece_tokenizer

TOLERANCE = 1e-5
MOODY = "{%- set mood = mood | default('') -%}" + CHATML.replace(
    "message['role'] +", "message['role'] + mood +"
)
MOOD = {"mood": "'calm'"}
"""An argument that the template prints; an apostrophe would end a shell's quoted text."""
ANSWERS = ("They flap.", "no idea", "With their wings, which push the air down. " * 2)
POLICY = "your policy"


def train_briefly(folder: Path, tokenizer: Any, kind: str = "llama", **fields: Any) -> Path:
    """The model directory of a run on a few pairs; nothing is held out."""
    config = palate.TrainConfig(
        model=save_tiny(folder / "body", kind, tokenizer=tokenizer),
        data=write_rows(folder / "pairs.jsonl", pair_rows(8)),
        output=str(folder / "run"),
        split=SplitSettings(validation_share=0.0, test_share=0.0),
        training=quick_training(),
        **fields,
    )
    palate.train(config)
    return folder / "run" / "model"


@pytest.fixture(scope="module", params=["llama", "bert", "llama, template arguments"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain checkpoints as runs leave them: one pools the last token, one the first, one has a
    template with an argument of the run."""
    if request.param == "llama":
        run: Path = request.getfixturevalue("trained_run")
        return run / "model"
    folder = tmp_path_factory.mktemp("card")
    if request.param == "bert":
        return train_briefly(folder, word_piece_tokenizer(), "bert")
    return train_briefly(folder, byte_tokenizer(MOODY), template_arguments=MOOD)


def blocks(directory: Path, language: str = "python") -> list[str]:
    """The card's blocks in this language, with the checkpoint's own path."""
    card = (directory / "README.md").read_text(encoding="utf-8")
    found = re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)
    return [block.replace("this directory", str(directory)) for block in found]


def last_value(code: str) -> float:
    """Execute a block and return the value of its last expression."""
    tree = ast.parse(code)
    last = tree.body.pop()
    assert isinstance(last, ast.Expr)
    names: dict[str, Any] = {}
    exec(compile(tree, "card", "exec"), names)
    with torch.no_grad():
        return float(eval(compile(ast.Expression(last.value), "card", "eval"), names))


def of_palate(directory: Path, *answers: str) -> list[float]:
    scorer = palate.load(directory)
    return [scorer.score(EXAMPLE[0]["content"], answer) for answer in answers]


def test_palate_and_transformers_give_one_reward(checkpoint: Path) -> None:
    with_palate, with_transformers, _ = blocks(checkpoint)
    expected, other = of_palate(checkpoint, EXAMPLE[1]["content"], "no idea")
    assert abs(expected - other) > 1e-3, "answers that differ get rewards that differ"
    assert last_value(with_palate) == pytest.approx(expected, abs=TOLERANCE)
    assert last_value(with_transformers) == pytest.approx(expected, abs=TOLERANCE)


def test_the_template_arguments_of_the_run_decide_the_reward(tmp_path: Path) -> None:
    """Without them the snippet would give another reward: they are on the card for a reason."""
    directory = train_briefly(tmp_path, byte_tokenizer(MOODY), template_arguments=MOOD)
    _, with_transformers, _ = blocks(directory)
    given = f", **{MOOD!r}"
    assert with_transformers.count(given) == 1
    right, wrong = map(last_value, (with_transformers, with_transformers.replace(given, "")))
    assert abs(right - wrong) > 1e-3


def stand_in_for_trl(seen: list[Any]) -> ModuleType:
    """Of TRL 1.16.0 what its GRPOTrainer and RLOOTrainer do with a reward model.

    trl/trainer/grpo_trainer.py, 551-604 (loading) and 1608-1620 (`_calculate_rewards`).
    """

    class GRPOConfig(SimpleNamespace):
        def __init__(
            self,
            output_dir: str,
            bf16: bool = True,
            chat_template_kwargs: dict[str, Any] | None = None,
        ) -> None:
            super().__init__(
                output_dir=output_dir, bf16=bf16, chat_template_kwargs=chat_template_kwargs or {}
            )

    class GRPOTrainer:
        def __init__(
            self, model: str, reward_funcs: str, args: GRPOConfig, train_dataset: Any
        ) -> None:
            self.args, self.model, self.dataset = args, model, train_dataset
            self.reward = AutoModelForSequenceClassification.from_pretrained(
                reward_funcs, num_labels=1
            )
            self.tokenizer = AutoTokenizer.from_pretrained(self.reward.config._name_or_path)
            assert self.tokenizer.pad_token_id is not None
            self.reward.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id

        @torch.inference_mode()
        def train(self) -> None:
            (prompt,) = self.dataset["prompt"]
            assert prompt[0].keys() >= {"role", "content"}, "TRL calls such prompts conversational"
            texts = [
                self.tokenizer.apply_chat_template(
                    [*prompt, {"role": "assistant", "content": answer}],
                    tools=None,
                    tokenize=False,
                    **self.args.chat_template_kwargs,
                )
                for answer in ANSWERS
            ]
            inputs = self.tokenizer(
                text=texts,
                return_tensors="pt",
                padding=True,
                padding_side="right",
                add_special_tokens=False,
            )
            with torch.autocast("cpu", torch.bfloat16, enabled=self.args.bf16):
                seen.append((self.model, self.reward(**inputs).logits[:, 0].tolist()))

    module = ModuleType("trl")
    module.GRPOConfig, module.GRPOTrainer = GRPOConfig, GRPOTrainer  # type: ignore[attr-defined]
    return module


def test_trl_is_given_a_model_that_it_reads_to_the_same_rewards(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of different lengths in one padded batch, as TRL makes it."""
    seen: list[Any] = []
    monkeypatch.setitem(sys.modules, "trl", stand_in_for_trl(seen))
    exec(compile(blocks(checkpoint)[2], "card", "exec"), {})
    expected = of_palate(checkpoint, *ANSWERS)
    assert seen == [(POLICY, pytest.approx(expected, abs=TOLERANCE))]


def save_policy(directory: Path) -> str:
    config = AutoConfig.for_model("llama", **CAUSAL["llama"])
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return str(directory)


def test_trl_itself_trains_on_these_rewards(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Needs TRL, which palate does not; its environment is benchmarks/speed/requirements.txt."""
    trl = pytest.importorskip("trl")
    calculate: Callable[..., torch.Tensor] = trl.GRPOTrainer._calculate_rewards
    seen: list[tuple[str, float]] = []

    def recorded(self: Any, inputs: Any, prompts: Any, completions: Any, ids: Any) -> torch.Tensor:
        rewards = calculate(self, inputs, prompts, completions, ids)
        texts = [completion[0]["content"] for completion in completions]
        seen.extend(zip(texts, rewards[:, 0].tolist(), strict=True))
        answers = [[{"role": "assistant", "content": answer}] for answer in ANSWERS]
        fixed = calculate(self, inputs, [prompts[0]] * len(answers), answers, [[]] * len(answers))
        seen.extend(zip(ANSWERS, fixed[:, 0].tolist(), strict=True))
        return rewards

    monkeypatch.setattr(trl.GRPOTrainer, "_calculate_rewards", recorded)
    monkeypatch.chdir(tmp_path)
    code = blocks(checkpoint)[2].replace(POLICY, save_policy(tmp_path / "policy"))
    # The tiny model has 512 positions, and most of what an untrained policy writes has 256 tokens.
    code = code.replace("bf16=False", "bf16=False, max_completion_length=32")
    exec(compile(code, "card", "exec"), {})
    assert {text for text, _ in seen} > {*ANSWERS}
    texts, rewards = zip(*seen, strict=True)
    assert rewards == pytest.approx(of_palate(checkpoint, *texts), abs=1e-4)


def test_vllm_is_sent_what_palate_scores(checkpoint: Path) -> None:
    """The command and the request as a shell reads them; the ids are those that vLLM makes of
    `messages`, by the template and without further special tokens, and the activation is none."""
    sidecar = read_sidecar(checkpoint)
    assert sidecar is not None
    serving, asking = (shlex.split(block) for block in blocks(checkpoint, "sh"))
    assert serving[:3] == ["vllm", "serve", str(checkpoint)]
    options = dict(zip(serving[3::2], serving[4::2], strict=True))
    config = json.loads((checkpoint / "config.json").read_text())
    assert options == {"--runner": "pooling", "--dtype": config["dtype"]}
    assert config["problem_type"] == "regression"
    assert len(config["id2label"]) == 1
    assert asking[:2] == ["curl", "http://localhost:8000/classify"]
    request = json.loads(asking[asking.index("-d") + 1])
    assert request.keys() <= {"messages", "chat_template_kwargs"}
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    text = tokenizer.apply_chat_template(
        request["messages"],
        tokenize=False,
        add_generation_prompt=False,
        **request.get("chat_template_kwargs", {}),
    )
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tuple(ids) == rendered_example(palate.load(checkpoint))


def rendered_example(scorer: Scorer) -> tuple[int, ...]:
    question, answer = (message["content"] for message in EXAMPLE)
    return scorer.render(scoring_item(question, answer))[0]


def test_a_checkpoint_that_only_palate_loads_has_palates_snippet_alone(tmp_path: Path) -> None:
    directory = train_briefly(tmp_path, byte_tokenizer(), body=BodySettings(pooling="mean"))
    (with_palate,) = blocks(directory)
    (expected,) = of_palate(directory, EXAMPLE[1]["content"])
    assert last_value(with_palate) == pytest.approx(expected, abs=TOLERANCE)
    card = (directory / "README.md").read_text()
    assert "Only palate loads it" in card
    assert not blocks(directory, "sh")
    assert not re.search("vllm|trl", card, re.IGNORECASE)


def sidecar(**changes: Any) -> Sidecar:
    fields: dict[str, Any] = {
        "pooling": "last",
        "head_name": "score",
        "layout": "tree",
        "dtype": "float32",
        "end_of_turn": "<|im_end|>",
        "template_arguments": {},
        "lengths": {"max_prompt_tokens": 300, "max_response_tokens": 200, "overlong": "leave_out"},
        "fingerprint": {},
    }
    return Sidecar(**{**fields, **changes})


def card_of(told: Sidecar | None = None, **changes: Any) -> str:
    facts: dict[str, Any] = {
        "model": "owner/body",
        "num_groups": {"train": 7},
        "measured_on": "test",
        "ledger": {},
        "num_rows": 9,
        "left_out": "",
        "steps": 2,
        "objective": "bradley-terry",
        "method": "full",
        "learned": {},
        "body": "llama",
        "head": "linear",
        "has_class": True,
    }
    metrics = {"test": {"accuracy": Estimate(0.75, 0.5, 0.9, 12)}}
    return model_card(told or sidecar(), metrics, {**facts, **changes})


def test_vllm_is_claimed_only_for_bodies_that_it_was_run_with() -> None:
    assert set(CONFIG_MAPPING) > SERVED_BY_VLLM
    for body in SERVED_BY_VLLM:
        assert "vllm serve" in card_of(body=body)
    for body in ("deberta-v2", "ministral", "bloom"):
        card = card_of(body=body)
        assert f"is not known to serve a {body} body." in card
        assert not re.search("vllm serve|/classify", card)


def test_vllm_is_told_the_name_by_which_it_knows_gemma_3() -> None:
    (line,) = re.findall("^vllm serve .*", card_of(body="gemma3_text"), re.MULTILINE)
    name, value = shlex.split(line)[-2:]
    assert name == "--hf-overrides"
    assert json.loads(value) == {"architectures": ["Gemma3ForSequenceClassification"]}
    assert "hf-overrides" not in card_of(body="gemma2")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vllm_computes_in_the_dtype_of_the_files(dtype: str) -> None:
    card = card_of(sidecar(dtype=dtype))
    assert f'vllm serve "this directory" --runner pooling --dtype {dtype}\n' in card
    assert ("in half precision" in card) == (dtype == "float32")


def quality(card: str) -> str:
    return card.split("## How good it is\n\n")[1].split("\n\n## What was left out")[0]


def test_the_card_begins_with_the_verdict_and_tells_of_battery_and_support() -> None:
    """In the order: verdict, numbers, battery, support distance."""
    told = quality(
        card_of(
            verdict=["Right on 75%.", "Better than <b>.", "Nothing to fear."],
            battery={"num_passed": 150, "num_pairs": 196, "files": {"battery-1": "0123456789abcd"}},
            trust={
                "num_answers": 900,
                "reference": "held-out answers",
                "num_reference_answers": 120,
            },
        )
    ).split("\n\n")
    assert told[0] == "Right on 75%. Better than &lt;b&gt;. Nothing to fear."
    assert told[1].startswith("On the test part.")
    assert told[-2] == "Of 196 easy pairs, the battery battery-1 (0123456789ab), it passes 150."
    assert told[-1] == (
        "The distance of an answer from the training data is stored, fitted on 900 training answers"
        " and read against 120 held-out answers: `scorer.score_with_support(prompt, answer)`."
    )


def test_the_card_says_why_there_is_no_support_distance() -> None:
    reason = "8 answers, <i>too few</i>."
    told = quality(card_of(no_trust=reason)).split("\n\n")[-1]
    assert told == (
        "No distance from the training data is stored, so `score_with_support` is refused:"
        " 8 answers, &lt;i&gt;too few&lt;/i&gt;."
    )


def test_what_was_not_told_is_not_on_the_card() -> None:
    assert not re.search("battery|support|verdict", card_of())


def test_names_and_units_of_the_battery_stay_text_without_folders() -> None:
    files = {"/home/me/<b>.jsonl": "1<&>456789abcdef"}
    battery = {"num_passed": 1, "num_won": 3, "num_pairs": 4, "files": files, "unit": "a < b"}
    told = quality(card_of(battery=battery)).split("\n\n")[-1]
    assert told == (
        "Of 4 easy pairs, the battery &lt;b&gt;.jsonl (1&lt;&amp;&gt;456789ab), it passes 1 and"
        " wins 3. Margins: a &lt; b."
    )
