"""The same as `prepare`, for more data than fits in memory: each group goes from its row to its
part's store on disk before the next is read."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from palate.artifacts.ledger import Ledger, LedgerEntry
from palate.errors import PalateError
from palate.objectives.nuisance import is_made
from palate.pipeline.config import SplitSettings, TrainConfig
from palate.pipeline.fixes import changes_training_part, fixed
from palate.pipeline.prepare import LeftOut, Prepared, data_hashes, refuse_idle, warn_of_leak
from palate.preferences import (
    PreferenceGroup,
    Source,
    fold_of,
    iter_groups,
    prompt_cluster,
)
from palate.preferences.readers import named_sources, refuse_idle_source
from palate.preferences.split import part_of
from palate.rendering import RenderedGroup, Renderer, RenderSettings, Tokeniser
from palate.rendering.groups import with_ids_or_note
from palate.rendering.settings import HERE_ALONE
from palate.rendering.store import GroupStore, GroupWriter, writing


@dataclass
class _Seen:
    """What streamed by: of the groups only counts and the hashes of prompt clusters are kept."""

    ledger: Ledger = field(default_factory=Ledger)
    formats: dict[str, str] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)
    heeds: set[str] = field(default_factory=set)
    annotators: set[str] = field(default_factory=set)
    num_groups: dict[str, int] = field(default_factory=dict)
    clusters: dict[str, set[str]] = field(default_factory=dict)


def prepare_on_disk(
    config: TrainConfig,
    renderer: Renderer,
    directory: Path,
    settings: RenderSettings = HERE_ALONE,
) -> Prepared:
    """Read, divide by prompt cluster and render into stores below `directory`.

    The parts, the manifest and the ledger's entries (in another order) are those of `prepare`, and
    so are the errors. Memory holds a few groups at a time, the hashes of prompt clusters, which the
    manifest lists, 32 bytes of index a group, and 16 a group in the cache of tokens.
    """
    with Tokeniser(renderer, settings) as tokeniser:
        return _prepare_on_disk(config, tokeniser, directory)


def _prepare_on_disk(config: TrainConfig, tokeniser: Tokeniser, directory: Path) -> Prepared:
    seen = _Seen()
    shares = _shares(config.split)
    parts = list(dict.fromkeys([*shares, "test"]))
    seen.num_groups = dict.fromkeys(parts, 0)
    seen.clusters = {name: set() for name in parts}
    with ExitStack() as stack:
        writers = {name: stack.enter_context(writing(directory / name)) for name in parts}
        for name, source in named_sources(config.inputs).items():
            _read_into(writers, name, source, config, tokeniser, seen)
    refuse_idle(seen.heeds, config.paths, seen.annotators, config.read)
    _refuse_empty(seen, shares)
    stores = {name: GroupStore(directory / name) for name in parts}
    if not stores["train"]:
        raise PalateError(
            "no training group is left after rendering:\n" + seen.ledger.summary(0), "no data"
        )
    validation = {"validation": stores["validation"]} if seen.num_groups["validation"] else {}
    left_out = seen.left_out.summary()
    for number, (name, path) in enumerate(config.validation.items(), start=1):
        store = _further(name, path, directory / f"validation-{number}", config, tokeniser, seen)
        validation[name] = store
        warn_of_leak(name, stores["train"], store)
    for name, store in {**validation, "test": stores["test"]}.items():
        if not store and (name != "test" or seen.num_groups["test"]):
            raise PalateError(
                f"the {name} part is empty after rendering:\n" + seen.ledger.summary(0)
            )
    train, num_made = stores["train"], 0
    if changes_training_part(config.training):
        train, num_made = _fixed(train, directory / "train-fixed", config, tokeniser, seen.ledger)
    prepared = Prepared(
        train,
        validation,
        stores["test"],
        seen.ledger,
        seen.formats,
        _manifest(config.split, shares, seen),
        data_hashes([*config.paths, *config.validation.values()]),
        left_out,
        num_made,
    )
    seen.ledger.check(prepared.num_rows)
    return prepared


def _fixed(
    train: GroupStore, directory: Path, config: TrainConfig, tokeniser: Tokeniser, ledger: Ledger
) -> tuple[GroupStore, int]:
    """A second store with what of the training part stays and what is made of it, and how many
    groups were made."""
    num_made = 0
    with writing(directory) as writer:
        for group in fixed(train, config, tokeniser, ledger):
            num_made += is_made(group)
            writer.append(group)
    return GroupStore(directory), num_made


def _shares(settings: SplitSettings) -> dict[str, float]:
    """Share of each part that a hash decides; with folds the test part is decided before."""
    if settings.num_folds:
        return {"train": 1 - settings.validation_share, "validation": settings.validation_share}
    return {
        "train": 1 - settings.validation_share - settings.test_share,
        "validation": settings.validation_share,
        "test": settings.test_share,
    }


def _salt(settings: SplitSettings) -> str:
    # Another salt than the folds': otherwise the same hash would decide twice.
    return settings.salt + "/validation" if settings.num_folds else settings.salt


def _part(group: PreferenceGroup, cluster: str, settings: SplitSettings) -> str:
    if settings.num_folds and fold_of(group, settings.num_folds, settings.salt) == settings.fold:
        return "test"
    return part_of(cluster, _shares(settings), _salt(settings))


def _read_into(
    writers: Mapping[str, GroupWriter],
    name: str,
    source: Source,
    config: TrainConfig,
    tokeniser: Tokeniser,
    seen: _Seen,
) -> None:
    noted = Ledger()
    stream = iter_groups(source, config.read, noted, name=name)
    seen.formats[source.path] = stream.format
    for group, rendered in _rendered(stream, noted, "read and render", tokeniser, seen.ledger):
        cluster = prompt_cluster(group.prompt)
        part = _part(group, cluster, config.split)
        seen.num_groups[part] += 1
        seen.clusters[part].add(cluster)
        seen.annotators.update(vote.annotator for vote in group.votes)
        seen.left_out.add(group, rendered)
        if rendered is not None:
            writers[part].append(rendered)
    refuse_idle_source(name, source, stream)
    seen.heeds |= stream.heeds - set(source.own_votes())


def _further(
    name: str,
    path: str,
    directory: Path,
    config: TrainConfig,
    tokeniser: Tokeniser,
    seen: _Seen,
) -> GroupStore:
    """A further validation set: all of it, in a store of its own."""
    ((short, source),) = named_sources([path]).items()
    noted = Ledger()
    stream = iter_groups(source, config.read, noted, name=short)
    seen.formats[path] = stream.format
    with writing(directory) as writer:
        for _, rendered in _rendered(stream, noted, f"render {name}", tokeniser, seen.ledger):
            if rendered is not None:
                writer.append(rendered)
    return GroupStore(directory)


def _rendered(
    groups: Iterable[PreferenceGroup],
    noted: Ledger,
    what: str,
    tokeniser: Tokeniser,
    ledger: Ledger,
) -> Iterator[tuple[PreferenceGroup, RenderedGroup | None]]:
    """Each group with what rendering makes of it.

    Groups are read ahead of their rendering, and what reading them notes stands in `noted`. It goes
    to `ledger` when its turn comes, so that the ledger's order is that of the rows however far
    ahead that is.
    """
    num_noted: deque[int] = deque()
    entries = iter(noted.entries)

    def counted() -> Iterator[PreferenceGroup]:
        for group in groups:
            num_noted.append(len(noted.entries))
            yield group

    num_told = 0
    for group, ids in tokeniser.ids(counted(), what):
        ready = num_noted.popleft()
        _tell(islice(entries, ready - num_told), ledger)
        num_told = ready
        yield group, with_ids_or_note(group, ids, tokeniser.renderer.lengths, ledger)
    _tell(entries, ledger)
    ledger.num_rows_read += noted.num_rows_read


def _tell(entries: Iterable[LedgerEntry], ledger: Ledger) -> None:
    for entry in entries:
        ledger.add(
            entry.file, entry.line, entry.kind, entry.reason, entry.detail, row_id=entry.row_id
        )


def _refuse_empty(seen: _Seen, shares: Mapping[str, float]) -> None:
    num_groups = sum(seen.num_groups.values())
    if not num_groups:
        raise PalateError(
            f"{', '.join(seen.formats)}: none of {seen.ledger.num_rows_read} rows is usable:\n"
            + seen.ledger.summary(0)
        )
    for name, share in shares.items():
        if share > 0 and not seen.num_groups[name]:
            num_clusters = sum(len(seen.clusters[part]) for part in shares)
            raise PalateError(
                f"the {name} part is empty: {num_groups} groups in {num_clusters} prompt clusters"
                f" are too few for a share of {share:g}"
            )


def _manifest(settings: SplitSettings, shares: Mapping[str, float], seen: _Seen) -> dict[str, Any]:
    manifest = {
        "salt": _salt(settings),
        "shares": dict(shares),
        "num_groups": dict(seen.num_groups),
        "clusters": {name: sorted(clusters) for name, clusters in seen.clusters.items()},
    }
    if settings.num_folds:
        manifest["fold"] = f"{settings.fold} of {settings.num_folds}"
    return manifest
