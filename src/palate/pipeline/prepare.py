"""From files to rendered groups, divided and accounted for."""

import difflib
import warnings
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from palate.artifacts.files import sha256_file
from palate.artifacts.ledger import Ledger
from palate.errors import PalateError
from palate.objectives.nuisance import is_made
from palate.pipeline.config import SplitSettings, TrainConfig
from palate.pipeline.fixes import changes_training_part, fixed
from palate.preferences import (
    PreferenceGroup,
    Reading,
    ReadSettings,
    Source,
    VoteSettings,
    fold_of,
    prompt_cluster,
    read,
    split_groups,
)
from palate.preferences.split import join_near_duplicates, keys_of
from palate.rendering import RenderedGroup, Renderer, RenderSettings, Tokeniser
from palate.rendering.settings import HERE_ALONE
from palate.rendering.store import num_rows

MAX_JOINED_SHARE = 0.1


@dataclass(frozen=True)
class Prepared:
    """Rendered groups of each part, the ledger over all sources, the split's manifest."""

    train: Sequence[RenderedGroup]
    validation: Mapping[str, Sequence[RenderedGroup]]
    """The validation part first (where there is one), then the further sets."""
    test: Sequence[RenderedGroup]
    ledger: Ledger
    formats: dict[str, str]
    manifest: Mapping[str, Any]
    data_sha256: dict[str, str]
    left_out: str
    """Who won among the comparisons that over-long answers took away; empty when none did."""
    num_made: int = 0
    """Groups at the end of the training part that are no rows: pairs that an augmentation made."""

    @property
    def num_rows(self) -> int:
        """Number of input rows that the groups of all parts are made of."""
        parts = [self.train, self.test, *self.validation.values()]
        return sum(map(num_rows, parts)) - self.num_made


def prepare(
    config: TrainConfig, renderer: Renderer, settings: RenderSettings = HERE_ALONE
) -> Prepared:
    """Read, divide by prompt cluster, render. Raises PalateError when no training group is left."""
    with Tokeniser(renderer, settings) as tokeniser:
        return _prepare(config, tokeniser)


def _prepare(config: TrainConfig, tokeniser: Tokeniser) -> Prepared:
    reading = read_sources(config.inputs, config.read)
    refuse_without_effect(reading, config.read)
    parts, manifest = divide(reading.groups, config.split)
    ledger = reading.ledger
    train = tokeniser.render(parts["train"], ledger)
    if not train:
        raise PalateError(
            "no training group is left after rendering:\n" + ledger.summary(0), "no data"
        )
    validation: dict[str, list[RenderedGroup]] = {}
    if parts["validation"]:
        validation["validation"] = tokeniser.render(parts["validation"], ledger)
    test = tokeniser.render(parts["test"], ledger)
    formats = dict(reading.formats)
    for name, source in config.validation.items():
        further = read_sources([source], config.read)
        ledger.extend(further.ledger)
        formats.update(further.formats)
        validation[name] = tokeniser.render(further.groups, ledger)
        warn_of_leak(name, train, validation[name])
    for name, groups in {**validation, "test": test}.items():
        if not groups and (name != "test" or parts["test"]):
            raise PalateError(f"the {name} part is empty after rendering:\n" + ledger.summary(0))
    left_out = lengths_of_left_out(
        reading.groups, [*train, *validation.get("validation", []), *test]
    )
    if changes_training_part(config.training):
        train = list(fixed(train, config, tokeniser, ledger))
    prepared = Prepared(
        train,
        validation,
        test,
        ledger,
        formats,
        manifest,
        data_hashes([*config.paths, *config.validation.values()]),
        left_out,
        sum(map(is_made, train)),
    )
    ledger.check(prepared.num_rows)
    return prepared


def read_sources(sources: Sequence[str] | Mapping[str, Source], settings: ReadSettings) -> Reading:
    return read(sources, settings)


def refuse_without_effect(reading: Reading, settings: ReadSettings) -> None:
    """Raise PalateError for a setting that none of the data can heed."""
    annotators = {vote.annotator for group in reading.groups for vote in group.votes}
    refuse_idle(reading.heeds, list(reading.formats), annotators, settings)


def refuse_idle(
    heeds: Set[str], sources: Sequence[str], annotators: Set[str], settings: ReadSettings
) -> None:
    """The same for sources that were streamed: `heeds` and `annotators` are of all of them."""
    default = VoteSettings()
    changed = [f.name for f in fields(default)]
    changed = [n for n in changed if getattr(settings.votes, n) != getattr(default, n)]
    idle = [f"read.votes.{name}" for name in changed if name not in heeds]
    if settings.rating and "rating" not in heeds:
        idle.append("read.rating")
    if settings.hub_split != ReadSettings().hub_split and all(
        Path(source).exists() for source in sources
    ):
        idle.append("read.hub_split")
    if idle:
        raise PalateError(
            f"{idle[0]} has no effect: nothing in {', '.join(sources)} heeds it; leave it"
            " out, or name other data"
        )
    for name in settings.votes.annotator_weights:
        if name not in annotators:
            near = difflib.get_close_matches(name, annotators, n=1, cutoff=0)
            raise PalateError(
                f"read.votes.annotator_weights: nobody called {name!r} has voted; among the"
                f" {len(annotators)} annotators the nearest is {near[0]!r}"
            )


def divide(
    groups: Sequence[PreferenceGroup], settings: SplitSettings
) -> tuple[dict[str, Sequence[PreferenceGroup]], Mapping[str, Any]]:
    """train, validation and test, with the manifest that says which cluster is where."""
    test: list[PreferenceGroup] = []
    rest: Sequence[PreferenceGroup] = groups
    near = settings.near_duplicates
    joined = join_near_duplicates(groups, near) if near else {}
    keys = keys_of(joined)
    _warn_of_chain(groups, joined)
    shares = {
        "train": 1 - settings.validation_share,
        "validation": settings.validation_share,
    }
    if settings.num_folds:
        folds = [fold_of(g, settings.num_folds, settings.salt, keys) for g in groups]
        test = [g for g, fold in zip(groups, folds, strict=True) if fold == settings.fold]
        rest = [g for g, fold in zip(groups, folds, strict=True) if fold != settings.fold]
        # Another salt than the folds': otherwise the same hash would decide twice.
        split = split_groups(rest, shares, settings.salt + "/validation", keys)
    else:
        shares = {
            "train": 1 - settings.validation_share - settings.test_share,
            "validation": settings.validation_share,
            "test": settings.test_share,
        }
        split = split_groups(groups, shares, settings.salt, keys)
        test = list(split.parts["test"])
    manifest = dict(split.manifest)
    if settings.num_folds:
        manifest["fold"] = f"{settings.fold} of {settings.num_folds}"
        clusters = sorted({prompt_cluster(group.prompt) for group in test})
        manifest["clusters"] = {**manifest["clusters"], "test": clusters}
        manifest["num_groups"] = {**manifest["num_groups"], "test": len(test)}
    if near:
        manifest["near_duplicates"] = {"threshold": near, "joined": joined}
    parts = {"train": split.parts["train"], "validation": split.parts["validation"], "test": test}
    return parts, manifest


def _warn_of_chain(groups: Sequence[PreferenceGroup], joined: Mapping[str, Sequence[str]]) -> None:
    """Say so where near-duplicates chain much of the data into one cluster, as templates do."""
    if not joined:
        return
    largest = max(joined.values(), key=len)
    members = set(largest)
    num_joined = sum(prompt_cluster(group.prompt) in members for group in groups)
    if num_joined > MAX_JOINED_SHARE * len(groups):
        warnings.warn(
            f"split.near_duplicates joins {num_joined} of {len(groups)} prompts into one cluster,"
            " all of which falls on one side; raise it where they only share a template",
            stacklevel=3,
        )


def data_hashes(sources: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each source that is a file; a hub id stands for itself."""
    return {s: sha256_file(s) if Path(s).exists() else "hub data set" for s in sources}


@dataclass
class LeftOut:
    """Comparisons that were lost in rendering, and who had won them: leaving out is never
    neutral."""

    num_all: int = 0
    num_lost: int = 0
    num_longer_won: float = 0.0

    def add(self, group: PreferenceGroup, rendered: RenderedGroup | None) -> None:
        index = rendered.response_index if rendered else ()
        kept = {(index[c.better], index[c.worse]) for c in rendered.comparisons} if rendered else ()
        self.num_all += len(group.comparisons)
        for c in group.comparisons:
            if (c.better, c.worse) not in kept:
                gap = len(group.responses[c.better].text) - len(group.responses[c.worse].text)
                self.num_lost += 1
                self.num_longer_won += (gap > 0) + (gap == 0) / 2

    def summary(self) -> str:
        """In words; empty when nothing was lost."""
        if not self.num_lost:
            return ""
        return (
            f"{self.num_lost} of {self.num_all} comparisons lost in rendering; among them the"
            f" longer answer won {self.num_longer_won / self.num_lost:.0%}"
        )


def lengths_of_left_out(
    groups: Sequence[PreferenceGroup], rendered: Sequence[RenderedGroup]
) -> str:
    """Who won in the comparisons that were lost in rendering."""
    by_place = {(g.group.file, g.group.line): g for g in rendered}
    left_out = LeftOut()
    for group in groups:
        left_out.add(group, by_place.get((group.file, group.line)))
    return left_out.summary()


def warn_of_leak(
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
