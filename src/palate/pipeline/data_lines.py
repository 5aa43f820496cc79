"""What a run reads, in words: each source with its format and, among several, its share."""

from collections import Counter

from palate.pipeline.config import TrainConfig
from palate.pipeline.prepare import Prepared
from palate.preferences.readers import named_sources
from palate.text import plural


def data_lines(config: TrainConfig, prepared: Prepared) -> list[str]:
    """A line for each source. Among several it has the source's name, the weight that a
    mixture gives it, and its prompts by part; further validation sets come last."""
    sources = named_sources(config.inputs)
    formats = dict(prepared.formats)
    if len(sources) == 1 and not config.sources:
        return [f"{path}: format {name}" for path, name in formats.items()]
    parts = {"train": prepared.train, "validation": prepared.validation.get("validation", ())}
    counts = {
        part: Counter(group.group.source for group in groups)
        for part, groups in {**parts, "test": prepared.test}.items()
    }
    lines = []
    for name, source in sources.items():
        path = f"{name}: " * (name != source.path) + source.path
        weight = f", weight {source.weight:g}" if config.sources else ""
        by_part = {part: count[name] for part, count in counts.items() if count[name]}
        held = ", ".join(f"{part} {number}" for part, number in by_part.items())
        prompts = plural(sum(by_part.values()), "prompt") + (f" ({held})" if held else "")
        lines.append(f"{path}: format {formats.pop(source.path)}{weight}, {prompts}")
    return [*lines, *(f"{path}: format {name}" for path, name in formats.items())]
