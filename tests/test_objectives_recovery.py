"""Planted parameters come back from simulated votes within their standard errors, and estimates
agree with `choix` and with likelihoods written anew for `scipy`.

For a maximum-likelihood estimate with Hessian H of the negative log-likelihood of all votes, the
error e has e' H e ~ chi-squared with as many degrees of freedom as parameters. Summed over
simulations it must lie between the 0.1 % and 99.9 % quantiles: standard errors too small or too
large are found as well as a bias.
"""

from collections.abc import Callable
from itertools import combinations

import choix
import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import chi2
from torch import Tensor

from palate.objectives import Objective, ObjectiveSettings
from palate.preferences import Comparison, Vote
from palate.rendering import RenderedGroup
from tests.objective_cases import minimise, rendered

NUM_SIMULATIONS = 20
SCORES = np.array([0.0, 0.4, -0.6, 1.1, -1.3])
"""Planted scores of five answers, the first fixed at 0."""
NUM_VOTES = 150
"""On each pair."""
NUM_RANKINGS = 300
LOG_SCALES = np.array([0.7, 0.1, -0.8])
"""Planted for three annotators; their sum is 0."""
PAIRS = list(combinations(range(len(SCORES)), 2))

Fit = Callable[[np.random.Generator], tuple[Tensor, Tensor]]
"""Simulates votes, returns estimates and the Hessian of the negative log-likelihood."""


def share_comparison(first: int, second: int, won: int, lost: int, tied: int = 0) -> Comparison:
    """Counts of one pair as one comparison, without pseudo-votes."""
    better, worse = (first, second) if won >= lost else (second, first)
    decided = won + lost
    probability = max(won, lost) / decided if decided else 0.5
    return Comparison(better, worse, probability, tied / (decided + tied))


def pair_counts(
    rng: np.random.Generator, probabilities: Callable[[float], np.ndarray]
) -> np.ndarray:
    """Counts of each outcome for each pair, `probabilities` from the difference of scores."""
    differences = [SCORES[first] - SCORES[second] for first, second in PAIRS]
    return np.array([rng.multinomial(NUM_VOTES, probabilities(d)) for d in differences])


def group_of_counts(counts: np.ndarray) -> RenderedGroup:
    comparisons = [
        share_comparison(*pair, *map(int, row)) for pair, row in zip(PAIRS, counts, strict=True)
    ]
    return rendered(len(SCORES), comparisons)


def bradley_terry_probabilities(d: float) -> np.ndarray:
    return np.array([expit(d), expit(-d)])


def davidson_probabilities(d: float, width: float = 0.8) -> np.ndarray:
    """In worths, as Davidson wrote it: w1, w2 and v sqrt(w1 w2) over their sum."""
    worths = np.array([np.exp(d), 1.0, width * np.sqrt(np.exp(d))])
    return worths / worths.sum()


def rao_kupper_probabilities(d: float, width: float = 0.6) -> np.ndarray:
    """In worths, as Rao and Kupper wrote it: w1 / (w1 + theta w2) and w2 / (theta w1 + w2)."""
    theta = np.exp(width)
    won, lost = np.exp(d) / (np.exp(d) + theta), 1 / (theta * np.exp(d) + 1)
    return np.array([won, lost, 1 - won - lost])


def simulated_rankings(rng: np.random.Generator, number: int = NUM_RANKINGS) -> np.ndarray:
    """Orders by score plus Gumbel noise, which is Plackett-Luce. Shape (number, answers)."""
    return np.argsort(-(SCORES + rng.gumbel(size=(number, len(SCORES)))), axis=1)


def group_of_rankings(tiers: list[list[tuple[int, ...]]]) -> RenderedGroup:
    votes = [Vote(f"annotator {n}", tuple(ranking)) for n, ranking in enumerate(tiers)]
    return rendered(len(SCORES), [Comparison(0, 1)], votes)


def estimate(
    settings: ObjectiveSettings, group: RenderedGroup, scale: float
) -> tuple[Tensor, Tensor]:
    """Scores of all answers but the first, then what is learned, and the Hessian of the negative
    log-likelihood, which is `scale` times the loss."""
    objective = Objective(settings, [group])
    batch = objective.batch([group])
    num_free = len(SCORES) - 1

    def loss(flat: Tensor) -> Tensor:
        reward_N = torch.cat([flat.new_zeros(1), flat[:num_free]])
        learned = {n: flat[num_free:].reshape(v.shape) for n, v in objective.initial.items()}
        return scale * objective.loss(reward_N, batch, learned)

    firsts = [value.double().flatten() for value in objective.initial.values()]
    found = minimise(loss, torch.cat([torch.zeros(num_free, dtype=torch.float64), *firsts]))
    return found, torch.autograd.functional.hessian(loss, found)


def assert_within_standard_errors(fit: Fit, planted: np.ndarray, scale: float = 1.0) -> None:
    """Over all simulations: every |z| below 4, their rms near 1, e' H e as chi-squared says.

    `scale` multiplies the Hessian, to plant wrong standard errors.
    """
    distance, z_values = 0.0, []
    for seed in range(NUM_SIMULATIONS):
        found, hessian = fit(np.random.default_rng(seed))
        error, information = found.numpy() - planted, scale * hessian.numpy()
        distance += float(error @ information @ error)
        z_values.extend(error / np.sqrt(np.diag(np.linalg.inv(information))))
    assert np.abs(z_values).max() < 4
    assert 0.75 < np.sqrt(np.mean(np.square(z_values))) < 1.25
    low, high = chi2.ppf([0.001, 0.999], df=NUM_SIMULATIONS * len(planted))
    assert low < distance < high


def fit_counts(kind: str, probabilities: Callable[[float], np.ndarray]) -> Fit:
    """Of an objective on comparisons, to simulated counts of each pair."""
    settings = ObjectiveSettings(kind=kind)  # type: ignore[arg-type]
    return lambda rng: estimate(
        settings, group_of_counts(pair_counts(rng, probabilities)), NUM_VOTES * len(PAIRS)
    )


def test_bradley_terry_scores() -> None:
    fit = fit_counts("bradley-terry", bradley_terry_probabilities)
    assert_within_standard_errors(fit, SCORES[1:])


@pytest.mark.parametrize(("bias", "scale"), [(1.15, 1.0), (1.0, 0.5), (1.0, 2.0)])
def test_scores_or_standard_errors_that_are_off_are_noticed(bias: float, scale: float) -> None:
    """The power of these tests: scores 15 % too large, errors 41 % too large or 29 % too small."""
    fit = fit_counts("bradley-terry", bradley_terry_probabilities)
    with pytest.raises(AssertionError):
        assert_within_standard_errors(fit, bias * SCORES[1:], scale)


def test_davidson_scores_and_width() -> None:
    fit = fit_counts("davidson", davidson_probabilities)
    assert_within_standard_errors(fit, np.append(SCORES[1:], np.log(0.8)))


def test_rao_kupper_scores_and_width() -> None:
    fit = fit_counts("rao-kupper", rao_kupper_probabilities)
    assert_within_standard_errors(fit, np.append(SCORES[1:], np.log(0.6)))


@pytest.mark.parametrize("top_k", [0, 1, 2])
def test_plackett_luce_scores(top_k: int) -> None:
    """From whole rankings (4 choices each) and from their first places alone."""
    settings = ObjectiveSettings(kind="plackett-luce", top_k=top_k)

    def fit(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        tiers = [[(int(i),) for i in order] for order in simulated_rankings(rng)]
        return estimate(settings, group_of_rankings(tiers), NUM_RANKINGS * (top_k or 4))

    assert_within_standard_errors(fit, SCORES[1:])


def test_plackett_luce_scores_from_tiers_of_unknown_order() -> None:
    """Told are the first two, in no order, and the third: two choices and one."""
    settings = ObjectiveSettings(kind="plackett-luce", ties="drop")

    def fit(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        orders = simulated_rankings(rng).tolist()
        tiers = [[(a, b), (c,), (d, e)] for a, b, c, d, e in orders]
        return estimate(settings, group_of_rankings(tiers), NUM_RANKINGS * 3)

    assert_within_standard_errors(fit, SCORES[1:])


def simulated_annotators(rng: np.random.Generator) -> list[Vote]:
    """A third of the votes on each pair by each annotator."""
    votes = []
    for annotator, log_scale in enumerate(LOG_SCALES):
        for first, second in PAIRS:
            probability = expit(np.exp(log_scale) * (SCORES[first] - SCORES[second]))
            for won in rng.random(NUM_VOTES // len(LOG_SCALES)) < probability:
                order = ((first,), (second,)) if won else ((second,), (first,))
                votes.append(Vote(f"annotator {annotator}", order))
    return votes


def group_of_votes(votes: list[Vote]) -> RenderedGroup:
    return rendered(len(SCORES), [Comparison(*pair) for pair in PAIRS], votes)


def estimate_annotators(group: RenderedGroup) -> tuple[Tensor, Tensor]:
    """Scores but the first, and log scales but the last, which is minus their sum."""
    objective = Objective(ObjectiveSettings(annotators="scaled"), [group])
    batch = objective.batch([group])
    num_free = len(SCORES) - 1

    def loss(flat: Tensor) -> Tensor:
        reward_N = torch.cat([flat.new_zeros(1), flat[:num_free]])
        free_A = flat[num_free:]
        log_scale_A = torch.cat([free_A, -free_A.sum()[None]])
        learned = {"annotator_log_scale": log_scale_A}
        return NUM_VOTES * len(PAIRS) * objective.loss(reward_N, batch, learned)

    start = torch.linspace(0.1, -0.1, num_free, dtype=torch.float64)
    found = minimise(loss, torch.cat([start, start.new_zeros(len(LOG_SCALES) - 1)]))
    return found, torch.autograd.functional.hessian(loss, found)


def test_annotators_scales_and_scores() -> None:
    def fit(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        return estimate_annotators(group_of_votes(simulated_annotators(rng)))

    assert_within_standard_errors(fit, np.concatenate([SCORES[1:], LOG_SCALES[:-1]]))


def centred(values: np.ndarray) -> np.ndarray:
    return np.asarray(values) - np.mean(values)


def scores_of(found: Tensor) -> np.ndarray:
    """All five scores, centred as choix gives them."""
    return centred(np.append(0.0, found[: len(SCORES) - 1].numpy()))


def test_bradley_terry_agrees_with_choix() -> None:
    counts = pair_counts(np.random.default_rng(0), bradley_terry_probabilities)
    found, _ = estimate(ObjectiveSettings(), group_of_counts(counts), NUM_VOTES * len(PAIRS))
    data = []
    for (first, second), (won, lost) in zip(PAIRS, counts, strict=True):
        data += [(first, second)] * won + [(second, first)] * lost
    spectral = choix.ilsr_pairwise(len(SCORES), data, tol=1e-12)
    newton = choix.opt_pairwise(len(SCORES), data, alpha=1e-12, tol=1e-12)
    assert scores_of(found) == pytest.approx(centred(spectral), abs=1e-5)
    assert scores_of(found) == pytest.approx(centred(newton), abs=1e-5)


def test_plackett_luce_agrees_with_choix() -> None:
    orders = simulated_rankings(np.random.default_rng(0)).tolist()
    group = group_of_rankings([[(i,) for i in order] for order in orders])
    found, _ = estimate(ObjectiveSettings(kind="plackett-luce"), group, NUM_RANKINGS * 4)
    spectral = choix.ilsr_rankings(len(SCORES), orders, tol=1e-12)
    newton = choix.opt_rankings(len(SCORES), orders, alpha=1e-12, tol=1e-12)
    assert scores_of(found) == pytest.approx(centred(spectral), abs=1e-5)
    assert scores_of(found) == pytest.approx(centred(newton), abs=1e-5)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_first_places_agree_with_choix(top_k: int) -> None:
    """The first k places are k choices of one among what is left."""
    orders = simulated_rankings(np.random.default_rng(0)).tolist()
    group = group_of_rankings([[(i,) for i in order] for order in orders])
    settings = ObjectiveSettings(kind="plackett-luce", top_k=top_k)
    found, _ = estimate(settings, group, NUM_RANKINGS * top_k)
    choices = [(order[k], order[k + 1 :]) for order in orders for k in range(top_k)]
    oracle = choix.opt_top1(len(SCORES), choices, alpha=1e-12, tol=1e-12)
    assert scores_of(found) == pytest.approx(centred(oracle), abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "probabilities"),
    [("davidson", davidson_probabilities), ("rao-kupper", rao_kupper_probabilities)],
)
def test_tie_models_agree_with_scipy(kind: str, probabilities: Callable[..., np.ndarray]) -> None:
    counts = pair_counts(np.random.default_rng(0), probabilities)
    settings = ObjectiveSettings(kind=kind)  # type: ignore[arg-type]
    found, _ = estimate(settings, group_of_counts(counts), NUM_VOTES * len(PAIRS))

    def mean_loss(flat: np.ndarray) -> float:
        scores, width = np.append(0.0, flat[:-1]), np.exp(flat[-1])
        total = 0.0
        for (first, second), row in zip(PAIRS, counts, strict=True):
            total -= row @ np.log(probabilities(scores[first] - scores[second], width))
        return float(total / counts.sum())

    oracle = minimize(mean_loss, np.zeros(len(SCORES)), method="BFGS", options={"gtol": 1e-8})
    assert found.numpy() == pytest.approx(oracle.x, abs=1e-5)


def test_annotators_agree_with_scipy() -> None:
    """The oracle fixes the scale of the first annotator at 1 instead of the mean log scale at 0:
    its scores are ours times that annotator's scale, its scales ours over it. The prior is on log
    scales less their mean, each with as many votes."""
    votes = simulated_annotators(np.random.default_rng(0))
    found, _ = estimate_annotators(group_of_votes(votes))
    num_free = len(SCORES) - 1
    index = np.array([(int(v.annotator[-1]), v.ranking[0][0], v.ranking[1][0]) for v in votes])

    def mean_loss(flat: np.ndarray) -> float:
        scores, scales = np.append(0.0, flat[:num_free]), np.append(1.0, flat[num_free:])
        margins = scales[index[:, 0]] * (scores[index[:, 1]] - scores[index[:, 2]])
        prior = np.square(centred(np.log(scales))).sum() / 2 / len(index)
        return float(np.mean(np.logaddexp(0, -margins)) + prior)

    start = np.append(np.linspace(0.1, -0.1, num_free), [1.0, 1.0])
    oracle = minimize(mean_loss, start, method="BFGS", options={"gtol": 1e-8}).x
    log_scales = np.append(found[num_free:], -found[num_free:].sum())
    first = np.exp(log_scales[0])
    assert found[:num_free].numpy() * first == pytest.approx(oracle[:num_free], abs=2e-5)
    assert np.exp(log_scales[1:]) / first == pytest.approx(oracle[num_free:], abs=2e-5)
