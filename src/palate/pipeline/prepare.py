"""From files to rendered groups, divided and accounted for."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palate.artifacts.files import sha256_file
from palate.artifacts.ledger import Ledger
from palate.errors import PalateError
from palate.pipeline.config import ReadSettings, SplitSettings, TrainConfig
from palate.preferences import (
    PreferenceGroup,
    Reading,
    VoteSettings,
    fold_of,
    prompt_cluster,
    read,
    split_groups,
)
from palate.rendering import RenderedGroup, Renderer, render_groups


@dataclass(frozen=True)
class Prepared:
    """Rendered groups of each part, the ledger over all sources, the split's manifest."""

    train: list[RenderedGroup]
    validation: dict[str, list[RenderedGroup]]
    """The validation part first (where there is one), then the further sets."""
    test: list[RenderedGroup]
    ledger: Ledger
    formats: dict[str, str]
    manifest: Mapping[str, Any]
    data_sha256: dict[str, str]
    left_out: str
    """Who won among the comparisons that over-long answers took away; empty when none did."""

    @property
    def num_groups(self) -> int:
        return len(self.train) + len(self.test) + sum(map(len, self.validation.values()))


def prepare(config: TrainConfig, renderer: Renderer) -> Prepared:
    """Read, divide by prompt cluster, render. Raises PalateError when no training group is left."""
    reading = read_sources(config.sources, config.read)
    refuse_without_effect(reading, config.read)
    parts, manifest = divide(reading.groups, config.split)
    ledger = reading.ledger
    train = render_groups(parts["train"], renderer, ledger)
    if not train:
        raise PalateError(
            "no training group is left after rendering:\n" + ledger.summary(0), "no data"
        )
    validation: dict[str, list[RenderedGroup]] = {}
    if parts["validation"]:
        validation["validation"] = render_groups(parts["validation"], renderer, ledger)
    test = render_groups(parts["test"], renderer, ledger)
    formats = dict(reading.formats)
    for name, source in config.validation.items():
        further = read_sources([source], config.read)
        ledger.extend(further.ledger)
        formats.update(further.formats)
        validation[name] = render_groups(further.groups, renderer, ledger)
        _warn_of_leak(name, train, validation[name])
    for name, groups in {**validation, "test": test}.items():
        if not groups and (name != "test" or parts["test"]):
            raise PalateError(f"the {name} part is empty after rendering:\n" + ledger.summary(0))
    prepared = Prepared(
        train,
        validation,
        test,
        ledger,
        formats,
        manifest,
        data_hashes([*config.sources, *config.validation.values()]),
        lengths_of_left_out(reading.groups, [*train, *validation.get("validation", []), *test]),
    )
    ledger.check(prepared.num_groups)
    return prepared


def read_sources(sources: Sequence[str], settings: ReadSettings) -> Reading:
    return read(
        list(sources),
        format=settings.format,
        votes=settings.votes,
        hub_split=settings.hub_split,
    )


def refuse_without_effect(reading: Reading, settings: ReadSettings) -> None:
    """Raise PalateError for a setting that none of the data can heed."""
    votes, default = settings.votes, VoteSettings()
    have_votes = any(group.votes for group in reading.groups)
    have_margins = any(c.margin > 0 for group in reading.groups for c in group.comparisons)
    without_effect = {
        "read.votes.min_gap": votes.min_gap > 0 and "ranked" not in reading.formats.values(),
        "read.votes.target": votes.target != default.target and not have_votes,
        "read.votes.prior": votes.prior != default.prior and not have_votes,
        "read.votes.margin_per_strength": votes.margin_per_strength > 0 and not have_margins,
        "read.hub_split": settings.hub_split != ReadSettings().hub_split
        and all(Path(source).exists() for source in reading.formats),
    }
    for key, idle in without_effect.items():
        if idle:
            raise PalateError(
                f"{key} has no effect: nothing in {', '.join(reading.formats)} heeds it; leave it"
                " out, or name other data"
            )


def divide(
    groups: Sequence[PreferenceGroup], settings: SplitSettings
) -> tuple[dict[str, Sequence[PreferenceGroup]], Mapping[str, Any]]:
    """train, validation and test, with the manifest that says which cluster is where."""
    test: list[PreferenceGroup] = []
    rest: Sequence[PreferenceGroup] = groups
    shares = {
        "train": 1 - settings.validation_share,
        "validation": settings.validation_share,
    }
    if settings.num_folds:
        test = [g for g in groups if fold_of(g, settings.num_folds, settings.salt) == settings.fold]
        rest = [g for g in groups if fold_of(g, settings.num_folds, settings.salt) != settings.fold]
        # Another salt than the folds': otherwise the same hash would decide twice.
        split = split_groups(rest, shares, settings.salt + "/validation")
    else:
        shares = {
            "train": 1 - settings.validation_share - settings.test_share,
            "validation": settings.validation_share,
            "test": settings.test_share,
        }
        split = split_groups(groups, shares, settings.salt)
        test = list(split.parts["test"])
    manifest = dict(split.manifest)
    if settings.num_folds:
        manifest["fold"] = f"{settings.fold} of {settings.num_folds}"
        clusters = sorted({prompt_cluster(group.prompt) for group in test})
        manifest["clusters"] = {**manifest["clusters"], "test": clusters}
        manifest["num_groups"] = {**manifest["num_groups"], "test": len(test)}
    parts = {"train": split.parts["train"], "validation": split.parts["validation"], "test": test}
    return parts, manifest


def data_hashes(sources: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each source that is a file; a hub id stands for itself."""
    return {s: sha256_file(s) if Path(s).exists() else "hub data set" for s in sources}


def lengths_of_left_out(
    groups: Sequence[PreferenceGroup], rendered: Sequence[RenderedGroup]
) -> str:
    """Who won in the comparisons that were lost in rendering: leaving out is never neutral."""
    kept = {
        (g.group.file, g.group.line): {
            (g.response_index[c.better], g.response_index[c.worse]) for c in g.comparisons
        }
        for g in rendered
    }
    lost = [
        len(group.responses[c.better].text) - len(group.responses[c.worse].text)
        for group in groups
        for c in group.comparisons
        if (c.better, c.worse) not in kept.get((group.file, group.line), set())
    ]
    if not lost:
        return ""
    num_all = sum(len(group.comparisons) for group in groups)
    longer = sum((gap > 0) + (gap == 0) / 2 for gap in lost) / len(lost)
    return (
        f"{len(lost)} of {num_all} comparisons lost in rendering; among them the longer answer won"
        f" {longer:.0%}"
    )


def _warn_of_leak(
    name: str, train: Sequence[RenderedGroup], validation: Sequence[RenderedGroup]
) -> None:
    known = {prompt_cluster(group.group.prompt) for group in train}
    shared = sum(prompt_cluster(group.group.prompt) in known for group in validation)
    if shared:
        warnings.warn(
            f"{shared} of {len(validation)} prompts of the validation set {name!r} are in clusters"
            " that are trained on: its metrics will flatter the model",
            stacklevel=2,
        )
