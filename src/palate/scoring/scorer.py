"""Rewards for texts: the one path from a prompt and an answer to a number.

Legend: N sequences, V values kept of each.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

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
from palate.model.support import Trust, probability_with_variance
from palate.preferences.formats.fields import messages_of
from palate.preferences.types import Message, Response, ScoringItem
from palate.rendering import Renderer
from palate.scoring.grouping import families, groups_by_opening
from palate.scoring.length_correction import LengthCorrection
from palate.scoring.states import Take, rewards_and_states, taken_of_groups
from palate.scoring.support import NOT_FITTED, Compared, Supported, stored_trust

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
    """A loaded reward model: `score`, `rank`, `compare`, and `score_items` for many at once.

    `score_with_support`, `score_items_with_support` and `compare_with_uncertainty` give a reward
    with what is needed to doubt it. They are methods of their own, since `score` and `compare` go
    on giving a float whatever was fitted.
    """

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
        self.trust: Trust | None = None
        """Support distance and the head's posterior, where they were fitted."""
        self.no_trust = NOT_FITTED
        """Why there is none."""
        self.tokens_per_microbatch = tokens_per_microbatch

    @property
    def temperature(self) -> float:
        """Divides margins before they become probabilities; 1 when none was fitted."""
        if self.length_correction is not None:
            return self.length_correction.temperature
        stored = self.sidecar.temperature if self.sidecar else None
        return float(stored["value"]) if stored else 1.0

    @property
    def is_calibrated(self) -> bool:
        """Whether `temperature` was fitted, and not to a bound of its fit."""
        if self.length_correction is not None:
            return True
        stored = self.sidecar.temperature if self.sidecar else None
        return stored is not None and not stored.get("at_bound", False)

    def score(self, prompt: Prompt, response: str) -> float:
        """The reward of one answer; only differences within a prompt mean anything."""
        return self.score_items([scoring_item(prompt, response)])[0]

    def rank(self, prompt: Prompt, responses: Sequence[str]) -> list[Ranked]:
        """The answers, best first, with their support distances where those were fitted; equal
        rewards keep the order given."""
        items = [scoring_item(prompt, text) for text in responses]
        found: list[tuple[float, float | None]]
        if self.trust is None:
            found = [(reward, None) for reward in self.score_items(items)]
        else:
            scored = self.score_items_with_support(items)
            found = [(answer.reward, answer.support_distance) for answer in scored]
        order = sorted(range(len(found)), key=lambda index: -found[index][0])
        return [Ranked(index, *found[index]) for index in order]

    def compare(self, prompt: Prompt, first: str, second: str) -> float:
        """Probability that `first` is preferred: s(reward difference / temperature)."""
        a, b = self.score_items([scoring_item(prompt, text) for text in (first, second)])
        return 1 / (1 + math.exp(min(700.0, -(a - b) / self.temperature)))

    def score_items(self, items: Sequence[ScoringItem]) -> list[float]:
        """Rewards in the order of the items; short answers share the computation of their prompt.

        Raises PalateError for an item that can't be rendered (`render` finds them one by one).
        """
        rewards = self.score_ids([self.render(item)[0] for item in items])
        return self._length_corrected(items, rewards)

    def score_with_support(self, prompt: Prompt, response: str) -> Supported:
        """The reward of one answer and its distance from the training data.

        Raises PalateError where trust was not fitted, or the model is loaded otherwise than it was.
        """
        return self.score_items_with_support([scoring_item(prompt, response)])[0]

    def score_items_with_support(self, items: Sequence[ScoringItem]) -> list[Supported]:
        """`score_with_support` of many items, in their order, at the price of `score_items`."""
        trust = self.fitted_trust()
        value_N2 = self.score_ids_with_support([self.render(item)[0] for item in items])
        rewards = self._length_corrected(items, value_N2[:, 0].tolist())
        return [
            Supported(reward, distance, trust.beyond(distance))
            for reward, distance in zip(rewards, value_N2[:, 1].tolist(), strict=True)
        ]

    def compare_with_uncertainty(self, prompt: Prompt, first: str, second: str) -> Compared:
        """`compare` with the variance of the margin that the training data leave to the head.

        Raises PalateError where trust was not fitted, the model is loaded otherwise than it was, or
        its head is not linear.
        """
        trust = self.fitted_trust()
        items = [scoring_item(prompt, text) for text in (first, second)]
        ids = [self.render(item)[0] for item in items]
        value_2V = self.read_ids(ids, rewards_and_states(self.model)).astype(np.float64)
        a, b = self._length_corrected(items, value_2V[:, 0].tolist())
        state_2D = value_2V[:, 1:]
        variance = float(trust.variances(state_2D[:1] - state_2D[1:])[0])
        distance_a, distance_b = trust.distances(state_2D).tolist()
        return Compared(
            probability_with_variance(a - b, variance, self.temperature),
            a - b,
            math.sqrt(variance),
            (distance_a, distance_b),
        )

    def fitted_trust(self) -> Trust:
        """`trust`; PalateError, with the reason, where there is none."""
        if self.trust is None:
            raise PalateError(f"no support distance and no uncertainty of rewards: {self.no_trust}")
        return self.trust

    def _length_corrected(
        self, items: Sequence[ScoringItem], rewards: Sequence[float]
    ) -> list[float]:
        if self.length_correction is None:
            return [*rewards]
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
        rewards: list[float] = self.read_ids(sequences, self.model.reward_of).tolist()
        return rewards

    def score_ids_with_support(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """The rewards of `score_ids`, to the last bit, and beside them the support distances; N 2,
        float64.

        Raises PalateError where trust was not fitted, or the model is loaded otherwise than it was.
        """
        trust = self.fitted_trust()

        def reward_and_distance(hidden_ND: Tensor) -> Tensor:
            distance_N = torch.from_numpy(trust.distances(hidden_ND.cpu().numpy()))
            return torch.stack([self.model.reward_of(hidden_ND).cpu().double(), distance_N], dim=1)

        return self.read_ids(sequences, reward_and_distance)

    def read_ids(self, sequences: Sequence[Sequence[int]], take: Take) -> np.ndarray:
        """What `take` keeps of the sequences' pooled states, in their order (N, or N V)."""
        if not sequences:
            return np.zeros((0, 2))
        distinct = sorted({tuple(ids) for ids in sequences})
        value = np.concatenate(self._read(distinct, take))
        place_of = {ids: place for place, ids in enumerate(distinct)}
        found: np.ndarray = value[[place_of[tuple(ids)] for ids in sequences]]
        return found

    def _read(self, ordered: Sequence[Ids], take: Take) -> list[np.ndarray]:
        """Of distinct sequences in dictionary order, in pieces."""
        budget = self.tokens_per_microbatch
        if self.model.layout == "rows":
            return self._of_groups([[ids] for ids in ordered], take)
        groups = groups_by_opening(ordered, budget)
        found = families(groups, budget)
        if all(not family.prompt for family in found) or not can_cache(self.model):
            return self._of_groups(groups, take)
        alone = iter(self._of_groups([f.groups[0] for f in found if not f.prompt], take))
        pieces: list[np.ndarray] = []
        for family in found:
            if family.prompt:
                with self.model.scoring_mode():
                    prompt = PromptCache(self.model, family.prompt)
                    for group in family.groups:
                        pieces.append(take(prompt.states(group)).cpu().numpy())
            else:
                pieces.append(next(alone))
        return pieces

    def _of_groups(self, groups: Sequence[Sequence[Ids]], take: Take) -> list[np.ndarray]:
        return taken_of_groups(
            self.model, groups, self.tokens_per_microbatch, self.renderer.pad_id, take
        )


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
    Stored support distances and uncertainty (docs/trust.md) come with it, unless the weights may
    differ, are quantised, or have another dtype than they were fitted in.
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
            _check_references(str(name), scorer)
    elif allowed:
        raise PalateError(f"allow_changed has no effect: {name} has no {SIDECAR} to differ from")
    if sidecar is not None:
        may_differ = "weights" in allowed or quantization != "none"
        found = stored_trust(loaded.model, loaded.directory, sidecar, may_differ)
        scorer.trust, scorer.no_trust = found
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


def changed_reference(scorer: Scorer) -> tuple[float, float] | None:
    """Rewards, now and at training, of the first stored text on which they differ by more than the
    dtype's rounding; None where all agree or none are stored."""
    limit = tolerance(scorer.model)
    for stored in scorer.sidecar.reference_scores if scorer.sidecar else ():
        item = scoring_item(stored["prompt"], stored["response"])
        (reward,) = scorer.score_ids([scorer.render(item)[0]])
        if not abs(reward - stored["reward"]) <= limit * max(1.0, abs(stored["reward"])):
            return reward, float(stored["reward"])
    return None


def _check_references(name: str, scorer: Scorer) -> None:
    changed = changed_reference(scorer)
    if changed is not None:
        raise PalateError(
            f"{name}: a stored text scores {changed[0]:.4f}, at training it was {changed[1]:.4f}:"
            " weights or libraries changed. Restore the files, or allow it with allow_changed"
            " weights"
        )
