"""What is saved, other programs load to the same rewards; what isn't a reward model is refused."""

import json
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    dynamic_module_utils,
    pipeline,
)

import palate
from palate.cli.main import main
from palate.errors import PalateError
from palate.model.checkpoint import SIDECAR, Sidecar, read_sidecar, save_checkpoint, write_sidecar
from palate.model.loading import load_model
from palate.model.reward_model import RewardModel
from palate.model.selfcheck import max_positions
from palate.model.settings import BodySettings
from palate.pipeline.evaluate import EvaluateConfig, evaluate
from palate.pipeline.quickstart import minilm_directory
from palate.pipeline.score_file import ScoreConfig, score_file
from palate.rendering import LengthSettings, Renderer
from palate.scoring.scorer import Scorer
from tests.runs import pair_rows, quick_config, quick_training, write_rows
from tests.tiny import (
    CAUSAL,
    CHATML,
    ENCODERS,
    byte_tokenizer,
    save_tiny,
    tiny_transformer,
    word_piece_tokenizer,
)

Conversation = list[dict[str, str]]
TOLERANCE = 1e-5
LONG = "The tide comes in twice a day, and so do the boats; "


def conversation(prompt: str, response: str) -> Conversation:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


TALKS = [
    conversation("How do birds fly?", "They flap."),
    conversation("How do birds fly?", "no idea"),
    conversation("Tell me of the sea. " * 3, LONG * 3),
    [
        *conversation("Hi", "Hello."),
        *conversation("And you?", "Fine, \u00e9 \u05e9\u05dc\u05d5\u05dd"),
    ],
]


def train_nothing(directory: Path, body: str, text: str = "abc", **form: Any) -> Scorer:
    """A checkpoint as a run leaves it, with a random head (and query) in place of a trained one."""
    torch.manual_seed(1)
    loaded = load_model(body, BodySettings(head_init="normal", **form), for_training=True)
    model = loaded.model.eval()
    if model.query is not None:
        torch.nn.init.normal_(model.query, std=3.0)
    lengths = LengthSettings().resolved(max_positions(model.config))
    renderer = Renderer(loaded.tokenizer, lengths)
    scorer = Scorer(model, renderer)
    reference = {"prompt": "Say it.", "response": text, "reward": scorer.score("Say it.", text)}
    fingerprint = save_checkpoint(directory, model, renderer)
    sidecar = Sidecar(
        pooling=model.pooling,
        head_name=model.head_name,
        plain=model.plain,
        layout=model.layout,
        dtype="float32",
        end_of_turn=renderer.end_of_turn,
        template_arguments={},
        lengths=asdict(lengths),
        fingerprint=fingerprint,
        reference_scores=(reference,),
    )
    write_sidecar(directory, sidecar)
    return scorer


def ours(scorer: Scorer, talks: Sequence[Conversation] = TALKS) -> list[float]:
    return [scorer.score(talk[:-1], talk[-1]["content"]) for talk in talks]


@torch.inference_mode()
def plain(directory: Path, talks: Sequence[Conversation] = TALKS) -> list[float]:
    """As the documentation of transformers would do it, one conversation at a time."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    return [
        model(**tokenizer.apply_chat_template(talk, return_tensors="pt")).logits[0, 0].item()
        for talk in talks
    ]


@torch.inference_mode()
def plain_padded(directory: Path, talks: Sequence[Conversation] = TALKS) -> list[float]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    batch = tokenizer.apply_chat_template(list(talks), return_tensors="pt", padding=True)
    return list(model(**batch).logits[:, 0].tolist())


def piped(directory: Path, talks: Sequence[Conversation] = TALKS) -> list[float]:
    """The text-classification pipeline as it comes, on rendered text."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
    classify = pipeline("text-classification", model=str(directory), batch_size=len(texts))
    return [result["score"] for result in classify(texts)]


def assert_all_agree(directory: Path, trained: Scorer) -> None:
    expected = ours(trained)
    assert max(expected) - min(expected) > 1e-3, "answers that differ get rewards that differ"
    close = pytest.approx(expected, abs=TOLERANCE)
    assert ours(palate.load(directory)) == close
    assert plain(directory) == close
    assert plain_padded(directory) == close
    assert piped(directory) == close


SOURCES: dict[str, Callable[[], Any]] = {
    "own pad": lambda: byte_tokenizer(),
    "pad is eos": lambda: byte_tokenizer(pad="<|im_end|>"),
    "one special token": lambda: byte_tokenizer(
        None, eos="<|endoftext|>", pad=None, special=["<|endoftext|>"]
    ),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_causal_checkpoint_gives_the_same_rewards_in_plain_classes(
    source: str, tmp_path: Path
) -> None:
    """Also where pad was the end of turn in the source, which plain pooling would skip."""
    body = save_tiny(tmp_path / "body", tokenizer=SOURCES[source]())
    if source == "pad is eos":
        config = tmp_path / "body" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "pad_token_id": 2}))
    scorer = train_nothing(tmp_path / "model", body)
    assert_all_agree(tmp_path / "model", scorer)
    weights = load_file(tmp_path / "body" / "model.safetensors")
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert saved["model.embed_tokens.weight"].shape == weights["embed_tokens.weight"].shape


@pytest.mark.parametrize("kind", [*list(CAUSAL)[1:], *ENCODERS])
def test_every_class_gives_the_same_rewards_in_plain_classes(kind: str, tmp_path: Path) -> None:
    tokenizer = word_piece_tokenizer() if kind in ENCODERS else byte_tokenizer(pad="<|im_end|>")
    scorer = train_nothing(
        tmp_path / "model", save_tiny(tmp_path / "body", kind, tokenizer=tokenizer)
    )
    assert_all_agree(tmp_path / "model", scorer)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Scorer]:
    directory = tmp_path_factory.mktemp("minilm") / "model"
    return directory, train_nothing(directory, str(minilm_directory()))


def test_minilm_gives_the_same_rewards_in_plain_classes(minilm: tuple[Path, Scorer]) -> None:
    """No second [CLS] and [SEP] around the template's own, and no cut at its stored 128 tokens:
    answers that differ after the 200th token get other rewards everywhere."""
    directory, scorer = minilm
    assert_all_agree(directory, scorer)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = tokenizer.apply_chat_template(TALKS[0], tokenize=False)
    ids = tokenizer(text).input_ids
    assert ids == list(tokenizer.apply_chat_template(TALKS[0])["input_ids"])
    assert (ids.count(tokenizer.cls_token_id), ids.count(tokenizer.sep_token_id)) == (1, 2)

    far = [conversation("Go on.", LONG * 15 + end) for end in ("the end", "no, wait!")]
    first, second = (tokenizer.apply_chat_template(talk)["input_ids"] for talk in far)
    assert first[:200] == second[:200]
    assert 200 < len(first) < 256
    expected = ours(scorer, far)
    assert abs(expected[0] - expected[1]) > 1e-3
    for rewards in (plain(directory, far), piped(directory, far)):
        assert rewards == pytest.approx(expected, abs=TOLERANCE)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_scores_as_its_own_class_does_alone_and_padded(
    kind: str, tmp_path: Path
) -> None:
    """With a bias, which only our own training leaves at zero: other models' heads have one."""
    transformer = tiny_transformer(kind)
    head = RewardModel(transformer, "rows").head
    assert head.bias is not None
    torch.nn.init.constant_(head.bias, 0.7)
    transformer.save_pretrained(tmp_path)
    word_piece_tokenizer().save_pretrained(tmp_path)
    scorer = palate.load(tmp_path)
    sequences = [[2, *range(5, 5 + length), 3] for length in (4, 40, 11)]
    alone = [transformer(torch.tensor([ids])).logits.item() for ids in sequences]
    width = max(map(len, sequences))
    padded = torch.tensor([ids + [0] * (width - len(ids)) for ids in sequences])
    mask = (padded != 0).long()
    together = transformer(padded, attention_mask=mask).logits[:, 0].tolist()
    assert together == pytest.approx(alone, abs=TOLERANCE)
    assert scorer.score_ids(sequences) == pytest.approx(alone, abs=TOLERANCE)
    assert [scorer.score_ids([ids])[0] for ids in sequences] == pytest.approx(alone, abs=TOLERANCE)


ENDS_AT_EOS = CHATML.replace("'<|im_end|>' + '\\n'", "'<|im_end|>'")
assert ENDS_AT_EOS != CHATML
PUBLIC = {
    "newline after the end": byte_tokenizer,
    "pad is eos": lambda: byte_tokenizer(pad="<|im_end|>"),
    "pad is eos, at the end": lambda: byte_tokenizer(ENDS_AT_EOS, pad="<|im_end|>"),
}


@pytest.mark.parametrize("source", PUBLIC)
def test_a_reward_model_of_others_scores_as_plain_transformers_do(
    source: str, tmp_path: Path
) -> None:
    """Its template is kept as it is, and the token that the plain class pools is pooled: where pad
    is the end of turn, the one before the end, since it was trained so."""
    tokenizer = PUBLIC[source]()
    model = tiny_transformer("llama")
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scorer = palate.load(tmp_path)
    assert scorer.sidecar is None
    assert ours(scorer) == pytest.approx(plain(tmp_path), abs=TOLERANCE)
    first, second = (talk[-1]["content"] for talk in TALKS[:2])
    ranked = scorer.rank("How do birds fly?", [first, second])
    best_first = sorted(plain(tmp_path, TALKS[:2]), reverse=True)
    assert [each.reward for each in ranked] == pytest.approx(best_first, abs=TOLERANCE)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_checkpoint_in_bfloat16_agrees_within_its_precision(kind: str, tmp_path: Path) -> None:
    """The dtype is that of the files; 8 bits of mantissa over 2 layers stay within 6 % of the
    largest reward (plain classes round the head's product as well)."""
    body = save_tiny(tmp_path / "body", kind, tokenizer=byte_tokenizer())
    settings = BodySettings(head_init="normal", dtype="bfloat16")
    torch.manual_seed(1)
    model = load_model(body, settings, for_training=True).model.eval()
    renderer = Renderer(byte_tokenizer(), LengthSettings().resolved(512))
    save_checkpoint(tmp_path / "model", model, renderer)
    scorer = palate.load(tmp_path / "model")
    assert {p.dtype for p in scorer.model.parameters()} == {torch.bfloat16}
    expected = ours(scorer)
    assert expected == ours(Scorer(model, renderer))
    largest = max(map(abs, expected))
    assert plain(tmp_path / "model") == pytest.approx(expected, abs=0.06 * largest)
    in_float32 = ours(palate.load(tmp_path / "model", dtype="float32"))
    assert in_float32 == pytest.approx(expected, abs=0.06 * largest)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_training_on_from_a_reward_model_starts_with_its_rewards(kind: str, tmp_path: Path) -> None:
    """Its head is kept and not made new, and its tokenizer renders as it did."""
    scorer = train_nothing(tmp_path / "model", save_tiny(tmp_path / "body", kind))
    warm = load_model(str(tmp_path / "model"), for_training=True)
    assert warm.has_trained_head
    renderer = Renderer(warm.tokenizer, scorer.renderer.lengths)
    assert renderer.fingerprint() == scorer.renderer.fingerprint()
    assert ours(Scorer(warm.model, renderer)) == pytest.approx(ours(scorer), abs=TOLERANCE)
    assert not load_model(str(tmp_path / "body"), for_training=True).has_trained_head


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    train_nothing(tmp_path / "model", save_tiny(tmp_path / "body"))
    return tmp_path / "model"


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_template(directory: Path) -> None:
    path = directory / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_start|>assistant", "<|im_start|>Assistant"))


def change_special_tokens(directory: Path) -> None:
    edit_json(directory / "tokenizer_config.json", pad_token="<|im_start|>")


def change_tokenizer(directory: Path) -> None:
    path = directory / "tokenizer.json"
    state = json.loads(path.read_text())
    vocabulary = state["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(state))


CHANGES = {
    "template": change_template,
    "special_tokens": change_special_tokens,
    "tokenizer": change_tokenizer,
}


@pytest.mark.parametrize("part", CHANGES)
def test_a_changed_part_is_refused_by_name_and_accepted_when_allowed(
    part: str, checkpoint: Path
) -> None:
    palate.load(checkpoint)
    CHANGES[part](checkpoint)
    others = sorted({*CHANGES, "weights"} - {part})
    for allowed in ((), others):
        with pytest.raises(PalateError, match=rf": {part} changed since.*allow_changed {part}$"):
            palate.load(checkpoint, allow_changed=allowed)
    assert palate.load(checkpoint, allow_changed=[part]).score("a", "b") != 0
    with pytest.raises(PalateError, match=r"allow_changed names \['colour'\]; known: .*template"):
        palate.load(checkpoint, allow_changed=["colour"])


def test_several_changed_parts_are_all_named(checkpoint: Path) -> None:
    change_template(checkpoint)
    change_tokenizer(checkpoint)
    with pytest.raises(PalateError, match=r"template, tokenizer changed since"):
        palate.load(checkpoint)
    with pytest.raises(PalateError, match=r": tokenizer changed since"):
        palate.load(checkpoint, allow_changed=["template"])


def test_changed_weights_are_refused_by_their_hash(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    weights["score.weight"] = weights["score.weight"] * 1.1
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(PalateError, match=r": weights changed since"):
        palate.load(checkpoint)
    assert palate.load(checkpoint, allow_changed=["weights"]).score("a", "b") != 0


def test_rewards_other_than_the_stored_ones_are_refused(checkpoint: Path) -> None:
    """What a library that computes otherwise looks like: same files, other rewards."""
    path = checkpoint / "reward_model.json"
    sidecar = json.loads(path.read_text())
    sidecar["reference_scores"][0]["reward"] += 0.1
    path.write_text(json.dumps(sidecar))
    with pytest.raises(PalateError, match=r"a stored text scores .* at training it was .*weights"):
        palate.load(checkpoint)


def test_the_sidecar_survives_writing_and_a_damaged_one_is_named(checkpoint: Path) -> None:
    sidecar = read_sidecar(checkpoint)
    assert sidecar is not None
    changed = replace(sidecar, temperature={"value": 1.5}, reference_scores=())
    write_sidecar(checkpoint, changed)
    assert palate.load(checkpoint).temperature == 1.5
    path = checkpoint / SIDECAR
    edit_json(path, format_version=99)
    with pytest.raises(PalateError, match=rf"{SIDECAR}: format version 99; this palate reads 1"):
        palate.load(checkpoint)
    whole = json.dumps(asdict(sidecar))
    unknown_length = {**asdict(sidecar), "lengths": {"max_prompt": 3}}
    for text in (whole[:-40], "[]", '{"format_version": 1}', json.dumps(unknown_length)):
        path.write_text(text)
        with pytest.raises(PalateError, match=rf"{SIDECAR}: damaged.*restore it or train again"):
            palate.load(checkpoint)


def without_head(directory: Path) -> None:
    save_tiny(directory)


def language_model(directory: Path) -> None:
    config = AutoConfig.for_model("llama", **CAUSAL["llama"])
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)


def with_two_labels(directory: Path) -> None:
    config = AutoConfig.for_model("llama", **CAUSAL["llama"], num_labels=2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)


def with_two_rows_under_one_label(directory: Path) -> None:
    with_two_labels(directory)
    edit_json(directory / "config.json", id2label={"0": "reward"}, label2id={"reward": 0})


def edit_weights(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = directory / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


def with_value_head(directory: Path) -> None:
    save_tiny(directory)
    edit_weights(
        directory, lambda weights: weights.update({"v_head.summary.weight": torch.ones(1, 32)})
    )


def pickled(directory: Path) -> None:
    save_tiny(directory, head=True)
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def without_weights(directory: Path) -> None:
    save_tiny(directory, head=True)
    (directory / "model.safetensors").unlink()


def encoder_decoder(directory: Path) -> None:
    sizes = {"vocab_size": 300, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1}
    config = AutoConfig.for_model("t5", **sizes, num_heads=2, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)


def without_a_layer(directory: Path) -> None:
    save_tiny(directory, head=True)
    edit_weights(directory, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))


def with_another_width(directory: Path) -> None:
    save_tiny(directory, head=True)
    edit_json(directory / "config.json", intermediate_size=48)


def truncated(directory: Path) -> None:
    save_tiny(directory, head=True)
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def no_safetensors_at_all(directory: Path) -> None:
    save_tiny(directory, head=True)
    (directory / "model.safetensors").write_bytes(b"<html>404 Not Found</html>")


def sharded(directory: Path) -> None:
    tiny_transformer("llama").save_pretrained(directory, max_shard_size="20KB")
    byte_tokenizer().save_pretrained(directory)
    assert len(list(directory.glob("*.safetensors"))) > 1


def with_a_truncated_shard(directory: Path) -> None:
    sharded(directory)
    path = max(directory.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])


def without_a_shard(directory: Path) -> None:
    sharded(directory)
    max(directory.glob("*.safetensors")).unlink()


def with_a_damaged_index(directory: Path) -> None:
    sharded(directory)
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {')


def without_config(directory: Path) -> None:
    save_tiny(directory, head=True)
    (directory / "config.json").unlink()


def with_a_damaged_config(directory: Path) -> None:
    save_tiny(directory, head=True)
    (directory / "config.json").write_text('{"model_type": "llama",')


def of_an_unknown_type(directory: Path) -> None:
    save_tiny(directory, head=True)
    edit_json(directory / "config.json", model_type="abacus")


def without_tokenizer(directory: Path) -> None:
    save_tiny(directory, head=True)
    for path in directory.glob("*token*"):
        path.unlink()


def adapter_only(directory: Path) -> None:
    directory.mkdir()
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    weights = {"base_model.model.score.weight": torch.ones(1, 4)}
    save_file(weights, directory / "adapter_model.safetensors")


def with_code_of_its_own(directory: Path) -> None:
    save_tiny(directory, head=True)
    edit_json(
        directory / "config.json", model_type="abacus", auto_map={"AutoConfig": "code.Abacus"}
    )
    (directory / "code.py").write_text("raise SystemExit('this code was run')")


REFUSED: dict[Callable[[Path], None], str] = {
    without_head: r"without a reward head.*palate train.*score\.weight",
    language_model: r"without a reward head.*palate train.*score\.weight",
    with_two_labels: r"2 labels; a reward model has one",
    with_two_rows_under_one_label: r"\(score\.weight \[2, 32\] for \[1, 32\]\).*don't belong",
    with_value_head: r"value head \(v_head\.summary\.weight\).*one label",
    pickled: r"pytorch_model\.bin, a pickle that can run code; convert them to safetensors",
    without_weights: r"no model\.safetensors in ",
    encoder_decoder: r"t5 is an encoder-decoder; palate trains decoder-only",
    without_a_layer: r"1 weights are missing.*model\.layers\.1\.mlp\.up_proj\.weight.*belong",
    with_another_width: r"weights are missing or misshapen.*mlp\.\w+\.weight.*don't belong",
    truncated: r"model\.safetensors: damaged weights.*get the file again",
    no_safetensors_at_all: r"model\.safetensors: damaged weights.*get the file again",
    with_a_truncated_shard: r"model-0.*\.safetensors: damaged weights.*get the file again",
    without_a_shard: r"model-0.*\.safetensors: missing, but .*index\.json lists it",
    with_a_damaged_index: r"index\.json: damaged.*get the file again",
    without_config: r"no usable config\.json",
    with_a_damaged_config: r"no usable config\.json",
    of_an_unknown_type: r"no usable config\.json.*abacus",
    with_code_of_its_own: r"code of its own.*set trust_remote_code \(body\.trust_remote_code",
    without_tokenizer: r"no usable tokenizer.*tokenizer\.json beside",
    adapter_only: r"adapter.*merge it",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_what_is_no_scalar_reward_model_is_refused_by_name(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / "model")
    with pytest.raises(PalateError, match=REFUSED[make]) as refusal:
        palate.load(tmp_path / "model")
    message = str(refusal.value)
    assert str(tmp_path / "model") in message
    assert len(message) < 600, "a message, not a dump"


def test_a_body_is_refused_for_training_where_its_own_weights_are_missing(tmp_path: Path) -> None:
    """The head may be new, a layer may not: it would be trained from noise without a word."""
    save_tiny(tmp_path)
    load_model(str(tmp_path), for_training=True)
    edit_weights(tmp_path, lambda weights: weights.pop("layers.1.mlp.up_proj.weight"))
    with pytest.raises(PalateError, match=r"1 weights are missing.*up_proj"):
        load_model(str(tmp_path), for_training=True)


def test_a_trained_head_that_no_class_of_transformers_reads_is_refused(tmp_path: Path) -> None:
    """CTRL's class runs its head on every token; Granite has no such class at all."""
    config = AutoConfig.for_model("ctrl", vocab_size=300, n_embd=32, n_layer=1, n_head=4, dff=32)
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "ctrl")
    save_tiny(tmp_path / "granite", "granite")
    edit_json(tmp_path / "granite" / "config.json", id2label={"0": "reward"})
    edit_weights(
        tmp_path / "granite", lambda weights: weights.update({"score.weight": torch.ones(1, 32)})
    )
    for kind in ("ctrl", "granite"):
        byte_tokenizer().save_pretrained(tmp_path / kind)
        with pytest.raises(PalateError, match=rf"no sequence-classification class for {kind} "):
            palate.load(tmp_path / kind)


FORMS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"pooling": "mean"}),
    ("llama", {"head": "mlp", "head_width": 7}),
    ("gpt2", {"pooling": "attention", "head": "mlp"}),
    ("mixtral", {"pooling": "attention"}),
    ("bert", {"pooling": "mean"}),
    ("bert", {"pooling": "attention", "head": "mlp"}),
    ("modernbert", {"pooling": "last"}),
    ("granite", {}),
    ("mamba", {"pooling": "mean", "head": "mlp"}),
]


def train_form(directory: Path, kind: str, form: dict[str, Any]) -> Scorer:
    """A checkpoint of this form, its query not zero."""
    return train_nothing(directory / "model", save_tiny(directory / "body", kind), **form)


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_a_pooling_or_head_of_ours_is_loaded_by_palate_and_refused_by_plain_classes(
    kind: str, form: dict[str, Any], tmp_path: Path
) -> None:
    """To the same rewards, and by no other class to others; the files say so."""
    scorer = train_form(tmp_path, kind, form)
    directory = tmp_path / "model"
    expected = ours(scorer)
    assert max(expected) - min(expected) > 1e-3
    again = palate.load(directory)
    assert ours(again) == pytest.approx(expected, abs=TOLERANCE)
    assert again.model.pooling == scorer.model.pooling == form.get("pooling", "last")
    assert type(again.model.head) is type(scorer.model.head)
    assert again.sidecar is not None
    assert not again.sidecar.plain
    config = json.loads((directory / "config.json").read_text())
    assert "only palate loads" in config["palate"]
    assert config["architectures"] == ["PalateRewardModel"]
    assert {path.name for path in directory.glob("*.safetensors")} == {
        "model.palate.safetensors",
        "reward_head.safetensors",
    }
    concrete = type(AutoModel.from_config(AutoConfig.from_pretrained(directory)))
    for plain_class in (AutoModelForSequenceClassification, AutoModel, concrete):
        # A class that transformers doesn't have is refused before the files are looked at.
        with pytest.raises(
            (OSError, ValueError), match=r"no file named model\.safetensors|Unrecognized"
        ):
            plain_class.from_pretrained(directory)


def test_sharded_weights_beside_a_head_of_ours_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = PreTrainedModel.save_pretrained

    def in_shards(self: Any, *places: Any, **arguments: Any) -> None:
        save(self, *places, max_shard_size="20KB", **arguments)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", in_shards)
    scorer = train_form(tmp_path, "llama", {"pooling": "mean"})
    assert (tmp_path / "model" / "model.safetensors.index.palate.json").exists()
    assert ours(palate.load(tmp_path / "model")) == pytest.approx(ours(scorer), abs=TOLERANCE)
    max((tmp_path / "model").glob("model.palate-*.safetensors")).unlink()
    with pytest.raises(PalateError, match=r"missing, but model\.safetensors\.index\.palate\.json"):
        palate.load(tmp_path / "model")


def test_the_head_file_is_part_of_the_fingerprint_and_its_faults_are_named(tmp_path: Path) -> None:
    train_form(tmp_path, "llama", {"pooling": "attention", "head": "mlp", "head_width": 5})
    directory = tmp_path / "model"
    path = directory / "reward_head.safetensors"
    whole = path.read_bytes()
    weights = load_file(path)
    about = {"format": "pt", "pooling": "attention", "head": "mlp"}

    def refused(message: str) -> None:
        with pytest.raises(PalateError, match=message):
            palate.load(directory)

    save_file({**weights, "query": weights["query"] + 0.1}, path, metadata=about)
    refused(r": weights changed since")
    narrow = {"weight": torch.ones(1, 8)}
    save_file(narrow, path, metadata={**about, "pooling": "mean", "head": "linear"})
    refused(r"reads states of width 8, the body gives 32; .*don't belong together")
    faults: list[tuple[dict[str, torch.Tensor], dict[str, str]]] = [
        (weights, {**about, "pooling": "median"}),
        (weights, {**about, "head": "linear"}),
        (weights, {**about, "pooling": "mean"}),
        ({n: t for n, t in weights.items() if n != "query"}, about),
        (weights, {"format": "pt"}),
    ]
    for tensors, metadata in faults:
        save_file(tensors, path, metadata=metadata)
        refused(r"reward_head\.safetensors: damaged.*get the file again")
    path.write_bytes(whole[:-20])
    refused(r"reward_head\.safetensors: damaged.*get the file again")
    path.unlink()
    refused(r"reward_head\.safetensors is missing; get the file again")
    path.write_bytes(whole)
    palate.load(directory)


ASKED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"pooling": "mean"}, r"a reward model with pooling last; body\.pooling mean would need"),
    ({}, {"head": "mlp"}, r"a reward model with head linear; body\.head mlp would need"),
    ({"pooling": "mean"}, {"pooling": "last"}, r"with pooling mean; body\.pooling last would need"),
    ({"head": "mlp", "head_width": 5}, {"head": "linear"}, r"with head mlp; body\.head linear"),
    (
        {"head": "mlp", "head_width": 5},
        {"head": "mlp", "head_width": 6},
        r"with head_width 5; body\.head_width 6",
    ),
]


@pytest.mark.parametrize(("form", "asked", "message"), ASKED)
@pytest.mark.parametrize("for_training", [False, True])
def test_a_trained_head_is_never_replaced(
    for_training: bool, form: dict[str, Any], asked: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """Another pooling or head than the checkpoint's is refused, its own accepted by name; a warm
    start goes on from its rewards."""
    scorer = train_form(tmp_path, "llama", form)
    name = str(tmp_path / "model")
    with pytest.raises(PalateError, match=message + r".*start from a model without a reward head"):
        load_model(name, BodySettings(**asked), for_training=for_training)
    for settings in (BodySettings(), BodySettings(**form)):
        warm = load_model(name, settings, for_training=for_training)
        assert warm.has_trained_head
        renderer = Renderer(warm.tokenizer, scorer.renderer.lengths)
        assert ours(Scorer(warm.model, renderer)) == pytest.approx(ours(scorer), abs=TOLERANCE)


def test_settings_of_the_head_without_effect_are_refused() -> None:
    with pytest.raises(PalateError, match=r"body\.head_width is -1, must be 0 or more"):
        BodySettings(head="mlp", head_width=-1)
    for head in ("auto", "linear"):
        with pytest.raises(
            PalateError, match=rf"head_width 8 has no effect with body\.head {head}"
        ):
            BodySettings(head=head, head_width=8)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["llama", "granite"])
def test_the_first_token_of_a_causal_body_is_no_pooling(kind: str, tmp_path: Path) -> None:
    with pytest.raises(PalateError, match=rf"{kind} is a causal body .*set body\.pooling to last"):
        load_model(save_tiny(tmp_path, kind), BodySettings(pooling="cls"), for_training=True)


def test_a_sharded_reward_model_loads(tmp_path: Path) -> None:
    sharded(tmp_path)
    assert ours(palate.load(tmp_path)) == pytest.approx(plain(tmp_path), abs=TOLERANCE)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no such place", "/no/such/place"])
def test_a_name_that_is_neither_here_nor_reachable_is_refused_at_once(name: str) -> None:
    start = time.monotonic()
    with pytest.raises(PalateError, match=rf"^{name}: .*(hub cannot be reached|no such directory)"):
        palate.load(name)
    assert time.monotonic() - start < 10


@contextmanager
def files_of_at_most(num_bytes: int) -> Any:
    """Writes past this size fail in the kernel, in Python and in safetensors alike."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)


@pytest.mark.parametrize("num_bytes", [100, 50_000])
def test_a_write_that_fails_leaves_the_old_checkpoint_whole(
    num_bytes: int, checkpoint: Path
) -> None:
    """After 100 bytes the configuration fails, after 50,000 the weights."""
    scorer = palate.load(checkpoint)
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    with files_of_at_most(num_bytes), pytest.raises(PalateError, match=r"model: cannot write: "):
        save_checkpoint(checkpoint, scorer.model, scorer.renderer)
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
    assert {path.name for path in checkpoint.parent.iterdir()} == {"body", "model"}


@pytest.mark.parametrize("error", [28, 122])
def test_a_full_disk_is_called_that(
    error: int, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No space left on device (28) and quota exceeded (122), as safetensors and Python report."""
    scorer = palate.load(checkpoint)
    words = {28: "No space left on device", 122: "Disk quota exceeded"}[error]

    def python_error(*_: Any, **__: Any) -> None:
        raise OSError(error, words)

    class SafetensorError(Exception):
        pass

    def rust_error(*_: Any, **__: Any) -> None:
        raise SafetensorError(f"Error while serializing: I/O error: {words} (os error {error})")

    for full in (python_error, rust_error):
        with monkeypatch.context() as disk:
            disk.setattr("transformers.modeling_utils.safe_save_file", full)
            with pytest.raises(PalateError, match=r"cannot write: .*free space"):
                save_checkpoint(checkpoint, scorer.model, scorer.renderer)


def test_a_checkpoint_can_be_moved_and_copied(checkpoint: Path, tmp_path: Path) -> None:
    """Nothing in it points to where it was written."""
    scorer = palate.load(checkpoint)
    shutil.rmtree(tmp_path / "body")
    moved = tmp_path / "elsewhere" / "another name"
    moved.parent.mkdir()
    shutil.move(checkpoint, moved)
    assert ours(palate.load(moved)) == ours(scorer)
    for path in moved.glob("*.json"):
        assert str(tmp_path) not in path.read_text(), path.name


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_what_servers_read_from_the_configuration_is_there(kind: str, tmp_path: Path) -> None:
    """One label and `regression`, so that no sigmoid is applied; a pad; a class name of theirs; and
    no stored truncation, padding, or second set of special tokens."""
    tokenizer = word_piece_tokenizer() if kind == "bert" else byte_tokenizer(pad="<|im_end|>")
    scorer = train_nothing(
        tmp_path / "model", save_tiny(tmp_path / "body", kind, tokenizer=tokenizer)
    )
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert len(config["id2label"]) == 1
    assert config["problem_type"] == "regression"
    assert config["pad_token_id"] == scorer.renderer.pad_id != scorer.renderer.end_of_turn_id
    assert config["architectures"] == [f"{kind.capitalize()}ForSequenceClassification"]
    stored = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    assert stored["truncation"] is stored["padding"] is None
    assert not (stored["post_processor"] or {}).get("special_tokens")
    assert not list((tmp_path / "model").glob("*.bin"))


BODY_CODE = """
from torch import nn
from transformers import LlamaConfig, LlamaModel, LlamaPreTrainedModel


class AbacusConfig(LlamaConfig):
    model_type = "abacus"


class AbacusModel(LlamaModel):
    config_class = AbacusConfig
"""
CLASSIFIER_CODE = """

class AbacusForSequenceClassification(LlamaPreTrainedModel):
    config_class = AbacusConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = AbacusModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()
"""


def save_with_code(directory: Path, classifier: bool) -> str:
    """A Llama under a name of its own, with its classes in `code.py` beside it."""
    save_tiny(directory)
    auto_map = {"AutoConfig": "code.AbacusConfig", "AutoModel": "code.AbacusModel"}
    if classifier:
        auto_map["AutoModelForSequenceClassification"] = "code.AbacusForSequenceClassification"
    edit_json(directory / "config.json", model_type="abacus", auto_map=auto_map)
    (directory / "code.py").write_text(BODY_CODE + CLASSIFIER_CODE * classifier)
    return str(directory)


@pytest.mark.parametrize("classifier", [True, False])
def test_code_of_a_checkpoints_own_runs_from_training_to_scores(
    classifier: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The saved run has the code beside its weights, and needs the base no more. Without leave
    nothing of it is run."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    body = save_with_code(tmp_path / "body", classifier)
    data = write_rows(tmp_path / "pairs.jsonl", pair_rows(20))
    settings = BodySettings(trust_remote_code=True, head_init="normal")
    config = quick_config(
        tmp_path, model=body, data=data, body=settings, training=quick_training(max_steps=1)
    )
    trained = palate.train(config).scorer
    assert trained is not None
    shutil.rmtree(body)
    run = tmp_path / "run"
    assert (run / "model" / "code.py").exists()
    expected = trained.score("A question", "An answer")
    again = palate.load(run, trust_remote_code=True)
    assert again.score("A question", "An answer") == pytest.approx(expected, abs=TOLERANCE)
    if classifier:
        plain = AutoModelForSequenceClassification.from_pretrained(
            run / "model", trust_remote_code=True
        )
        assert type(plain).__name__ == "AbacusForSequenceClassification"
        assert type(plain).__module__.startswith("transformers_modules.model."), "not the base's"
        assert torch.equal(plain.score.weight, trained.model.head.weight)

    refusal = "code of its own"
    scored = {"data": str(tmp_path / "rows.jsonl"), "output": str(tmp_path / "scores.jsonl")}
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "A question", "response": "An answer"}])
    with pytest.raises(PalateError, match=refusal):
        evaluate(EvaluateConfig(model=str(run), data=data, output="none"))
    with pytest.raises(PalateError, match=refusal):
        score_file(ScoreConfig(model=str(run), **scored))
    measured = evaluate(
        EvaluateConfig(
            model=str(run),
            data=data,
            part="test",
            trust_remote_code=True,
            quick=True,
            output="none",
        )
    )
    assert measured.num_prompts + measured.num_elsewhere == 20
    score_file(ScoreConfig(model=str(run), trust_remote_code=True, **scored))
    (row,) = map(json.loads, (tmp_path / "scores.jsonl").read_text().splitlines())
    assert row["reward"] == pytest.approx(expected, abs=TOLERANCE)
    texts = ["A question", "An answer", "Another"]
    for verb in ("rank", "compare"):
        assert main([verb, str(run), *texts]) != 0
        assert refusal in capsys.readouterr().err
        assert main([verb, str(run), *texts, "--trust-remote-code", "--json"]) == 0
        json.loads(capsys.readouterr().out)
