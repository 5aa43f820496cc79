"""Guards of a whole reward model: made on the model itself when it is loaded, and before training.

Each raises PalateError with what was measured and its limit; docs/guards.md lists them all.

Legend: N sequences, R rows, T slots of a row, D width of the body, V values read of each sequence.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from palate.errors import PalateError
from palate.forest.plan import PADDING, Plan
from palate.forest.tree import Ids
from palate.model.heads import Head, MlpHead
from palate.model.reward_model import RewardModel
from palate.model.selfcheck import COARSE_TOLERANCE, in_words
from palate.preferences.types import Message, Response
from palate.rendering import Renderer

TEXT_LENGTHS = (2, 5, 7)
PAD_WIDTHS = (8, 13, 17)
"""Of the longer neighbours, so that every text stands beside 1 to 15 slots of padding."""
LIMIT = 1e-3
"""Largest change of a reward beside padding, in standard deviations of rewards, in float32, where
rounding gives 1e-5. Another token than the right one changes it by about one."""
LIMIT_CONTENT = 0.02
"""The same in 16 bit, where only what stands in the padding is changed: nothing else is rounded
otherwise. Beside that, rounding alone gives up to 0.1 there, and the limit is COARSE_TOLERANCE."""
LEAST_SPREAD, LEAST_SPREAD_16_BIT = 0.01, 0.1
"""A body that has lost the difference between texts differs by rounding alone: less than these
shares of a state's length are not taken for a difference."""
LIMIT_REPEAT = 0.01
"""Largest change of a reward from one pass to the same pass again, in standard deviations, on
devices that don't promise equal sums; on a CPU none at all."""
CANONICAL_CHATS = (
    ("How do birds fly?", "They push air down with their wings."),
    ("Name a tree.", "Birch."),
)


def check_model(name: str, model: RewardModel, pad_id: int) -> None:
    """Refuse a model whose rewards depend on padding, on the pass, or on a bias.

    518 token slots, 298 for models of layout `rows`, which palate never pads on the left. Raises
    PalateError.
    """
    # A compiled layer would be compiled again for shapes that training never sees.
    with torch.compiler.set_stance("force_eager"):
        check_repeats(name, model, pad_id)
        check_padding(name, model, pad_id)


def check_repeats(name: str, model: RewardModel, pad_id: int) -> None:
    """The same text twice in a batch and in two batches: the margin must be exactly 0.

    It isn't where dropout is on, or where each side of a comparison has a pass of its own in which
    something is drawn. Two rows of one batch may be summed in another order, so they are held to
    the limit of padding. Raises PalateError.
    """
    training = _in_training(model)
    if training is not None:
        raise PalateError(
            f"{name}: {training} is in training mode while texts are scored, so dropout would make"
            " rewards random; its train() or eval() does not reach all its parts"
        )
    texts = random_texts(model, pad_id)
    plan = padded_rows([*texts, texts[0]], PAD_WIDTHS[0], pad_id)
    first, again = (_read(model, plan) for _ in range(2))
    first_NV, spread_V = first.value_NV, first.spread_V
    if not torch.isfinite(first_NV).all():
        bad = next((n for n, p in model.named_parameters() if not torch.isfinite(p).all()), "")
        cause = f"its weight {bad} holds such numbers" if bad else "the body makes such numbers"
        raise PalateError(
            f"{name}: rewards are NaN or infinite: {cause}; get the checkpoint again, or load it in"
            " float32"
        )
    change = _largest(again.value_NV - first_NV, spread_V)
    if not change <= (0.0 if model.device.type == "cpu" else LIMIT_REPEAT):
        raise PalateError(
            f"{name}: the same text scored twice has two rewards, {change:.1e} standard deviations"
            " of rewards apart; the margin of a text with itself must be 0. Something is drawn at"
            " random while scoring: dropout that is left on, or a router with noise"
        )
    within = _largest(first_NV[-1:] - first_NV[:1], spread_V)
    if not within <= _limit(model):
        raise PalateError(
            f"{name}: the same text twice in one batch has two rewards, {within:.1e} standard"
            " deviations of rewards apart; a reward must not depend on its place in the batch"
        )


def check_padding(name: str, model: RewardModel, pad_id: int) -> None:
    """A text alone against the same text beside longer ones, padded on the right and on the left to
    three lengths; then the same batch with other ids in its padding. One text holds the pad id.

    Left padding only where our positions reach the body (layout `tree`). Raises PalateError, naming
    side, length and the change.
    """
    texts = random_texts(model, pad_id)
    alone = [_read(model, padded_rows([ids], len(ids), pad_id)) for ids in texts]
    alone_NV = torch.cat([reading.value_NV for reading in alone])
    for left in (False, True) if model.layout == "tree" else (False,):
        for width in PAD_WIDTHS:
            plan = padded_rows([*texts, random_ids(model, width, pad_id)], width, pad_id, left)
            beside = _read(model, plan)
            where = f"padded on the {'left' if left else 'right'} to {width} tokens"
            change = _largest(beside.value_NV[:-1] - alone_NV, beside.spread_V)
            _refuse(name, change, _limit(model), where, "the wrong token is read")
        other_id = 4 if pad_id == 3 else 3
        other_ids_RT = np.where(plan.reach_RT == PADDING, other_id, plan.input_ids_RT)
        other = replace(plan, input_ids_RT=other_ids_RT)
        change = _largest(_read(model, other).value_NV - beside.value_NV, beside.spread_V)
        where += " with other ids in the padding"
        cause = "padding is seen, or the end is found by the pad's id"
        _refuse(name, change, _limit(model, LIMIT_CONTENT), where, cause)


def _refuse(name: str, change: float, limit: float, where: str, cause: str) -> None:
    if not change <= limit:
        raise PalateError(
            f"{name}: a text's reward changes by {change:.1e} standard deviations of rewards when"
            f" it is {where} (limit {limit:g}): {cause}. Don't use these rewards; choose another"
            " body or body.pooling"
        )


def check_head(name: str, model: RewardModel) -> None:
    """Refuse a head with an offset where it is to be trained: comparisons give it no gradient, so
    what it holds is noise.

    The bias of an encoder's own class stays: new heads have it at zero, a warm start keeps what its
    authors left there, and neither is trained. Raises PalateError.
    """
    bias = last_layer(model.head).bias
    if bias is None:
        return
    value = float(bias.detach().abs().max()) if bias.numel() else 0.0
    if bias.requires_grad:
        raise PalateError(
            f"{name}: the head has a bias ({value:g}) that would be trained, and comparisons give"
            " it no gradient; make the head nn.Linear(width, 1, bias=False)"
        )
    if value and model.pooling != "cls":
        raise PalateError(
            f"{name}: the head has a bias of {value:g}, which plain classes drop when they load a"
            " head that reads the last token; set it to 0, which changes no comparison"
        )


def last_layer(head: Head) -> torch.nn.Linear:
    """The layer that prints the reward."""
    return head.out if isinstance(head, MlpHead) else head


def check_rendering(name: str, renderer: Renderer) -> None:
    """Refuse a renderer that begins a chat with two start tokens or loses the end of the turn.

    Raises PalateError. Chats that the template refuses are left out: it may ask for other turns.
    """
    for prompt, answer in CANONICAL_CHATS:
        turns = (Message("user", prompt),)
        try:
            prompt_ids = renderer.encode_prompt(turns)
            ids, num_over = renderer.response_ids(turns, Response(answer), prompt_ids)
        except PalateError:
            continue
        reason = why_not_rendered(ids, renderer, is_whole=not num_over)
        if reason is not None:
            raise PalateError(f"{name}: {reason}")


def why_not_rendered(ids: Sequence[int], renderer: Renderer, is_whole: bool) -> str | None:
    """What is wrong with the ids of a chat, in words; None when nothing is.

    `is_whole`: the answer is finished and nothing of it was cut, so it ends with its end of turn.
    Templates that were kept as others trained with them end as they do.
    """
    start = renderer.tokenizer.bos_token_id
    if start is None:
        start = renderer.tokenizer.cls_token_id
    # Some templates begin every turn with the start token, so only its run at the start counts.
    if start is not None and list(ids[:2]) == [start, start]:
        token = renderer.tokenizer.convert_ids_to_tokens(start)
        return (
            f"a text begins with {token} twice: the template writes it and the tokenizer adds it"
            " again. Tokenise with add_special_tokens=False, or take it out of the template"
        )
    if is_whole and not renderer.keep_template and ids[-1] != renderer.end_of_turn_id:
        token = renderer.tokenizer.convert_ids_to_tokens(ids[-1])
        return (
            f"a finished answer ends with {token!r} and not with its end of turn"
            f" {renderer.end_of_turn!r}, which is the token that is read; the template or the"
            " tokenizer is not the one that the renderer was made with"
        )
    return None


def random_texts(model: RewardModel, pad_id: int) -> list[list[int]]:
    """A few short texts, the same at every call; the last holds the pad id inside."""
    texts = [random_ids(model, length, pad_id) for length in TEXT_LENGTHS]
    texts[-1][2] = pad_id
    return texts


def random_ids(model: RewardModel, count: int, pad_id: int) -> list[int]:
    """Ids other than the pad, the same at every call."""
    random = np.random.default_rng(count)
    top = max(5, min(getattr(model.config.get_text_config(), "vocab_size", 1000), 1000))
    return [int(i) + (int(i) == pad_id) for i in random.integers(3, top - 1, size=count)]


def padded_rows(sequences: Sequence[Ids], width: int, pad_id: int, left: bool = False) -> Plan:
    """Each sequence in a row of `width` slots, padded on one side.

    On the left as a tree, so that positions are handed to the body: its own would count padding.
    """
    shape = (len(sequences), width)
    ids_RT = np.full(shape, pad_id, dtype=np.int64)
    position_RT = np.zeros(shape, dtype=np.int64)
    reach_RT = np.full(shape, PADDING, dtype=np.int64)
    starts = [width - len(sequence) if left else 0 for sequence in sequences]
    for row, (start, sequence) in enumerate(zip(starts, sequences, strict=True)):
        stop = start + len(sequence)
        ids_RT[row, start:stop] = sequence
        position_RT[row, start:stop] = np.arange(len(sequence))
        reach_RT[row, start:stop] = stop
    return Plan(
        layout="tree" if left else "rows",
        input_ids_RT=ids_RT,
        position_RT=position_RT,
        reach_RT=reach_RT,
        end_row_N=np.arange(len(sequences)),
        end_column_N=np.array(
            [start + len(sequence) - 1 for start, sequence in zip(starts, sequences, strict=True)]
        ),
        groups=tuple(range(len(sequences))),
    )


class _Reading(NamedTuple):
    """What a batch is read as: by the model's own head, and by a fixed random one, since a new head
    reads nothing."""

    value_NV: Tensor
    """float64."""
    spread_V: Tensor
    """Standard deviation over the texts, no less than `LEAST_SPREAD` of what states of their length
    would differ by if they had nothing in common."""


def _read(model: RewardModel, plan: Plan) -> _Reading:
    """Raises PalateError where the body fails: it is the code of others."""
    try:
        with model.scoring_mode():
            reward_N, hidden_ND, *_ = model.run(plan)
    except Exception as error:
        raise PalateError(
            f"{model.config.model_type}: fails on a padded batch: {in_words(error)}"
        ) from error
    hidden_ND = hidden_ND.cpu().double()
    width = hidden_ND.shape[1]
    generator = torch.Generator().manual_seed(0)
    probe_D = torch.randn(width, generator=generator, dtype=torch.float64)
    value_NV = torch.stack([reward_N.cpu().double(), hidden_ND @ probe_D], dim=1)
    # Of a head of several layers the product of their norms, which is no less than its slope.
    slope = math.prod(
        float(weight.detach().norm()) for weight in model.head.parameters() if weight.ndim > 1
    )
    slope_V = torch.tensor([slope, float(probe_D.norm())], dtype=torch.float64) / width**0.5
    share = LEAST_SPREAD if _is_exact(model) else LEAST_SPREAD_16_BIT
    floor_V = share * hidden_ND.norm(dim=1).mean() * slope_V + 1e-30
    return _Reading(value_NV, torch.maximum(value_NV.std(dim=0, correction=0), floor_V))


def _largest(change_NV: Tensor, spread_V: Tensor) -> float:
    return float((change_NV.abs() / spread_V).max())


def _limit(model: RewardModel, in_16_bit: float = COARSE_TOLERANCE) -> float:
    """In standard deviations of rewards. Routers and quantised layers turn rounding into steps."""
    if _is_exact(model):
        return LIMIT
    experts = getattr(model.config.get_text_config(), "num_experts_per_tok", None)
    return COARSE_TOLERANCE if model.quantized or experts else in_16_bit


def _is_exact(model: RewardModel) -> bool:
    return model.transformer.dtype == torch.float32 and not model.quantized


def _in_training(model: RewardModel) -> str | None:
    """A part of the model that scoring leaves in training mode."""
    with model.scoring_mode():
        names = (name for name, module in model.named_modules() if module.training)
        first = next(names, None)
    return None if first is None else first or type(model).__name__
