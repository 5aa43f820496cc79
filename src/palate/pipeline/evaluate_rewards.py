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
from palate.text import plural

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
    texts = [response.text for response in outcome.group.responses]
    prompt = [[message.role, message.content] for message in group.prompt]
    return sha256_json([prompt, texts])


def against_earlier(outcomes: Sequence[Outcome], directory: Path) -> Versus:
    """The same comparisons with the rewards of an earlier evaluation; prompts that only one of the
    two has are counted in its remark. Raises PalateError where its rewards can't be read or are of
    other prompts and answers."""
    stored = read_rewards(directory)
    num_stored = sum(map(len, stored.values()))
    pairs: list[tuple[Outcome, np.ndarray]] = []
    for outcome in outcomes:
        waiting = stored.get(content_hash(outcome))
        if not waiting:
            continue
        reward_N = waiting.pop(0)  # a prompt that stands twice: in the order of the file
        if len(reward_N) != len(outcome.reward_N):
            raise PalateError(
                f"{directory / REWARDS}: {len(reward_N)} rewards for the"
                f" {len(outcome.reward_N)} answers of {outcome.group.group.file}:"
                f"{outcome.group.group.line}; run the earlier evaluation again"
            )
        pairs.append((outcome, reward_N))
    if not pairs:
        raise PalateError(
            f"{directory}: none of its {num_stored} prompts is among these {len(outcomes)}; name"
            " an evaluation on the same data, with the same lengths"
        )
    found = versus(
        [outcome for outcome, _ in pairs],
        [replace(outcome, reward_N=reward_N) for outcome, reward_N in pairs],
        NAMES,
    )
    alone = zip(NAMES, (len(outcomes) - len(pairs), num_stored - len(pairs)), strict=True)
    said = [f"{plural(number, 'prompt')} of {name}" for name, number in alone if number]
    return replace(found, remark=f"Only one has {' and '.join(said)}." if said else "")


def read_rewards(directory: Path) -> dict[str, list[np.ndarray]]:
    """Rewards of an evaluation's prompts, by the hash of what was scored. Raises PalateError, with
    file and line, for what is no evaluation's."""
    path = directory / REWARDS
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise PalateError(
            f"{path}: no such file; name the --output of an earlier palate evaluate on preferences"
        ) from error
    except OSError as error:
        raise describe_os_error(error, path, "read") from error
    except UnicodeDecodeError as error:
        message = f"{path}: not UTF-8 ({error}); run the earlier evaluation again"
        raise PalateError(message) from error
    found: dict[str, list[np.ndarray]] = {}
    # Texts may hold characters that splitlines takes for the end of one.
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        try:
            values = json.loads(line)
            reward_N = np.array(values["rewards"], dtype=np.float32)
            if reward_N.ndim != 1 or not np.isfinite(reward_N).all():
                raise ValueError(f"rewards are {values['rewards']!r:.40}, no list of numbers")
            found.setdefault(values["content_sha256"], []).append(reward_N)
        except (ValueError, KeyError, TypeError) as error:
            raise PalateError(
                f"{path}:{number}: no line of rewards ({error}); run the earlier evaluation again"
            ) from error
    return found
