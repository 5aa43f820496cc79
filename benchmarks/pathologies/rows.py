"""What is planted, what must see it, and what mends it: a row for each pathology of data."""

from typing import Any

FLIPS = "share of right pairs that flip when the worse answer gets the feature, unseen phrasings"

ROWS: tuple[dict[str, Any], ...] = (
    {
        "name": "length",
        "plant": "one logit for a standard deviation of log words",
        "detector": "audit: probe filler",
        "fix": "objective.nuisance log_length",
        "effect": FLIPS,
    },
    {
        "name": "markdown",
        "plant": "one logit for a list with bold words",
        "detector": "audit: probe markdown",
        "fix": "objective.nuisance markdown",
        "effect": FLIPS,
    },
    {
        "name": "closing",
        "plant": "one logit for a polite ending",
        "detector": "audit: probe closing",
        "fix": "objective.nuisance closing",
        "effect": FLIPS,
    },
    {
        "name": "confidence",
        "plant": "one logit for a claim of certainty",
        "detector": "audit: probe confidence",
        "fix": "objective.nuisance confidence",
        "effect": FLIPS,
    },
    {
        "name": "sycophancy",
        "plant": "one logit for agreeing with the user, who is mostly wrong",
        "detector": "audit: probe agreement",
        "fix": "objective.nuisance agreement",
        "effect": FLIPS,
    },
    {
        "name": "leak",
        "plant": "pairs of four answers, split at random; near twins of prompts",
        "detector": "audit --against: prompt overlap",
        "fix": "split by prompt cluster, split.near_duplicates 0.8",
        "effect": "share of held-out pairs whose request is trained on",
        "note": "1,800 pairs of 300 prompts: fewer make it harder to see",
    },
    {
        "name": "truncation",
        "plant": "answers that differ after their first 150 words, cut at 160 tokens",
        "detector": "audit --tokenizer: identical tokens",
        "fix": "lengths.max_response_tokens above the answers' length",
        "effect": "share of comparisons whose sides become the same tokens",
        "note": "100 pairs: what is counted is exact",
    },
    {
        "name": "dominance",
        "plant": "one of ten annotators gives half of the votes, with tastes of 1.5 logits",
        "detector": "audit: annotator share",
        "fix": "read.votes.annotator_cap 0.2",
        "effect": "",
    },
    {
        "name": "position",
        "plant": "one logit for the answer shown first",
        "detector": "audit: position bias",
        "fix": "objective.nuisance first_shown",
        "effect": "",
    },
    {
        "name": "source",
        "plant": "one logit for a standard deviation of the strength of the answer's model",
        "detector": "audit: source shortcut",
        "fix": "a covariate for each model's name, dropped at inference",
        "effect": "",
    },
    {
        "name": "prompt-blind",
        "plant": "labels of style alone; half of the answers are off topic",
        "detector": "audit: prompt-blind",
        "fix": "training.cross_prompt 2",
        "effect": "share of held-out answers that lose to an answer to another prompt",
        "note": "3,000 pairs; the model that is mended sees which words of prompt and answer stand"
        " together. The detector's sees of the prompt how far answers share its words",
    },
    {
        "name": "noise",
        "plant": "a quarter of the votes say the reverse",
        "detector": "audit: label noise",
        "fix": "three votes a pair as soft labels",
        "effect": "",
    },
    {
        "name": "shift",
        "plant": "fresh answers are longer, better and on topics that training has not seen",
        "detector": "audit --against: distribution shift",
        "fix": "a tenth of the fresh pairs labelled and trained on",
        "effect": "",
        "note": "3,000 pairs; accuracy is that on the other fresh pairs",
    },
)

CODE_ROWS: tuple[dict[str, Any], ...] = (
    {
        "name": "padding-side bug",
        "plant": "a text's end read from its mask or its first pad id, with left padding",
        "detector": "guard: padding",
        "fix": "ends from the plan's lengths, never from ids or masks; the guard refuses the model",
    },
    {
        "name": "stale template",
        "plant": "texts rendered with another template than the checkpoint's",
        "detector": "guards: fingerprint, rendered again",
        "fix": "the checkpoint carries its template; loading is refused",
    },
    {
        "name": "doubled BOS",
        "plant": "the rendered text tokenised once more with special tokens",
        "detector": "guard: start token",
        "fix": "one rendering path; training is refused",
    },
    {
        "name": "two-tower noise",
        "plant": "dropout left on, or a pass of its own for each side",
        "detector": "guard: same text twice",
        "fix": "one pass, dropout off; the guard refuses the model",
    },
    {
        "name": "bias term",
        "plant": "a bias of 5 in the head",
        "detector": "guard: head's bias",
        "fix": "no bias; the guard refuses to train it",
    },
    {
        "name": "exploding reward",
        "plant": "20 to 100 times the learning rate, separable labels",
        "detector": "guard: explosion",
        "fix": "the guard names the step; a lower rate, objective.centring",
    },
)
"""Faults planted in palate's own code by monkeypatching, on tiny models: `code_faults`."""
