"""What a tokenizer's limits would do to a source."""

from collections import Counter
from dataclasses import dataclass, field

from transformers import AutoConfig

from palate.artifacts.hub import model_directory
from palate.errors import PalateError
from palate.model.loading import load_tokenizer
from palate.model.selfcheck import max_positions
from palate.model.settings import BodySettings
from palate.pipeline.inspection.texts import Lengths, LengthTally
from palate.preferences import PreferenceGroup
from palate.rendering import LengthSettings, Renderer
from palate.rendering.renderer import common_prefix_length


@dataclass(frozen=True)
class TokenFacts:
    """Lengths in tokens under the tokenizer's template, and what the default limits would cost."""

    max_prompt_tokens: int
    max_response_tokens: int
    prompt_tokens: Lengths | None
    answer_tokens: Lengths | None
    """End-of-turn token included."""
    num_prompts_cut: int
    num_answers_left_out: int
    num_groups_left_out: int
    """Left without a comparison, or with a prompt that can't be cut."""
    num_comparisons_left_out: int
    longer_won_of_left_out: float | None
    """Share of the comparisons left out that the longer answer had won."""


@dataclass
class TokenTally:
    renderer: Renderer
    prompts: LengthTally = field(default_factory=LengthTally)
    answers: LengthTally = field(default_factory=LengthTally)
    counts: Counter[str] = field(default_factory=Counter)
    num_longer_won: float = 0.0

    def add(self, group: PreferenceGroup) -> None:
        renderer, rest = self.renderer, (group.tools, group.template_arguments)
        self.prompts.add(len(renderer.encode_prompt(group.prompt, *rest)))
        try:
            prompt, num_cut = renderer.cut_prompt(group.prompt, *rest)
        except PalateError:  # its fixed parts alone are too long
            self.counts["groups"] += 1
            self.counts["comparisons"] += len(group.comparisons)
            return
        self.counts["cut"] += num_cut > 0
        prompt_ids = renderer.encode_prompt(prompt, *rest)
        over = set()
        for index, response in enumerate(group.responses):
            ids, num_over = renderer.response_ids(prompt, response, prompt_ids, *rest)
            self.answers.add(len(ids) - common_prefix_length([ids, prompt_ids]) + num_over)
            if num_over:
                over.add(index)
        self.counts["answers"] += len(over)
        lost = [c for c in group.comparisons if c.better in over or c.worse in over]
        self.counts["groups"] += len(lost) == len(group.comparisons)
        self.counts["comparisons"] += len(lost)
        for c in lost:
            gap = len(group.responses[c.better].text) - len(group.responses[c.worse].text)
            self.num_longer_won += ((gap > 0) - (gap < 0) + 1) / 2

    def facts(self) -> TokenFacts:
        lengths, counts = self.renderer.lengths, self.counts
        lost = counts["comparisons"]
        return TokenFacts(
            lengths.max_prompt_tokens,
            lengths.max_response_tokens,
            self.prompts.facts(),
            self.answers.facts(),
            counts["cut"],
            counts["answers"],
            counts["groups"],
            lost,
            self.num_longer_won / lost if lost else None,
        )


def token_tally(name: str) -> TokenTally:
    """Counts under the tokenizer of a checkpoint (directory or hub id) and its default limits.

    Without a config.json beside the tokenizer the limits are those of a body of any length.
    """
    directory = model_directory(name)
    settings = BodySettings()
    tokenizer = load_tokenizer(name, directory, settings)
    positions = None
    if (directory / "config.json").exists():
        positions = max_positions(
            AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        )
    return TokenTally(Renderer(tokenizer, LengthSettings().resolved(positions)))
