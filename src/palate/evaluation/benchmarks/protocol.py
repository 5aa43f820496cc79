"""How a benchmark was run: all that can change a score, so that a number can be had again."""

from collections.abc import Sequence
from typing import Any

from palate.artifacts.hub import model_directory
from palate.artifacts.rundir import versions
from palate.evaluation.benchmarks.items import Benchmark, ScoredItem, hash_of_items
from palate.evaluation.benchmarks.lengths import LengthPolicy
from palate.evaluation.benchmarks.reading import DEFINITIONS
from palate.model.checkpoint import weights_hash
from palate.scoring.scorer import Scorer

NUM_MUST_TIE = "num_items_with_one_text_as_both"


def protocol_of_data(benchmark: Benchmark) -> dict[str, Any]:
    """Which benchmark, by which version of its rules, on which data."""
    return {
        "benchmark": benchmark.name,
        "scorer_version": DEFINITIONS[benchmark.name].version,
        "data_sha256": dict(benchmark.data_sha256),
        "items_sha256": hash_of_items([item.content_sha256 for item in benchmark.items]),
        NUM_MUST_TIE: sum(item.must_tie for item in benchmark.items),
        "versions": versions(),
    }


def protocol_of_model(
    scorer: Scorer, name: str, policy: LengthPolicy, directory: str = ""
) -> dict[str, Any]:
    """Which model, how it was loaded, and how texts became token ids.

    `directory` is where it was loaded from, if `name` does not say that.
    """
    model = scorer.model
    fingerprint: dict[str, Any] = scorer.renderer.fingerprint()
    if scorer.sidecar is not None:
        fingerprint["weights"] = scorer.sidecar.fingerprint.get("weights")
    elif directory or name:
        fingerprint["weights"] = weights_hash(model_directory(directory or name)) or None
    return {
        "model": name,
        "fingerprint": fingerprint,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "quantized": model.quantized,
        "device": model.device.type,
        "attention_implementation": str(model.config._attn_implementation).removeprefix("palate_"),
        "tree_attention": model.attention,
        "layout": model.layout,
        "pooling": model.pooling,
        "length_calibration": scorer.length_correction is not None,
        "max_tokens": policy.limit(scorer),
        "overlong": policy.overlong,
        "truncation": "prompt: oldest turns, then the start of the last; answer: the end",
        "padding": "right, never read by a reward",
        "tokens_per_microbatch": scorer.tokens_per_microbatch,
    }


def protocol_of_cuts(items: Sequence[ScoredItem]) -> dict[str, int]:
    """How many items were cut, and how many tokens were lost."""
    return {
        "num_items": len(items),
        "num_prompts_cut": sum(item.num_prompt_tokens_cut > 0 for item in items),
        "num_prompt_tokens_cut": sum(item.num_prompt_tokens_cut for item in items),
        "num_items_with_cut_answers": sum(item.num_answer_tokens_cut > 0 for item in items),
        "num_answer_tokens_cut": sum(item.num_answer_tokens_cut for item in items),
        "num_ties": sum(item.num_ties for item in items),
    }
