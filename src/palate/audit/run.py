"""All checks in their order; one that fails on odd data is skipped by name and the rest go on."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from palate.artifacts.progress import progress
from palate.audit.columns import Audited
from palate.audit.conflicts import conflict_findings
from palate.audit.contamination import contamination_findings
from palate.audit.duplicates import duplicate_findings
from palate.audit.feature_model import (
    Comparisons,
    TextFeatures,
    comparisons_of,
    sample_features,
)
from palate.audit.findings import Finding, Report, Skipped, worst_first
from palate.audit.noise import noise_of
from palate.audit.overlap import answer_overlap, near_prompts, prompt_overlap
from palate.audit.people import people_findings
from palate.audit.phrases import phrase_findings
from palate.audit.probes import probe_model
from palate.audit.settings import AuditSettings
from palate.audit.shift import shift_findings
from palate.audit.shortcuts import prompt_blind_of, source_shortcut
from palate.audit.style import style_findings
from palate.audit.template import Trained, template_findings
from palate.audit.tokens import token_findings
from palate.errors import PalateError
from palate.preferences import PreferenceGroup
from palate.rendering import Renderer

logger = logging.getLogger(__name__)
MAX_ROUNDS = 3
"""Readings of the sources for texts that are not in the sample."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What checks are put to."""

    audited: Audited
    settings: AuditSettings = field(default_factory=AuditSettings)
    against: Audited | None = None
    """Data whose prompts and answers should not be among the audited."""
    renderer: Renderer | None = None
    """Tokenizer, template and lengths in use."""
    trained: Trained | None = None
    """The checkpoint to hold the template against."""
    benchmarks: Sequence[str] = ()
    """Files of prompts that should not be among the audited."""
    all_groups: Callable[[], Iterable[PreferenceGroup]] | None = None
    """All groups again, where only a sample keeps its texts."""

    @cached_property
    def features(self) -> TextFeatures:
        """The sample's answers as small models see them: worked out once, for all checks."""
        return sample_features(self.audited)

    @cached_property
    def comparisons(self) -> Comparisons:
        """The decided comparisons of the sample."""
        return comparisons_of(self.features, self.audited.sample)


Found = list[Finding | Skipped]
Check = Callable[[Inputs], Found]


def _tokens(inputs: Inputs) -> Found:
    if inputs.renderer is None:
        return [Skipped("tokens", "no tokenizer given: name one with --tokenizer")]
    return token_findings(inputs.audited, inputs.settings, inputs.renderer)


def _overlap(inputs: Inputs) -> Found:
    if inputs.against is None:
        return [Skipped("overlap", "nothing to hold the data against: name it with --against")]
    return [
        prompt_overlap(inputs.audited, inputs.against),
        answer_overlap(inputs.audited, inputs.against),
    ]


def _near_duplicates(inputs: Inputs) -> Found:
    """Apart from `_overlap`, which is made again for texts outside the sample; this takes longer
    and needs none. Without data to hold against, `_overlap` says so."""
    return [] if inputs.against is None else near_prompts(inputs.audited, inputs.against)


def _probes(inputs: Inputs) -> Found:
    # Changed answers are kept in a copy of the features, so that their memory ends with the check.
    features = replace(inputs.features, changed={})
    return probe_model(inputs.audited.sample, inputs.settings.seed, features)


def _shift(inputs: Inputs) -> Found:
    if inputs.against is None:
        return [Skipped("shift", "nothing to hold the data against: name it with --against")]
    return shift_findings(inputs.audited, inputs.settings, inputs.against)


def _contamination(inputs: Inputs) -> Found:
    if not inputs.benchmarks:
        reason = "no benchmark prompts given: name files of them with --benchmarks"
        return [Skipped("contamination", reason)]
    groups = None if inputs.all_groups is None else inputs.all_groups()
    return contamination_findings(inputs.audited, inputs.settings, inputs.benchmarks, groups)


CHECKS: Mapping[str, Check] = {
    "style": lambda i: style_findings(i.audited, i.settings),
    "openings and endings": lambda i: phrase_findings(i.audited, i.settings),
    "probes": _probes,
    "source": lambda i: source_shortcut(i.audited, i.settings),
    "prompt-blind": lambda i: prompt_blind_of(
        i.audited.sample, i.features, i.comparisons, i.settings
    ),
    "label noise": lambda i: noise_of(i.audited, i.features, i.comparisons, i.settings),
    "people": lambda i: people_findings(i.audited),
    "conflicts": lambda i: conflict_findings(i.audited, i.settings),
    "duplicates": lambda i: duplicate_findings(i.audited, i.settings),
    "overlap": _overlap,
    "near-duplicates": _near_duplicates,
    "shift": _shift,
    "contamination": _contamination,
    "tokens": _tokens,
    "template": lambda i: template_findings(i.audited, i.settings, i.renderer, i.trained),
}
"""By the name under which one that fails is skipped."""


def run_checks(inputs: Inputs, checks: Mapping[str, Check] = CHECKS) -> Report:
    """Put the data to all checks; the findings worst first.

    A check that raises what nobody foresaw is skipped with the error's words, and a warning is
    logged. PalateError of a file that the user named (`benchmarks`) is raised. Checks that ask for
    texts outside the sample are made again once these are read, all together: each reading of a
    million rows takes minutes.
    """
    lookups = [_Lookups(inputs.audited)]
    inputs = replace(inputs, audited=replace(inputs.audited, fetch=lookups[0].fetch))
    if inputs.against is not None:
        lookups.append(_Lookups(inputs.against))
        inputs = replace(inputs, against=replace(inputs.against, fetch=lookups[1].fetch))
    found: dict[str, Found] = {}
    waiting = list(checks)
    for number in range(MAX_ROUNDS + 1):
        is_last = number == MAX_ROUNDS
        again = []
        for name in progress(waiting, "checks"):
            for lookup in lookups:
                lookup.was_short = False
            found[name] = _guarded(name, checks[name], inputs, lookups)
            if any(lookup.was_short for lookup in lookups) and not is_last:
                again.append(name)
        if not again:
            break
        waiting = again
        for lookup in lookups:
            lookup.load()
    return _report(found, checks)


def _guarded(name: str, check: Check, inputs: Inputs, lookups: "Sequence[_Lookups]") -> Found:
    try:
        return check(inputs)
    except Exception as error:
        if isinstance(error, PalateError) and name == "contamination":
            raise
        if any(lookup.was_short for lookup in lookups):
            return []
        reason = f"it failed: {type(error).__name__}: {error}"
        logger.warning("the check %r %s", name, reason, exc_info=error)
        return [Skipped(name, reason)]


def _report(found: Mapping[str, Found], order: Iterable[str]) -> Report:
    everything = [item for name in order for item in found[name]]
    return Report(
        worst_first(item for item in everything if isinstance(item, Finding)),
        [item for item in everything if isinstance(item, Skipped)],
    )


class _Lookups:
    """Texts outside the sample, read together: what is asked for the first time is noted down."""

    def __init__(self, audited: Audited) -> None:
        self._read = audited.fetch
        self._at_hand = set(audited.sample_G.tolist())
        self._known: dict[int, PreferenceGroup] = {}
        self._gone: set[int] = set()
        self.missing: set[int] = set()
        self.was_short = False

    def fetch(self, indices: Sequence[int]) -> Mapping[int, PreferenceGroup]:
        wanted = {int(index) for index in indices}
        found = dict(self._read(sorted(wanted & self._at_hand)))
        found |= {index: self._known[index] for index in wanted if index in self._known}
        new = wanted - self._at_hand - self._known.keys() - self._gone
        if new:
            self.missing |= new
            self.was_short = True
        return found

    def load(self) -> None:
        """Read what is missing."""
        if self.missing:
            self._known.update(self._read(sorted(self.missing)))
            self._gone |= self.missing - self._known.keys()
            self.missing = set()
