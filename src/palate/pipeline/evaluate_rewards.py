"""Rewards that an evaluation leaves behind, and a later one held against them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from palate.artifacts.files import describe_os_error, sha256_json
from palate.errors import PalateError
from palate.evaluation.outcomes import Outcome
from palate.evaluation.versus import Versus, versus

REWARDS = "rewards.jsonl"
NAMES = ("this evaluation", "the earlier one")


def line_of(outcome: Outcome) -> str:
    """One prompt's rewards, with a hash of what was scored, as a line of JSON."""
    group = outcome.group.group
    values = {
        "file": group.file,
        "line": group.line,
        "id": group.id,
        "content_sha256": content_hash(outcome),
        "rewards": [float(reward) for reward in outcome.reward_N],
    }
    return json.dumps(values, ensure_ascii=False) + "\n"


def content_hash(outcome: Outcome) -> str:
    """Of the prompt and the scored answers, in their order."""
    group = outcome.group.group
    texts = [group.responses[index].text for index in outcome.group.response_index]
    prompt = [[message.role, message.content] for message in group.prompt]
    return sha256_json([prompt, texts])


def against_earlier(outcomes: Sequence[Outcome], directory: Path) -> Versus:
    """The same comparisons with the rewards of an earlier evaluation. Raises PalateError where its
    rewards can't be read or are of other prompts and answers."""
    stored = _read(directory / REWARDS)
    pairs = [(o, stored[key]) for o in outcomes if (key := content_hash(o)) in stored]
    if not pairs:
        raise PalateError(
            f"{directory}: none of its {len(stored)} prompts is among these {len(outcomes)}; name"
            " an evaluation on the same data, with the same lengths"
        )
    return versus(
        [outcome for outcome, _ in pairs],
        [replace(outcome, reward_N=reward_N) for outcome, reward_N in pairs],
        NAMES,
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise describe_os_error(error, path, "read") from error
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            values = json.loads(line)
            found[values["content_sha256"]] = np.array(values["rewards"], dtype=np.float32)
        except (ValueError, KeyError, TypeError) as error:
            raise PalateError(
                f"{path}:{number}: no line of rewards ({error}); run the earlier evaluation again"
            ) from error
    return found
