"""What the configuration does to the training part alone: leave comparisons out, add pairs."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

from palate.artifacts.ledger import Ledger
from palate.errors import PalateError
from palate.objectives.settings import Ties
from palate.pipeline.config import TrainConfig
from palate.preferences import PreferenceGroup
from palate.rendering import RenderedGroup, Tokeniser
from palate.rendering.groups import with_ids_or_note
from palate.text import plural
from palate.training.augmentation import (
    counterfactual_groups,
    cross_prompt_groups,
    num_extra,
)
from palate.training.balancing import balance
from palate.training.settings import TrainingSettings


def changes_training_part(settings: TrainingSettings) -> bool:
    """Whether `fixed` does anything."""
    shares = settings.counterfactual.share + settings.cross_prompt.share
    return settings.length_balanced or shares > 0


def fixed(
    groups: Sequence[RenderedGroup], config: TrainConfig, tokeniser: Tokeniser, ledger: Ledger
) -> Iterator[RenderedGroup]:
    """The training groups that stay, then the pairs that are made of them.

    The same for the same groups in the same order, whatever the process, the store or the number of
    workers. Rows that are left out go to `ledger`; made pairs are no rows and count for none.
    """
    settings = config.training
    if settings.length_balanced:
        groups = _balanced(groups, settings.seed, config.objective.ties, ledger)
    yield from groups
    for name, extra, made in (
        (
            "counterfactual",
            settings.counterfactual,
            counterfactual_groups(groups, settings.counterfactual, settings.seed),
        ),
        (
            "cross_prompt",
            settings.cross_prompt,
            cross_prompt_groups(groups, settings.cross_prompt, settings.seed),
        ),
    ):
        if extra.share:
            wanted = num_extra(extra.share, len(groups))
            if not wanted:
                raise PalateError(
                    f"training.{name}.share {extra.share} has no effect: of"
                    f" {plural(len(groups), 'training prompt')} it is less than one pair; raise it,"
                    " or leave it out"
                )
            num_made = 0
            for group in _rendered(made, tokeniser, name):
                num_made += 1
                yield group
            if num_made < wanted:
                warnings.warn(
                    f"training.{name}: {num_made} of {plural(wanted, 'pair')} were made; for the"
                    " others no answer could be changed or found, or it was over-long",
                    stacklevel=2,
                )


def _balanced(
    groups: Sequence[RenderedGroup], seed: int, ties: Ties, ledger: Ledger
) -> Sequence[RenderedGroup]:
    found = balance(groups, seed, ties)
    warning = found.warning()
    if warning is not None:
        warnings.warn(warning, stacklevel=2)
    return found.applied(groups, ledger)


def _rendered(
    made: Iterator[PreferenceGroup], tokeniser: Tokeniser, name: str
) -> Iterator[RenderedGroup]:
    # A pair that turns out over-long is no fault of the data, and no row of a file.
    lengths = tokeniser.renderer.lengths
    if lengths.overlong == "error":
        lengths = replace(lengths, overlong="leave_out")
    unrecorded = Ledger()
    for group, ids in tokeniser.ids(made, f"render {name}"):
        rendered = with_ids_or_note(group, ids, lengths, unrecorded)
        if rendered is not None:
            yield rendered
