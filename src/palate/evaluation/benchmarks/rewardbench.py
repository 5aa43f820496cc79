"""RewardBench (Lambert et al. 2024, 2403.13787): pairs in 23 subsets, 4 sections."""

from palate.evaluation.benchmarks.definition import (
    Definition,
    known,
    make_item,
    mean_of_numbers,
    mean_of_subsets,
    pair_column,
)
from palate.evaluation.benchmarks.items import BenchmarkItem
from palate.preferences.formats.fields import Row, require

SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}
"""Weights of the subsets' means, which are numbers of pairs; math-prm has 447 pairs and weighs as
much as all code. XSTest's two were exchanged (250, 154) until 10 September 2024."""

SIZES = {name: size for section in SECTIONS.values() for name, size in section.items()}
SIZES["math-prm"] = 447


def _item(row: Row, _: str) -> BenchmarkItem:
    prompt, chosen, rejected = (require(row, name) for name in ("prompt", "chosen", "rejected"))
    subset = known(require(row, "subset"), "subset", SIZES)
    return make_item(subset, prompt, [chosen], [rejected], id=row.get("id"))


_sections = {name: mean_of_subsets("accuracy", weights) for name, weights in SECTIONS.items()}
REWARDBENCH = Definition(
    name="rewardbench",
    title="RewardBench",
    fields="prompt, chosen, rejected (texts), subset, id",
    item_of=_item,
    columns=pair_column,
    numbers={
        "overall": mean_of_numbers(list(_sections.values())),
        **_sections,
        **{subset: mean_of_subsets("accuracy", {subset: 1}) for subset in SIZES},
    },
    headline="overall",
    sizes=SIZES,
    remedy="its split raw holds more; the published numbers are of the split filtered",
)
