"""Rewards for texts: the one path from a prompt and an answer to a number.

Legend: N sequences.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch

from palate.errors import PalateError
from palate.forest.tree import Ids
from palate.model.checkpoint import SIDECAR, Sidecar, check_fingerprint, read_sidecar, renderer_for
from palate.model.faster import check_on_device
from palate.model.guards import check_model, check_rendering
from palate.model.loading import load_model
from palate.model.prompt_cache import PromptCache, can_cache
from palate.model.quantization import Quantization
from palate.model.reward_model import RewardModel
from palate.model.selfcheck import check_positions, tolerance
from palate.model.settings import BodySettings
from palate.preferences.formats.fields import messages_of
from palate.preferences.types import Message, Response, ScoringItem
from palate.rendering import Renderer
from palate.scoring.grouping import families, groups_by_opening
from palate.scoring.length_correction import LengthCorrection
from palate.scoring.runs import rewards_of_groups

DEFAULT_TOKENS_PER_MICROBATCH = 8192
RENDERING_PARTS = frozenset({"template", "special_tokens", "tokenizer"})
"""Parts of a checkpoint that decide token ids, as `allow_changed` names them."""
Prompt = str | Sequence[Mapping[str, Any] | Message]


@dataclass(frozen=True)
class Ranked:
    """One answer in a ranking; `index` is its place in the list given."""

    index: int
    reward: float
    support_distance: float | None = None
    """How far its pooled state lies from the training data; None when that was not fitted."""


class Scorer:
    """A loaded reward model: `score`, `rank`, `compare`, and `score_items` for many at once."""

    def __init__(
        self,
        model: RewardModel,
        renderer: Renderer,
        sidecar: Sidecar | None = None,
        tokens_per_microbatch: int = DEFAULT_TOKENS_PER_MICROBATCH,
    ) -> None:
        if tokens_per_microbatch < 1:
            raise PalateError(
                f"tokens_per_microbatch is {tokens_per_microbatch}, must be 1 or more"
            )
        self.model = model.eval()
        self.renderer = renderer
        self.sidecar = sidecar
        self.length_correction: LengthCorrection | None = None
        """What texts' rewards lose by their length; token ids are scored without it."""
        self.tokens_per_microbatch = tokens_per_microbatch

    @property
    def temperature(self) -> float:
        """Divides margins before they become probabilities; 1 when none was fitted."""
        if self.length_correction is not None:
            return self.length_correction.temperature
        stored = self.sidecar.temperature if self.sidecar else None
        return float(stored["value"]) if stored else 1.0

    def score(self, prompt: Prompt, response: str) -> float:
        """The reward of one answer; only differences within a prompt mean anything."""
        return self.score_items([scoring_item(prompt, response)])[0]

    def rank(self, prompt: Prompt, responses: Sequence[str]) -> list[Ranked]:
        """The answers, best first; equal rewards keep the order given."""
        rewards = self.score_items([scoring_item(prompt, text) for text in responses])
        order = sorted(range(len(rewards)), key=lambda index: -rewards[index])
        return [Ranked(index, rewards[index]) for index in order]

    def compare(self, prompt: Prompt, first: str, second: str) -> float:
        """Probability that `first` is preferred: s(reward difference / temperature)."""
        a, b = self.score_items([scoring_item(prompt, text) for text in (first, second)])
        return 1 / (1 + math.exp(min(700.0, -(a - b) / self.temperature)))

    def score_items(self, items: Sequence[ScoringItem]) -> list[float]:
        """Rewards in the order of the items; short answers share the computation of their prompt.

        Raises PalateError for an item that can't be rendered (`render` finds them one by one).
        """
        rewards = self.score_ids([self.render(item)[0] for item in items])
        if self.length_correction is None:
            return rewards
        taken = self.length_correction.of_texts([item.response.text for item in items])
        return [reward - float(part) for reward, part in zip(rewards, taken, strict=True)]

    def render(self, item: ScoringItem) -> tuple[tuple[int, ...], int]:
        """Token ids of an item, and how many tokens were cut from its prompt and answer."""
        prompt, num_cut = self.renderer.cut_prompt(item.prompt, item.tools, item.template_arguments)
        prompt_ids = self.renderer.encode_prompt(prompt, item.tools, item.template_arguments)
        ids, num_over = self.renderer.response_ids(
            prompt, item.response, prompt_ids, item.tools, item.template_arguments
        )
        if num_over and self.renderer.lengths.overlong != "cut":
            limit = self.renderer.lengths.max_response_tokens
            raise PalateError(
                f"the response has {limit + num_over} tokens, the model was trained with at most"
                f" {limit}; shorten it, or use `palate score --overlong cut`",
                "over-long response",
            )
        return ids, num_cut + num_over

    def score_ids(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Rewards of token-id sequences, scored as given; equal prefixes are found and shared.

        Equal sequences are computed once, so their rewards are equal to the last bit.
        """
        distinct = sorted({tuple(ids) for ids in sequences})
        rewards = self._rewards(distinct)
        reward_of = dict(zip(distinct, rewards, strict=True))
        return [reward_of[tuple(ids)] for ids in sequences]

    def _rewards(self, ordered: Sequence[Ids]) -> list[float]:
        """Of distinct sequences in dictionary order."""
        budget = self.tokens_per_microbatch
        if self.model.layout == "rows":
            return self._of_groups([[ids] for ids in ordered])
        groups = groups_by_opening(ordered, budget)
        found = families(groups, budget)
        if all(not family.prompt for family in found) or not can_cache(self.model):
            return self._of_groups(groups)
        alone = iter(self._of_groups([f.groups[0] for f in found if not f.prompt]))
        rewards: list[float] = []
        for family in found:
            if family.prompt:
                with self.model.scoring_mode():
                    prompt = PromptCache(self.model, family.prompt)
                    for group in family.groups:
                        rewards += prompt.rewards(group).tolist()
            else:
                rewards += islice(alone, len(family.groups[0]))
        return rewards

    def _of_groups(self, groups: Sequence[Sequence[Ids]]) -> list[float]:
        found = rewards_of_groups(
            self.model, groups, self.tokens_per_microbatch, self.renderer.pad_id
        )
        return [reward for group in found for reward in group.tolist()]


def scoring_item(prompt: Prompt, response: str, **fields: Any) -> ScoringItem:
    """A ScoringItem from text or messages. Raises PalateError on an empty prompt or response."""
    if isinstance(prompt, str):
        messages: tuple[Message, ...] = (Message("user", prompt),)
    else:
        plain = [turn.as_dict() if isinstance(turn, Message) else turn for turn in prompt]
        messages = messages_of(plain, "prompt")
    return ScoringItem(messages, Response(response), **fields)


def load(
    name: str | Path,
    *,
    dtype: Literal["float32", "bfloat16", "auto"] = "auto",
    device: str = "auto",
    tokens_per_microbatch: int = DEFAULT_TOKENS_PER_MICROBATCH,
    allow_changed: Iterable[str] = (),
    trust_remote_code: bool = False,
    quantization: Quantization = "none",
    guards: bool = True,
    length_calibration: bool = False,
) -> Scorer:
    """Load a palate run or any scalar reward model, from a directory or the hub.

    The template, special tokens and tokenizer must be those of the training, and stored texts must
    get their stored rewards; `allow_changed` names what may differ (template, special_tokens,
    tokenizer, weights). `quantization` puts the body's linear layers in 8 or 4 bit, which changes
    rewards, so they are not compared with the stored ones. `guards` also refuses rewards that
    depend on padding or on the pass, and doubled start tokens (docs/guards.md).
    `length_calibration` takes the stored curve of length off the rewards of texts (docs/fixes.md).
    Raises PalateError otherwise, and for checkpoints that are no scalar reward model.
    """
    settings = BodySettings(
        dtype=dtype, trust_remote_code=trust_remote_code, quantization=quantization
    )
    chosen = _find_device(device)
    loaded = load_model(str(name), settings, for_training=False, device=chosen)
    sidecar = read_sidecar(loaded.directory)
    renderer = renderer_for(loaded.tokenizer, sidecar, loaded.model)
    lengths = renderer.lengths
    check_positions(loaded.model.config, lengths.max_prompt_tokens + lengths.max_response_tokens)
    check_on_device(str(name), loaded.model.to(chosen))
    allowed = set(allow_changed)
    if sidecar is not None:
        check_fingerprint(str(name), loaded.directory, renderer, sidecar, allowed)
    if guards:
        check_model(str(name), loaded.model, renderer.pad_id)
        if not allowed & RENDERING_PARTS:  # who allows another template has it rendered as it is
            check_rendering(str(name), renderer)
    scorer = Scorer(loaded.model, renderer, sidecar, tokens_per_microbatch)
    if sidecar is not None:
        # Another template or tokenizer gives other rewards, so then they can't be compared.
        if not allowed and quantization == "none":
            _check_references(str(name), scorer, sidecar)
    elif allowed:
        raise PalateError(f"allow_changed has no effect: {name} has no {SIDECAR} to differ from")
    if length_calibration:  # after the stored rewards are checked, which are without it
        scorer.length_correction = LengthCorrection.of_sidecar(str(name), sidecar)
    return scorer


def _find_device(name: str) -> torch.device:
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        return torch.empty(0, device=chosen).device
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # torch reports a build without CUDA as the latter
        reason = str(error).splitlines()[0]
        raise PalateError(f"device {name!r} is not on this machine: {reason}; use auto") from error


def _check_references(name: str, scorer: Scorer, sidecar: Sidecar) -> None:
    limit = tolerance(scorer.model)
    for stored in sidecar.reference_scores:
        reward = scorer.score(stored["prompt"], stored["response"])
        if not abs(reward - stored["reward"]) <= limit * max(1.0, abs(stored["reward"])):
            raise PalateError(
                f"{name}: a stored text scores {reward:.4f}, at training it was"
                f" {stored['reward']:.4f}: weights or libraries changed. Restore the files, or"
                " allow it with allow_changed weights"
            )
