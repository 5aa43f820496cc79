"""What would have no effect is refused, with the key and what to do; odd data are told of."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from palate.errors import PalateError
from palate.objectives import Objective, ObjectiveSettings
from palate.objectives.regression import ASSUMPTIONS
from palate.pipeline.config import TrainConfig
from palate.preferences import Comparison, read
from palate.preferences.settings import ReadSettings
from palate.preferences.votes import VoteSettings
from palate.rendering import RenderedGroup
from palate.rendering.store import GroupStore, writing
from tests.objective_cases import CASES, GROUPS, WITH_MARGINS, rendered, vote

PAIR = rendered(2, [Comparison(0, 1)])
RANKED = rendered(4, [Comparison(a, b) for a in range(4) for b in range(a + 1, 4)])
TWO_OF_THREE = rendered(3, [Comparison(0, 1), Comparison(1, 2)], [vote("a", 0, 1), vote("b", 1, 2)])
TIE = Comparison(0, 1, 0.5, tie=1.0)
TIED = rendered(2, [TIE])
TWO_ANNOTATORS = rendered(2, [Comparison(0, 1)], [vote("a", 0, 1), vote("b", 0, 1)])
ONE_ANNOTATOR = rendered(2, [Comparison(0, 1)], [vote("a", 0, 1), vote("a", 0, 1)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_smoothing": 0.5}, r"objective.label_smoothing is 0.5, must be in \[0, 0.5\)"),
        ({"label_smoothing": float("nan")}, r"objective.label_smoothing is nan"),
        ({"kind": "log-exp"}, "none of bradley-terry, .*; log-exp is the Bradley-Terry loss"),
        ({"kind": "elo"}, "objective.kind 'elo' is none of .*, regression$"),
        ({"centring": -1.0}, "objective.centring is -1.0"),
        ({"sum_to_zero": float("inf")}, "objective.sum_to_zero is inf"),
        ({"kind": "hinge", "hinge_margin": 0.0}, "objective.hinge_margin is 0.0, must be above 0"),
        ({"kind": "plackett-luce", "top_k": -1}, "objective.top_k is -1, must be 0 or more"),
        ({"hinge_margin": 2.0}, "hinge_margin 2.0 has no effect with objective.kind bradley-terry"),
        ({"kind": "davidson", "top_k": 2}, "top_k 2 has no effect .* it is for plackett-luce"),
        (
            {"kind": "plackett-luce", "label_smoothing": 0.1},
            "label_smoothing 0.1 has no effect .* bradley-terry, davidson, rao-kupper, hinge",
        ),
        ({"kind": "regression", "label_smoothing": 0.1}, "label_smoothing 0.1 has no effect"),
        ({"kind": "hinge", "annotators": "scaled"}, "annotators scaled has no effect"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(PalateError, match=message):
        ObjectiveSettings(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("objective", [{"kind": "plackett-luce"}, {"annotators": "scaled"}])
@pytest.mark.parametrize(
    "votes", [{"target": "majority"}, {"prior": 1.0}, {"annotator_weights": {"a": 2.0}}], ids=str
)
def test_how_votes_are_counted_does_not_reach_losses_that_read_them(
    objective: dict[str, object], votes: dict[str, object]
) -> None:
    read = ReadSettings(votes=VoteSettings(**votes))  # type: ignore[arg-type]
    TrainConfig(model="m", data="d", read=read)
    settings = ObjectiveSettings(**objective)  # type: ignore[arg-type]
    with pytest.raises(PalateError, match=rf"read.votes.{next(iter(votes))} .* has no effect on"):
        TrainConfig(model="m", data="d", read=read, objective=settings)


@pytest.mark.parametrize(
    ("settings", "groups", "message"),
    [
        ({"kind": "davidson"}, [PAIR, RANKED], "davidson needs tie votes, .* bradley-terry"),
        ({"kind": "rao-kupper"}, [PAIR], "rao-kupper needs tie votes, .* bradley-terry"),
        ({"kind": "rao-kupper"}, [TIED], "every vote of the training data is a tie"),
        ({"kind": "plackett-luce"}, [PAIR, TIED], "needs rankings .* use objective.kind bradley"),
        (
            {"kind": "plackett-luce"},
            [PAIR, TWO_OF_THREE],
            "rankings of three answers or more, and the training data have only 2 rankings of two;",
        ),
        ({"kind": "plackett-luce", "top_k": 3}, [RANKED], "top_k 3 has no effect: no ranking"),
        ({"kind": "regression"}, [PAIR], "needs ratings, and no training response has one"),
        (
            {"kind": "regression"},
            [rendered(2, [Comparison(0, 1)], ratings=[3.0, 3.0])],
            "all 2 ratings of the training data are 3;",
        ),
        ({"annotators": "scaled"}, [PAIR], "two annotators or more, and the training data have 0"),
        ({"annotators": "scaled"}, [ONE_ANNOTATOR], "the training data have 1; use pooled"),
        (
            {"label_smoothing": 0.1},
            WITH_MARGINS,
            r"votes.jsonl:7: .* margins, which need sure labels, and objective.label_smoothing 0.1",
        ),
    ],
)
def test_objectives_without_their_data(
    settings: dict[str, object], groups: list[RenderedGroup], message: str
) -> None:
    with pytest.raises(PalateError, match=message):
        Objective(ObjectiveSettings(**settings), groups)  # type: ignore[arg-type]


def test_scales_of_votes_that_only_stand_beside_are_refused_with_the_remedy() -> None:
    votes = [vote("a", 0, 1), vote("b", 0, 1)]
    beside = rendered(2, [Comparison(1, 0)], votes, stated=True)
    settings = ObjectiveSettings(annotators="scaled")
    with pytest.raises(PalateError, match=r"have 0; 1 prompt with votes beside .*recount"):
        Objective(settings, [beside])
    counted = rendered(2, [Comparison(0, 1)], votes)
    objective = Objective(settings, [counted, beside])
    assert "1 of 2 prompts have votes beside stated" in objective.warnings[1]
    # What is stated counts once, with the mean scale.
    learned = {"annotator_log_scale": torch.tensor([1.0, -1.0])}
    reward_N = torch.tensor([0.0, 1.3])
    loss = objective.data_loss(reward_N, objective.batch([beside]), learned)
    assert float(loss) == pytest.approx(math.log1p(math.exp(-1.3)), rel=1e-6)


def test_votes_are_read_where_reading_counted_them(tmp_path: Path) -> None:
    """Votes alone; votes beside comparisons; the same recounted; the same from a store on disk."""
    row = {
        "prompt": "?",
        "responses": [{"text": "x"}, {"text": "y"}],
        "votes": [{"annotator": "a", "ranking": [[0], [1]]}],
    }
    stated = {**row, "comparisons": [{"better": 1, "worse": 0}]}
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(row)}\n{json.dumps(stated)}\n")
    recount = ReadSettings(votes=VoteSettings(recount=True))
    for settings, expected in ((ReadSettings(), [True, False]), (recount, [True, True])):
        groups = read(str(path), settings).groups
        assert [group.votes_counted for group in groups] == expected
    group = next(iter(groups))
    with writing(tmp_path / "store") as writer:
        for counted in (True, False):
            item = replace(PAIR, group=replace(group, votes_counted=counted))
            writer.append(item)
    store = GroupStore(tmp_path / "store")
    assert [item.group.votes_counted for item in store] == [True, False]


RATED = rendered(2, [Comparison(0, 1)], ratings=[2.0, 1.0])


@pytest.mark.parametrize(
    ("settings", "silent"),
    [
        ({"kind": "regression"}, PAIR),
        ({"ties": "drop"}, TIED),
        ({"kind": "hinge"}, rendered(2, [Comparison(0, 1, weight=0.0)])),
        ({"kind": "plackett-luce", "ties": "drop"}, TIED),
        ({"annotators": "scaled", "ties": "drop"}, rendered(2, [TIE], [vote("b", (0, 1))])),
    ],
    ids=str,
)
def test_prompts_that_say_nothing_are_not_counted(
    settings: dict[str, object], silent: RenderedGroup
) -> None:
    """Nor may a validation set be made of them alone: its loss would be 0 for every model."""
    trained_on = [RATED, RANKED, TWO_ANNOTATORS]
    objective = Objective(ObjectiveSettings(**settings), trained_on)  # type: ignore[arg-type]
    batch = objective.batch([silent, RATED, silent, RATED])
    assert (batch.num_prompts, batch.num_counted) == (4, 2)
    objective.check_validation({"first": [silent, RATED]})
    with pytest.raises(PalateError, match="validation set other: none of its 2 prompts"):
        objective.check_validation({"first": [RATED], "other": [silent, silent]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "davidson"}, "margins, which objective.kind davidson does not take"),
        ({"kind": "rao-kupper"}, "margins, which objective.kind rao-kupper does not take"),
        ({"kind": "plackett-luce"}, "margins, which objective.kind plackett-luce does not take"),
        ({"kind": "regression"}, "margins, which objective.kind regression does not take"),
        ({"annotators": "scaled"}, "margins, which objective.annotators scaled does not take"),
    ],
)
def test_margins_are_not_dropped_in_silence(settings: dict[str, object], message: str) -> None:
    with pytest.raises(PalateError, match=f"{message}.*read.votes.margin_per_strength 0"):
        Objective(ObjectiveSettings(**settings), [*GROUPS, *WITH_MARGINS])  # type: ignore[arg-type]


def test_the_first_two_of_four_places_are_less_than_all() -> None:
    """The last of four is no choice: three places say as much as all."""
    settings = ObjectiveSettings(kind="plackett-luce", top_k=2)
    assert len(Objective(settings, [RANKED]).batch([RANKED]).other.placings[0].weight_L) == 2  # type: ignore[union-attr]


def test_warnings_say_what_counts_otherwise_or_not() -> None:
    ranked = Objective(ObjectiveSettings(kind="plackett-luce"), GROUPS).warnings
    assert len(ranked) == 1 and "1 of 3 prompts with three answers or more have no" in ranked[0]
    mixed = Objective(ObjectiveSettings(kind="plackett-luce"), [RANKED, TWO_OF_THREE]).warnings
    assert len(mixed) == 1 and "2 of 3 rankings of prompts with three" in mixed[0]
    rated = Objective(ObjectiveSettings(kind="regression"), GROUPS).warnings
    assert rated[0] == ASSUMPTIONS and "2 of 5 prompts have no rating" in rated[1]
    scaled = Objective(ObjectiveSettings(annotators="scaled"), GROUPS).warnings
    assert len(scaled) == 1 and "3 of 3 annotators voted on fewer than 20" in scaled[0]


def test_nothing_to_say_where_all_is_well() -> None:
    votes = [vote(name, 0, 1) for name in "ab" for _ in range(20)]
    enough = rendered(2, [Comparison(0, 1)], votes)
    assert Objective(ObjectiveSettings(annotators="scaled"), [enough]).warnings == ()
    assert Objective(ObjectiveSettings(kind="plackett-luce"), [RANKED, PAIR]).warnings == ()
    rated = rendered(2, [Comparison(0, 1)], ratings=[2.0, 1.0])
    assert Objective(ObjectiveSettings(kind="regression"), [rated]).warnings == (ASSUMPTIONS,)
    assert Objective(ObjectiveSettings(), GROUPS).warnings == ()


@pytest.mark.parametrize(
    ("case", "names"),
    [
        ("bradley-terry", {}),
        ("hinge", {}),
        ("plackett-luce", {}),
        ("davidson", {"tie_log_width": ()}),
        ("rao-kupper", {"tie_log_width": ()}),
        ("regression", {"rating_offset": ()}),
        ("annotators scaled", {"annotator_log_scale": (3,)}),
    ],
)
def test_what_each_objective_learns(case: str, names: dict[str, tuple[int, ...]]) -> None:
    settings, groups = CASES[case]
    objective = Objective(settings, groups)
    assert {name: tuple(value.shape) for name, value in objective.initial.items()} == names
    assert all(str(value.dtype) == "torch.float32" for value in objective.initial.values())
    assert bool(objective.describe(objective.initial)) == bool(names)


def test_only_sum_to_zero_needs_the_mean_of_the_step() -> None:
    for case, (settings, groups) in CASES.items():
        assert Objective(settings, groups).needs_mean == (case == "sum to zero")
