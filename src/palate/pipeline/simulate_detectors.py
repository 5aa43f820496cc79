"""The audit's checks as detectors of simulated faults: alarm or none.

Each imports its check where it is used: writing data needs none of them, and they take seconds.
"""

from collections.abc import Mapping

from palate.audit.findings import Finding
from palate.simulation import Simulated
from palate.simulation.power import Detector


def _probe(kind: str) -> Detector:
    """Whether a small model of the labels pays for a change of this kind, by more than a threshold
    with the whole interval; not, where there are too few comparisons for a model."""

    def detect(simulated: Simulated) -> bool:
        from palate.audit.feature_model import comparisons_of, fit_feature_model, text_features
        from palate.audit.probes import MIN_RANKED_RIGHT, phrase_probe, probe

        features = text_features(simulated.groups)
        comparisons = comparisons_of(features, simulated.groups)
        model = fit_feature_model(features, comparisons, seed=simulated.settings.seed)
        if model is None or (model.margin_H > 0).sum() < MIN_RANKED_RIGHT:
            return False
        return probe(features, model, kind, phrase_probe(kind)).fails

    return detect


def _position(simulated: Simulated) -> bool:
    from palate.audit.display import position_bias
    from palate.audit.scan import columns_of

    found = position_bias(columns_of(simulated.groups))
    return isinstance(found, Finding) and found.severity == "error"


def _dominance(simulated: Simulated) -> bool:
    from palate.audit.annotators import annotator_share
    from palate.audit.scan import columns_of

    found = annotator_share(columns_of(simulated.groups))
    return isinstance(found, Finding) and found.severity == "error"


DETECTORS: Mapping[str, Detector] = {
    "length": _probe("filler"),
    "markdown": _probe("markdown"),
    "closing": _probe("closing"),
    "confidence": _probe("confidence"),
    "sycophancy": _probe("agreement"),
    "position": _position,
    "dominance": _dominance,
}
"""By world: the check that is meant to find its fault. A probe finds it where its whole interval
lies beyond a threshold, which the audit calls an error from `MIN_SURE` comparisons on and, where it
is not extreme, a warning below; the other two find it where they say error."""
