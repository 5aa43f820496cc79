"""Groups to token ids, from the cache, in this process or in several; always in their order."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType

from palate.artifacts.ledger import Ledger
from palate.artifacts.progress import progress
from palate.preferences.types import PreferenceGroup
from palate.rendering.group_ids import GroupIds, GroupText, text_of, tokenise
from palate.rendering.groups import RenderedGroup, with_ids_or_note
from palate.rendering.renderer import Renderer
from palate.rendering.settings import HERE_ALONE, RenderSettings
from palate.rendering.token_cache import TokenCache, open_cache, text_key
from palate.rendering.workers import Workers
from palate.text import plural

BATCH_CHARACTERS = 65_536
"""What is handed out at a time: about a tenth of a second's work."""
START_AFTER_CHARACTERS = 1_000_000
"""Tokenised here before other processes start by themselves. It takes about as long as they need to
start: so waiting never costs more than twice what knowing beforehand would."""
PENDING_PER_WORKER = 4
"""Batches held at most, those included that are done and wait for their turn."""
logger = logging.getLogger(__name__)

_Texts = list[tuple[PreferenceGroup, GroupText]]


class Tokeniser:
    """A renderer with its cache and its workers, which live as long as the `with` block.

    With any settings the ids are those of `tokenise`, and the groups come in their order. Memory
    holds a few batches, and 16 bytes for each group in the cache.
    """

    def __init__(self, renderer: Renderer, settings: RenderSettings = HERE_ALONE) -> None:
        self.renderer = renderer
        self.num_found = 0
        """Groups whose ids the cache held."""
        self.num_tokenised = 0
        self._settings = settings
        self._cache: TokenCache | None = None
        self._workers: Workers | None = None
        self._num_characters = 0

    def __enter__(self) -> "Tokeniser":
        self._cache = open_cache(self._settings, self.renderer)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._workers is not None:
            self._workers.close()
        if self._cache is not None:
            self._cache.flush()
            if self.num_found:
                logger.info(
                    "tokens of %s were in %s, of %d not",
                    plural(self.num_found, "group"),
                    self._cache.folder,
                    self.num_tokenised,
                )

    def render(self, groups: Iterable[PreferenceGroup], ledger: Ledger) -> list[RenderedGroup]:
        """Render all groups; a group that can't be rendered becomes a row of the ledger."""
        lengths = self.renderer.lengths
        found = (with_ids_or_note(*pair, lengths, ledger) for pair in self.ids(groups))
        return [group for group in found if group is not None]

    def ids(
        self, groups: Iterable[PreferenceGroup], what: str = "render"
    ) -> Iterator[tuple[PreferenceGroup, GroupIds]]:
        """Each group with its ids; `what` names the progress bar.

        Groups are read ahead; an error in reading them is raised when those before it are through.
        """
        pending: deque[_Batch] = deque()
        failed: Exception | None = None
        for texts, ended_by in _batches(progress(groups, what)):
            failed = ended_by
            pending.append(self._begin(texts))
            window = PENDING_PER_WORKER * self._workers.count if self._workers else 0
            while len(pending) > window:
                yield from self._finish(pending.popleft())
        while pending:
            yield from self._finish(pending.popleft())
        if failed is not None:
            raise failed

    def _begin(self, texts: _Texts) -> "_Batch":
        keys = [text_key(text) if self._cache else None for _, text in texts]
        found = [self._cache.get(key) if self._cache and key else None for key in keys]
        missing = [text for (_, text), ids in zip(texts, found, strict=True) if ids is None]
        return _Batch([group for group, _ in texts], keys, found, self._tokenised(missing))

    def _tokenised(self, texts: Sequence[GroupText]) -> "Future[list[GroupIds]]":
        """The ids of the texts: from a worker that has time, otherwise made now."""
        workers = self._workers_for(texts)
        elsewhere = workers.try_submit(texts) if workers else None
        if elsewhere is not None:
            return elsewhere
        here: Future[list[GroupIds]] = Future()
        try:
            here.set_result([tokenise(text, self.renderer) for text in texts])
        except Exception as error:  # raised when its turn comes, as a worker's is
            here.set_exception(error)
        return here

    def _workers_for(self, texts: Sequence[GroupText]) -> Workers | None:
        if not texts:
            return None
        self._num_characters += sum(text.num_characters for text in texts)
        num_others = self._settings.num_processes - 1
        is_enough = self._settings.workers or self._num_characters > START_AFTER_CHARACTERS
        if self._workers is None and num_others and is_enough:
            self._workers = Workers(num_others, self.renderer)
        return self._workers

    def _finish(self, batch: "_Batch") -> Iterator[tuple[PreferenceGroup, GroupIds]]:
        made = iter(batch.tokenised.result())
        for group, key, found in zip(batch.groups, batch.keys, batch.found, strict=True):
            ids = next(made) if found is None else found
            self.num_found += found is not None
            self.num_tokenised += found is None
            if found is None and self._cache and key:
                self._cache.add(key, ids)
            yield group, ids


@dataclass(frozen=True)
class _Batch:
    """Groups on their way, in order; `tokenised` has the ids of those that were not found."""

    groups: Sequence[PreferenceGroup]
    keys: Sequence[bytes | None]
    found: Sequence[GroupIds | None]
    tokenised: "Future[list[GroupIds]]"


def _batches(groups: Iterable[PreferenceGroup]) -> Iterator[tuple[_Texts, Exception | None]]:
    """Runs of groups of about `BATCH_CHARACTERS`; the last one with the error that ended them."""
    iterator = iter(groups)
    failed: Exception | None = None
    is_over = False
    while not is_over:
        texts: _Texts = []
        size = 0
        while size < BATCH_CHARACTERS and not is_over:
            try:
                group = next(iterator)
            except StopIteration:
                is_over = True
            except Exception as error:
                is_over, failed = True, error
            else:
                texts.append((group, text_of(group)))
                size += texts[-1][1].num_characters
        yield texts, failed


def render_groups(
    groups: Sequence[PreferenceGroup],
    renderer: Renderer,
    ledger: Ledger,
    settings: RenderSettings = HERE_ALONE,
) -> list[RenderedGroup]:
    """Render all groups; a group that can't be rendered becomes a row of the ledger."""
    with Tokeniser(renderer, settings) as tokeniser:
        return tokeniser.render(groups, ledger)
