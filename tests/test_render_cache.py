"""Token ids from the cache are those that would be made, and are found when and only when they are
the ids of the same text under the same renderer."""

import logging
import resource
import shutil
import signal
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.artifacts.ledger import Ledger, LedgerEntry
from palate.errors import PalateError
from palate.preferences import Comparison, Message, PreferenceGroup, Response, Vote
from palate.rendering import LengthSettings, RenderedGroup, Renderer, RenderSettings, Tokeniser
from palate.rendering import token_cache as cache_module
from palate.rendering import tokeniser as tokeniser_module
from palate.rendering.group_ids import GroupIds, GroupText, text_of, tokenise
from palate.rendering.token_cache import TokenCache, renderer_key, text_key
from tests.rows import any_groups
from tests.runs import pair_rows
from tests.tiny import CHATML, byte_tokenizer, word_piece_tokenizer

LENGTHS = LengthSettings(max_prompt_tokens=60, max_response_tokens=40)
STRICT = "{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('no system') }}{%- endif -%}"


def group(*texts: str, prompt: str = "how?", line: int = 1, role: str = "user") -> PreferenceGroup:
    turns = (Message(role, "q"),) if role != "user" else ()
    return PreferenceGroup(
        (*turns, Message("user", prompt)),
        tuple(map(Response, texts)),
        tuple(Comparison(0, worse) for worse in range(1, len(texts))),
        file="a.jsonl",
        line=line,
        id=f"row {line}",
    )


def all_that_can_happen() -> list[PreferenceGroup]:
    """Under `uncased`: fine, cut prompt, answer left out, two answers one, both, nothing left,
    all one, template refuses, prompt too long, template without tools."""
    return [
        group("yes", "no", line=1),
        group("yes", "no", prompt="x" * 90, line=2),
        group("yes", "no", "n" * 50, line=3),
        group("Yes", "yes", "no", line=4),
        group("Yes", "yes", "no", "n" * 50, prompt="x" * 90, line=5),
        group("yes", "n" * 50, line=6),
        group("Yes", "yes", line=7),
        group("yes", "no", role="system", line=8),
        replace(group("yes", "no", line=9), further_lines=(10,), tools=({"name": "f"},)),
    ]


def uncased(template: str = STRICT + CHATML, **changes: Any) -> Renderer:
    tokenizer = word_piece_tokenizer()
    tokenizer.chat_template = template.replace("<|im_start|>", "[CLS]").replace(
        "<|im_end|>", "[SEP]"
    )
    return Renderer(tokenizer, changes.pop("lengths", LENGTHS), **changes)


def through(
    directory: Path, renderer: Renderer, groups: list[PreferenceGroup]
) -> tuple[list[RenderedGroup], list[LedgerEntry], int]:
    """Groups and entries, and how many groups the cache held."""
    ledger = Ledger()
    with Tokeniser(renderer, RenderSettings(workers=1, cache=str(directory))) as tokeniser:
        rendered = tokeniser.render(groups, ledger)
    assert tokeniser.num_found + tokeniser.num_tokenised == len(groups)
    return rendered, list(ledger.entries), tokeniser.num_found


def without_tokenising(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("tokenised")

    monkeypatch.setattr(Renderer, "_encode", refuse)


def shards(directory: Path) -> list[Path]:
    return sorted(directory.glob("*/*.safetensors"))


@pytest.mark.parametrize("overlong", ["leave_out", "cut"])
def test_a_second_run_tokenises_nothing_and_ends_with_the_same_groups_and_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlong: Any
) -> None:
    renderer = uncased(lengths=replace(LENGTHS, overlong=overlong))
    groups = all_that_can_happen()
    ledger = Ledger()
    with Tokeniser(renderer) as plain:
        expected = plain.render(groups, ledger)
    reasons = {entry.reason for entry in ledger.entries}
    assert {"prompt cut", "identical after rendering", "template refused"} < reasons
    assert "tools ignored" in reasons
    assert [entry.line for entry in ledger.entries if entry.reason == "tools ignored"] == [9, 10]
    assert through(tmp_path, renderer, groups) == (expected, list(ledger.entries), 0)
    without_tokenising(monkeypatch)
    assert through(tmp_path, renderer, groups) == (expected, list(ledger.entries), len(groups))


def test_an_error_that_was_asked_for_comes_from_the_cache_too(tmp_path: Path) -> None:
    """Ids that were made under leave_out serve a run that stops at an over-long answer."""
    groups = [group("yes", "n" * 50, line=6)]
    through(tmp_path, uncased(), groups)
    strict = uncased(lengths=replace(LENGTHS, overlong="error"))
    with pytest.raises(PalateError, match=r"a.jsonl:6: response 1 has 51 tokens, limit 40"):
        through(tmp_path, strict, groups)


def test_order_labels_and_places_do_not_matter(tmp_path: Path) -> None:
    groups = [group("yes", "no", prompt=f"question {i}", line=i) for i in range(20)]
    through(tmp_path, uncased(), groups)
    others = [
        replace(
            g,
            comparisons=(Comparison(1, 0, probability=0.7),),
            votes=(Vote("a", ((1,), (0,))),),
            responses=tuple(replace(r, model="m", rating=2.0, meta={"a": 1}) for r in g.responses),
            id=None,
            file="b.csv",
            line=7 * g.line,
            meta={"x": 1},
        )
        for g in reversed(groups[3:])
    ]
    rendered, _, num_found = through(tmp_path, uncased(), others)
    assert num_found == 17
    assert [g.group for g in rendered] == others


RENDERERS: dict[str, Any] = {
    "max_prompt_tokens": {"lengths": replace(LENGTHS, max_prompt_tokens=61)},
    "max_response_tokens": {"lengths": replace(LENGTHS, max_response_tokens=41)},
    "template": {"template": STRICT + CHATML.replace("assistant\\n", "assistant: ")},
    "template_arguments": {"template_arguments": {"shout": True}},
    "order of template_arguments": {"template_arguments": {"b": {"x": 1, "y": 2}}},
    "keep_template": {"keep_template": True},
    "unread_id": {"unread_id": 3},
}


def test_whatever_of_the_renderer_decides_ids_makes_another_key() -> None:
    keys = {name: renderer_key(uncased(**changes)) for name, changes in RENDERERS.items()}
    keys["as it was"] = renderer_key(uncased())
    keys["reversed"] = renderer_key(uncased(template_arguments={"b": {"y": 2, "x": 1}}))
    keys["tokenizer"] = renderer_key(Renderer(byte_tokenizer(STRICT + CHATML), LENGTHS))
    starting = byte_tokenizer(STRICT + CHATML)
    starting.bos_token = "<|im_start|>"  # known before, but not by this name
    keys["bos_token"] = renderer_key(Renderer(starting, LENGTHS))
    assert None not in keys.values()
    assert len(set(keys.values())) == len(keys)
    assert renderer_key(uncased()) == keys["as it was"]
    cut = uncased(lengths=replace(LENGTHS, overlong="cut"))
    assert renderer_key(cut) == keys["as it was"]


@pytest.mark.parametrize("name", ["max_prompt_tokens", "max_response_tokens", "template"])
def test_another_limit_or_template_misses(tmp_path: Path, name: str) -> None:
    groups = all_that_can_happen()
    through(tmp_path, uncased(), groups)
    renderer = uncased(**RENDERERS[name])
    ledger = Ledger()
    with Tokeniser(renderer) as plain:
        expected = plain.render(groups, ledger)
    assert through(tmp_path, renderer, groups) == (expected, list(ledger.entries), 0)
    assert through(tmp_path, uncased(), groups)[2] == len(groups)


def test_whatever_of_a_group_decides_ids_makes_another_key() -> None:
    base = replace(group("yes", "no"), tools=({"a": 1, "b": 2},))
    call = Message("user", "how?", {"name": "x"})
    others = [
        replace(base, prompt=(Message("user", "how"),)),
        replace(base, prompt=(Message("tool", "how?"),)),
        replace(base, prompt=(Message("user", "how?"), Message("user", "how?"))),
        replace(base, prompt=(call,)),
        replace(base, responses=(Response("yes"), Response("no "))),
        replace(base, responses=(Response("no"), Response("yes"))),
        replace(base, responses=(Response("yes"), Response("no", finished=False))),
        replace(base, responses=(*base.responses, Response("maybe"))),
        replace(base, tools=({"b": 2, "a": 1},)),
        replace(base, tools=({"a": 1.0, "b": 2},)),
        replace(base, tools=({"a": True, "b": 2},)),
        replace(base, tools=({"a": 1}, {"b": 2})),
        replace(base, tools=()),
        replace(base, template_arguments={"a": 1}),
    ]
    keys = [text_key(text_of(other)) for other in (base, *others)]
    assert None not in keys
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("value", [(1, 2), {1: "a"}, {"when": object()}, {"x": {"y": (1,)}}])
def test_values_that_are_not_plain_json_are_not_cached(tmp_path: Path, value: Any) -> None:
    """Their JSON would be that of another value: a tuple's of a list, a number's of a text."""
    odd = replace(group("yes", "no"), template_arguments={"value": value})
    assert text_key(text_of(odd)) is None
    for _ in range(2):
        rendered, _, num_found = through(tmp_path, uncased(), [odd])
        assert (len(rendered), num_found) == (1, 0)
    assert renderer_key(uncased(template_arguments={"value": value})) is None


@settings(max_examples=60)
@given(st.lists(any_groups(), min_size=1, max_size=4))
def test_ids_come_back_whatever_the_group(
    tmp_path_factory: pytest.TempPathFactory, groups: list[PreferenceGroup]
) -> None:
    """And keys are equal where, and only where, texts are."""
    texts = [text_of(group) for group in groups]
    folder = tmp_path_factory.mktemp("cache")
    renderer = Renderer(byte_tokenizer(), LENGTHS)
    made = [tokenise(text, renderer) for text in texts]
    keys = [text_key(text) for text in texts]
    writer = TokenCache(folder)
    for key, ids in zip(keys, made, strict=True):
        assert key is not None
        writer.add(key, ids)
    writer.flush()
    reader = TokenCache(folder)
    assert [reader.get(key) for key in keys if key] == made
    assert reader.get(bytes(32)) is None
    for first, key in zip(texts, keys, strict=True):
        for second, other in zip(texts, keys, strict=True):
            assert (repr(first) == repr(second)) == (key == other)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip_last_bit(path: Path) -> None:
    """A token id becomes its neighbour: nothing but a checksum can see that."""
    contents = bytearray(path.read_bytes())
    contents[-4] ^= 1
    path.write_bytes(contents)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def of_another_renderer(path: Path) -> None:
    elsewhere = path.parent.parent / "another"
    through(elsewhere, uncased(**RENDERERS["template"]), all_that_can_happen())
    shutil.copy(shards(elsewhere)[0], path)
    shutil.rmtree(elsewhere)


@pytest.mark.parametrize("damage", [cut_short, flip_last_bit, empty, of_another_renderer])
def test_a_damaged_shard_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    groups = all_that_can_happen()
    rendered, entries, _ = through(tmp_path, uncased(), groups)
    (shard,) = shards(tmp_path)
    damage(shard)
    with caplog.at_level(logging.WARNING):
        assert through(tmp_path, uncased(), groups) == (rendered, entries, 0)
    assert "its token ids are made again" in caplog.text
    caplog.clear()
    assert through(tmp_path, uncased(), groups) == (rendered, entries, len(groups))
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


def test_a_shard_that_goes_while_it_is_used_is_made_again(tmp_path: Path) -> None:
    groups = all_that_can_happen()
    rendered, entries, _ = through(tmp_path, uncased(), groups)
    ledger = Ledger()
    with Tokeniser(uncased(), RenderSettings(workers=1, cache=str(tmp_path))) as tokeniser:
        shards(tmp_path)[0].unlink()
        assert tokeniser.render(groups, ledger) == rendered
    assert list(ledger.entries) == entries
    assert through(tmp_path, uncased(), groups)[2] == len(groups)


def test_two_runs_at_a_time_do_not_hurt_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turn by turn on the same data in the same folder; a killed third left half a file."""
    monkeypatch.setattr(cache_module, "SHARD_GROUPS", 4)
    monkeypatch.setattr(tokeniser_module, "BATCH_CHARACTERS", 1)
    groups = [group("yes", "no", prompt=f"question {i}", line=i) for i in range(30)]
    how = RenderSettings(workers=1, cache=str(tmp_path))
    with Tokeniser(uncased(), how) as one, Tokeniser(uncased(), how) as two:
        (folder,) = tmp_path.iterdir()
        (folder / ".half.safetensors.1.tmp").write_bytes(b"half")
        both = list(zip(one.ids(groups), two.ids(groups), strict=True))
    assert all(a == b for a, b in both)
    assert len(shards(tmp_path)) == 8
    assert through(tmp_path, uncased(), groups)[2] == 30


def test_what_a_killed_run_had_written_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "SHARD_GROUPS", 4)
    monkeypatch.setattr(tokeniser_module, "BATCH_CHARACTERS", 1)
    groups = [group("yes", "no", prompt=f"question {i}", line=i) for i in range(30)]
    tokeniser = Tokeniser(uncased(), RenderSettings(workers=1, cache=str(tmp_path)))
    stream = tokeniser.__enter__().ids(groups)
    for _ in range(11):
        next(stream)
    assert through(tmp_path, uncased(), groups)[2] == 8


def test_a_default_cache_that_can_not_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that was asked for is an error. A file where a folder should be stands for no leave."""
    (tmp_path / "palate").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ledger = Ledger()
    with Tokeniser(uncased(), RenderSettings(workers=1)) as tokeniser:
        assert len(tokeniser.render([group("yes", "no")], ledger)) == 1
    assert "token ids are not cached" in caplog.text
    with pytest.raises(PalateError, match=r"token cache: .*palate/mine.*choose another path"):
        through(tmp_path / "palate" / "mine", uncased(), [group("yes", "no")])


def test_a_disk_that_fills_ends_the_caching_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A limit of 1 kB a file stands for the full disk."""
    monkeypatch.setattr(cache_module, "SHARD_GROUPS", 4)
    groups = [group("yes", "no", prompt=f"question {i}", line=i) for i in range(30)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
        rendered, _, _ = through(tmp_path, uncased(), groups)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert len(rendered) == 30
    assert caplog.text.count("further token ids are not cached") == 1
    assert [path.name for path in tmp_path.glob("*/*")] == ["renderer.json"]


def test_the_place_is_the_users_cache_unless_another_or_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert RenderSettings().cache_directory == tmp_path / "palate" / "tokens"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RenderSettings().cache_directory == tmp_path / ".cache" / "palate" / "tokens"
    assert RenderSettings(cache="~/mine").cache_directory == tmp_path / "mine"
    assert RenderSettings(cache="off").cache_directory is None
    with Tokeniser(uncased(), RenderSettings(cache="off", workers=1)) as tokeniser:
        tokeniser.render([group("yes", "no")], Ledger())
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_what_is_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4,000 groups of 1,000 ids, 16 MB, in shards of 50; once to write them and once to read them,
    from a stream of 8 MB of text. Less than 6 MB of Python's memory each: 16 bytes a group, nine
    shards at 200 kB (the one to be written as Python's numbers, 8 bytes each and 28 for the large),
    and a batch."""
    monkeypatch.setattr(cache_module, "SHARD_GROUPS", 50)
    made = GroupIds((tuple(range(500)), tuple(range(7, 507))), (0, 0))

    def quickly(text: GroupText, _: Renderer) -> GroupIds:
        return made

    monkeypatch.setattr(tokeniser_module, "tokenise", quickly)
    row = pair_rows(1)[0]

    def stream() -> Iterator[PreferenceGroup]:
        for number in range(4000):
            yield group(row["chosen"], row["rejected"], prompt=f"{number} " + "x" * 2000)

    for num_found in (0, 4000):
        tracemalloc.start()
        with Tokeniser(uncased(), RenderSettings(workers=1, cache=str(tmp_path))) as tokeniser:
            for _, ids in tokeniser.ids(stream()):
                assert ids == made
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert tokeniser.num_found == num_found
        assert peak_bytes < 6e6
    assert sum(path.stat().st_size for path in shards(tmp_path)) > 16e6
