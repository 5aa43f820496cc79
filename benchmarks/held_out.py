"""What the benchmarks share: a trained model's rewards on the prompts that it never saw."""

from collections.abc import Sequence

import numpy as np

from palate.artifacts.ledger import Ledger
from palate.evaluation.outcomes import Outcome
from palate.pipeline.config import TrainConfig
from palate.pipeline.prepare import divide, read_sources
from palate.rendering import render_groups
from palate.scoring.runs import rewards_of_groups
from palate.scoring.scorer import Scorer

NUM_BINS = 10
TOKENS_PER_MICROBATCH = 2048


def test_outcomes(config: TrainConfig, scorer: Scorer, ledger: Ledger) -> list[Outcome]:
    """The test part's groups with their rewards; what rendering leaves out goes to the ledger."""
    parts, _ = divide(read_sources(config.inputs, config.read).groups, config.split)
    groups = render_groups(parts["test"], scorer.renderer, ledger)
    sequences = [group.sequences for group in groups]
    rewards = rewards_of_groups(
        scorer.model, sequences, TOKENS_PER_MICROBATCH, scorer.renderer.pad_id
    )
    return [Outcome(group, rewards[index]) for index, group in enumerate(groups)]


def calibration_error(outcomes: Sequence[Outcome]) -> float:
    """Mean gap between predicted and voted probability in ten bins of equal weight (ECE)."""
    rows = [
        (
            1 / (1 + np.exp(o.reward_N[c.worse] - o.reward_N[c.better])),
            (1 - c.tie) * c.probability + c.tie / 2,
            c.weight / len(o.group.comparisons),
        )
        for o in outcomes
        for c in o.group.comparisons
    ]
    # Each comparison from both sides: which of the two stands first must not matter.
    both = np.array(rows + [(1 - p, 1 - target, weight) for p, target, weight in rows])
    both = both[np.argsort(both[:, 0], kind="stable")]
    bins = (np.cumsum(both[:, 2]) / both[:, 2].sum() * NUM_BINS * (1 - 1e-9)).astype(int)
    gaps = [
        abs(np.average(both[bins == b, 0] - both[bins == b, 1], weights=both[bins == b, 2]))
        for b in np.unique(bins)
    ]
    return float(np.mean(gaps))
