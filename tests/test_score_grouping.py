"""Answers to one prompt share its computation wherever they stand in the file."""

import json
import os
import threading
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import palate
from palate.model.reward_model import RewardModel
from palate.pipeline import score_stages
from palate.pipeline.score_answers import AnswerStore, append_rows
from palate.pipeline.score_file import ScoreConfig, score_file
from palate.pipeline.score_order import (
    MAX_REPEATS_OF_A_TOKEN,
    MICROBATCHES_PER_CHUNK,
    chunks,
    dictionary_order,
    length_order,
)
from palate.pipeline.score_progress import Progress
from palate.pipeline.score_rows import PendingRow
from tests.tiny import save_tiny

BUDGET = 300
"""Tokens of a microbatch; a chunk is 4800."""
NUM_PROMPTS = 5
PROMPTS = [f"{number} " + "which word of the list is it? " * 5 for number in range(NUM_PROMPTS)]


def spread_rows(count: int) -> list[dict[str, Any]]:
    """Row i answers prompt i mod 5; all answers are different and equally long."""
    return [
        {"id": i, "prompt": PROMPTS[i % NUM_PROMPTS], "response": f"It is word {i:04d}."}
        for i in range(count)
    ]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model") / "llama", head=True)


@pytest.fixture
def slots(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Token slots of each plan that the body processes."""
    seen: list[int] = []
    run = RewardModel.run

    def counted(self: RewardModel, plan: Any) -> Any:
        seen.append(plan.num_slots)
        return run(self, plan)

    monkeypatch.setattr(RewardModel, "run", counted)
    return seen


def scored(model: str, folder: Path, rows: Sequence[dict[str, Any]], **fields: Any) -> list[Any]:
    """Rewards (or lists of them) by row."""
    data, output = write_rows(folder / "rows.jsonl", rows), folder / "scored.jsonl"
    output.unlink(missing_ok=True)
    config: dict[str, Any] = {"tokens_per_microbatch": BUDGET, **fields}
    score_file(ScoreConfig(model=model, data=data, output=str(output), **config))
    lines = read_rows(output)
    assert [{name: line[name] for name in row} for row, line in zip(rows, lines, strict=True)] == [
        *rows
    ], "every row in its place"
    assert not any(line["error"] for line in lines)
    return [line["reward"] if "reward" in line else line["rewards"] for line in lines]


def test_answers_spread_over_the_file_take_no_more_than_the_same_sorted_by_prompt(
    model: str, tmp_path: Path, slots: list[int]
) -> None:
    """200 answers to 5 prompts. In the file's order a chunk of 16 microbatches has about 25 rows,
    five to a prompt; with neighbours together, a tree of 300 tokens has one prompt and as many
    answers as it can hold."""
    rows = spread_rows(200)
    in_order = sorted(rows, key=lambda row: (row["prompt"], row["id"]))
    rewards = scored(model, tmp_path, rows)
    spread, num_passes = sum(slots), len(slots)
    slots.clear()
    sorted_rewards = scored(model, tmp_path, in_order)
    assert (sum(slots), len(slots)) == (spread, num_passes)
    by_id = {row["id"]: reward for row, reward in zip(in_order, sorted_rewards, strict=True)}
    assert [by_id[row["id"]] for row in rows] == rewards, "the same batches, the same bits"
    slots.clear()
    scorer = palate.load(model, tokens_per_microbatch=BUDGET)
    one_by_one = [scorer.score(row["prompt"], row["response"]) for row in rows]
    assert rewards == pytest.approx(one_by_one, abs=1e-5)
    assert spread < sum(slots) / 4


def test_the_order_of_the_file_does_not_matter_to_the_work_of_an_encoder(
    tmp_path: Path, slots: list[int]
) -> None:
    """Layout `rows` shares nothing; with like lengths together it pads next to nothing. Lengths
    differ by up to 60 tokens and come in turn, so that each chunk of the file's order has them all.
    """
    model = save_tiny(tmp_path / "bert", "bert", head=True)
    scorer = palate.load(model, tokens_per_microbatch=BUDGET)
    rows = [
        {"prompt": "Which?", "response": "word" * (1 + i * 7 % 16) + str(i)} for i in range(160)
    ]
    slots.clear()
    palate.load(model)
    num_guarding = sum(slots)
    slots.clear()
    rewards = scored(model, tmp_path, rows)
    spread = sum(slots) - num_guarding
    slots.clear()
    expected = [scorer.score(row["prompt"], row["response"]) for row in rows]
    num_tokens = sum(slots)
    assert rewards == pytest.approx(expected, abs=1e-5)
    assert num_tokens <= spread < 1.05 * num_tokens


def test_equal_answers_far_apart_have_equal_rewards_to_the_last_bit(
    model: str, tmp_path: Path
) -> None:
    """Among 200 others that share its prompt or not, so that batches differ along the file."""
    rows = spread_rows(200)
    same = {"prompt": PROMPTS[2], "response": "The very same."}
    for place in (0, 77, 130, 199):
        rows[place] = same
    rows[140] = {"prompt": PROMPTS[2], "responses": ["Another.", "The very same."]}
    rewards = scored(model, tmp_path, rows)
    assert len({rewards[0], rewards[77], rewards[130], rewards[199], rewards[140][1]}) == 1


def test_a_thousand_copies_of_one_answer_are_one_computation(
    model: str, tmp_path: Path, slots: list[int]
) -> None:
    row = {"prompt": PROMPTS[0], "response": "The very same."}
    (reward,) = scored(model, tmp_path, [row])
    of_one = list(slots)
    slots.clear()
    assert scored(model, tmp_path, [row] * 1000) == [reward] * 1000
    assert slots == of_one


def test_rows_that_fit_one_chunk_go_through_memory(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("nothing is put on the disk")

    monkeypatch.setattr(score_stages, "append_rows", never)
    monkeypatch.setattr(score_stages, "AnswerStore", never)
    scored(model, tmp_path, spread_rows(40), tokens_per_microbatch=8192)
    with pytest.raises(AssertionError):
        scored(model, tmp_path, spread_rows(40))


def test_data_that_can_be_read_once_only_are_scored_as_a_file_is(
    model: str, tmp_path: Path
) -> None:
    """A pipe: what the last pass writes comes from what the first one put aside."""
    rows = spread_rows(100)
    expected = scored(model, tmp_path, rows)
    pipe, output = tmp_path / "pipe.jsonl", tmp_path / "from_pipe.jsonl"
    os.mkfifo(pipe)
    writer = threading.Thread(target=write_rows, args=(pipe, rows))
    writer.start()
    config = ScoreConfig(
        model=model, data=str(pipe), output=str(output), tokens_per_microbatch=BUDGET
    )
    score_file(config)
    writer.join()
    assert [row["reward"] for row in read_rows(output)] == expected


def stored(directory: Path, sequences: Sequence[tuple[int, ...]]) -> AnswerStore:
    row = PendingRow({}, list(sequences), [], is_list=True)
    return AnswerStore(directory, append_rows(directory, [row], Progress("")))


ids = st.lists(st.integers(0, 3) | st.sampled_from([255, 256, 2**31, 2**32 - 1]), min_size=1)
few_ids = st.lists(ids.map(tuple), max_size=30)


@given(sequences=few_ids, segment_tokens=st.sampled_from([1, 40, 100, 10**6]))
def test_the_order_is_the_dictionarys_however_much_is_sorted_at_once(
    tmp_path_factory: pytest.TempPathFactory,
    sequences: list[tuple[int, ...]],
    segment_tokens: int,
) -> None:
    """Ids of one to four bytes, beginnings of one another and equal ones among them; segments of
    one answer, of two or three, of all."""
    store = stored(tmp_path_factory.mktemp("store"), sequences)
    assert [tuple(store[place].tolist()) for place in range(len(store))] == sequences
    places = range(len(sequences))
    in_order = sorted(places, key=lambda place: sequences[place])
    assert dictionary_order(store, segment_tokens).tolist() == in_order
    by_length = sorted(places, key=lambda place: (len(sequences[place]), sequences[place]))
    assert length_order(store, segment_tokens).tolist() == by_length


@given(sequences=few_ids, budget=st.integers(1, 60), shares_prompts=st.booleans())
def test_chunks_hold_each_place_once_and_start_anew_at_their_starts(
    tmp_path_factory: pytest.TempPathFactory,
    sequences: list[tuple[int, ...]],
    budget: int,
    shares_prompts: bool,
) -> None:
    """Equal sequences are one of one chunk; its ids stay within the limits, unless it has but one
    sequence. What is left from a chunk's start on is divided as it was."""
    store = stored(tmp_path_factory.mktemp("store"), sequences)
    order = dictionary_order(store)
    divided = list(chunks(store, order, budget, shares_prompts))
    assert [place for chunk in divided for place in chunk.places] == order.tolist()
    for chunk in divided:
        given_ids = [chunk.sequences[number] for number in chunk.which]
        assert given_ids == [sequences[place] for place in chunk.places]
        num_ids = sum(map(len, chunk.sequences))
        assert len(chunk.sequences) == 1 or chunk.num_fresh <= 2 * budget
        assert len(chunk.sequences) == 1 or num_ids <= MAX_REPEATS_OF_A_TOKEN * budget
        assert num_ids == chunk.num_fresh or shares_prompts
    distinct = [ids for chunk in divided for ids in chunk.sequences]
    assert len(distinct) == len(set(distinct)) == len(set(sequences))
    start = 0
    for number, chunk in enumerate(divided):
        assert list(chunks(store, order[start:], budget, shares_prompts)) == divided[number:]
        start += len(chunk.places)


def test_a_prompt_is_divided_only_when_its_answers_are_twice_a_chunk(tmp_path: Path) -> None:
    """Prompts of 20 tokens with 8 answers of 5 are 60 to compute. With a budget of 50 each prompt
    is a chunk; with 100 two are (one is not enough yet); with 25, 50 is the most: 20 + 6 * 5, then
    2 answers are left, which pay for the prompt again and go with the next prompt's first: 20 + 2 *
    5 >= 25 already, so they don't."""
    sequences = [(*[prompt] * 20, answer, *[9] * 4) for prompt in range(4) for answer in range(8)]
    store = stored(tmp_path, sequences)

    def sizes(budget: int) -> list[int]:
        return [len(chunk.places) for chunk in chunks(store, range(32), budget, True)]

    assert sizes(50) == [8, 8, 8, 8]
    assert sizes(100) == [16, 16]
    assert sizes(25) == [6, 2, 6, 2, 6, 2, 6, 2]


def test_the_order_takes_some_tens_of_bytes_an_answer(tmp_path: Path) -> None:
    """60,000 answers of 20 tokens: 4.8 MB of ids. 24 bytes an answer are 1.4 MB; a segment of 2,000
    tokens (at 52 an answer, some 40 answers) adds little, a run object for each of 1,500 segments
    some hundred bytes."""
    dice = np.random.default_rng(0)
    tokens = dice.integers(0, 9, (60_000, 20))
    store = stored(tmp_path, [tuple(row) for row in tokens.tolist()])
    tracemalloc.start()
    order = dictionary_order(store, segment_tokens=2_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    expected = np.lexsort(tokens.T[::-1])
    assert np.array_equal(order, expected)
    assert peak < 60_000 * 24 + 2_000_000


def test_sixteen_microbatches_are_a_chunk() -> None:
    """docs/scoring.md says so."""
    assert MICROBATCHES_PER_CHUNK == 16
