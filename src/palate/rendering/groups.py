"""Preference groups to token ids; whatever is left out or cut goes to the ledger.

Legend: K responses of a group.
"""

from dataclasses import dataclass, replace

from palate.artifacts.ledger import Ledger
from palate.errors import PalateError
from palate.preferences.types import Comparison, PreferenceGroup, Response
from palate.rendering.group_ids import GroupIds, text_of, tokenise
from palate.rendering.lengths import LengthSettings
from palate.rendering.renderer import Renderer

OVERLONG = "over-long response"


@dataclass(frozen=True)
class RenderedGroup:
    """A group as token ids: K sequences, each prompt + response, and the comparisons among them."""

    sequences: tuple[tuple[int, ...], ...]
    comparisons: tuple[Comparison, ...]
    group: PreferenceGroup
    response_index: tuple[int, ...]
    """For each sequence, the index of its response in `group.responses`."""

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.sequences))

    @property
    def responses(self) -> tuple[Response, ...]:
        """The answer of each sequence."""
        return tuple(self.group.responses[index] for index in self.response_index)


def render_group(group: PreferenceGroup, renderer: Renderer, ledger: Ledger) -> RenderedGroup:
    """Token ids of a group; responses and comparisons left out are noted in the ledger.

    Raises PalateError when nothing is left to compare (the caller ledgers the row), or when a
    response is over-long and `lengths.overlong` is error.
    """
    return with_ids(group, tokenise(text_of(group), renderer), renderer.lengths, ledger)


def with_ids(
    group: PreferenceGroup, ids: GroupIds, lengths: LengthSettings, ledger: Ledger
) -> RenderedGroup:
    """The group with its token ids, wherever they come from; notes and errors of `render_group`."""
    where = (group.file, group.line)
    sequences: dict[int, tuple[int, ...]] = {}
    for index, (sequence, num_over) in enumerate(zip(ids.sequences, ids.num_over, strict=True)):
        if num_over:
            limit = lengths.max_response_tokens
            what = f"response {index} has {limit + num_over} tokens, limit {limit}"
            if lengths.overlong == "error":
                raise PalateError(
                    f"{group.file}:{group.line}: {what}; raise lengths.max_response_tokens",
                    OVERLONG,
                )
            if lengths.overlong == "leave_out":
                ledger.add(*where, "response", OVERLONG, what, group.id)
                continue
            ledger.add(*where, "token", "over-long response cut", what, group.id)
        sequences[index] = sequence
    if ids.failure is not None:
        raise PalateError(*ids.failure)
    comparisons = [c for c in group.comparisons if c.better in sequences and c.worse in sequences]
    if not comparisons:
        raise PalateError("an over-long response leaves nothing to compare", OVERLONG)
    distinct = [c for c in comparisons if sequences[c.better] != sequences[c.worse]]
    if not distinct:
        raise PalateError(
            "all compared responses have the same tokens", "identical after rendering"
        )
    if len(distinct) < len(comparisons):
        detail = f"{len(comparisons) - len(distinct)} of {len(comparisons)} comparisons"
        ledger.add(*where, "comparison", "identical after rendering", detail, group.id)
    if ids.num_cut:
        ledger.add(*where, "token", "prompt cut", f"{ids.num_cut} oldest tokens", group.id)
    position = {index: new for new, index in enumerate(sequences)}
    return RenderedGroup(
        tuple(sequences.values()),
        tuple(replace(c, better=position[c.better], worse=position[c.worse]) for c in distinct),
        group,
        tuple(sequences),
    )


def with_ids_or_note(
    group: PreferenceGroup, ids: GroupIds, lengths: LengthSettings, ledger: Ledger
) -> RenderedGroup | None:
    """The rendered group; None for one that can't be, whose rows then stand in the ledger."""
    try:
        return with_ids(group, ids, lengths, ledger)
    except PalateError as error:
        if lengths.overlong == "error" and error.reason == OVERLONG:
            raise
        for line in group.lines:
            ledger.add(group.file, line, "row", error.reason, str(error), group.id)
        return None
