"""An inspection as text for a terminal, and as JSON."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import islice
from typing import Any

from palate.pipeline.inspection.inspect import Inspection
from palate.pipeline.inspection.observations import interval, observations, percent
from palate.pipeline.inspection.texts import Lengths
from palate.preferences import Comparison, Message, PreferenceGroup, Vote
from palate.preferences.writers import to_canonical
from palate.statistics import Estimate
from palate.text import plural

MAX_SHOWN_CHARACTERS = 600
"""Of a message or an answer; the middle of a longer one is left out."""
MAX_SHOWN_TURNS = 4
MAX_SHOWN_ANSWERS = 10
MAX_SHOWN_VOTES = 6
MAX_ROWS_OF_TABLE = 12
LABEL_WIDTH = 11


def as_text(seen: Inspection, width: int = 100) -> str:
    """What was found, the observations, and the groups, wrapped to `width` columns."""
    lines = [f"{seen.source}", ""]
    for label, paragraphs in _facts(seen):
        for paragraph in paragraphs:
            lines += _labelled(label, paragraph, width)
            label = ""
    lines += ["", "observations"]
    for sentence in observations(seen):
        lines += textwrap.wrap(
            sentence, width, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
        )
    for number, group in enumerate(seen.examples, start=1):
        where = f"line {', '.join(map(str, group.lines))}"
        lines += ["", f"group {number} of {len(seen.examples)} shown ({where})".ljust(width, " ")]
        lines += group_lines(group, width)
    return "\n".join(line.rstrip() for line in lines)


def _labelled(label: str, text: str, width: int) -> list[str]:
    indent = " " * LABEL_WIDTH
    wrapped: list[str] = []
    for line in text.splitlines():
        wrapped += textwrap.wrap(line, width - LABEL_WIDTH, break_on_hyphens=False) or [""]
    return [
        (label.ljust(LABEL_WIDTH) if place == 0 else indent) + line
        for place, line in enumerate(wrapped)
    ]


def _facts(seen: Inspection) -> Iterator[tuple[str, list[str]]]:
    prompts, answers = seen.prompts, seen.answers
    yield "format", [f"{seen.format}: {seen.why}"]
    yield "rows", [seen.ledger.summary(seen.num_rows_in_groups)]
    yield "fields", [_field_line(seen)]
    yield (
        "groups",
        [
            f"{plural(seen.num_groups, 'group')}, {plural(prompts.num_prompts, 'different prompt')}"
            f" in {plural(prompts.num_clusters, 'prompt cluster')}",
            f"answers to a prompt: {_counts(answers.answers_per_prompt)}",
            f"messages of a prompt: {_counts(prompts.num_messages)}",
        ],
    )
    lengths = [("prompt", answers.prompt_characters), ("answer", answers.answer_characters)]
    yield "characters", [f"{name}: {_lengths(found)}" for name, found in lengths if found]
    if (tokens := seen.tokens) is not None:
        lengths = [("prompt", tokens.prompt_tokens), ("answer", tokens.answer_tokens)]
        yield "tokens", [f"{name}: {_lengths(found)}" for name, found in lengths if found]
    yield "compared", [_comparison_line(seen)]
    if seen.votes is not None:
        yield "votes", list(_vote_lines(seen))
    if seen.ratings is not None:
        yield "ratings", [seen.ratings.summary()]
    if seen.quality.models:
        yield "models", list(_model_lines(seen))


def _counts(counts: Mapping[int, int]) -> str:
    shown = [f"{number} in {count}" for number, count in islice(counts.items(), MAX_ROWS_OF_TABLE)]
    more = f", more in {sum(islice(counts.values(), MAX_ROWS_OF_TABLE, None))}"
    return ", ".join(shown) + (more if len(counts) > MAX_ROWS_OF_TABLE else "")


def _lengths(found: Lengths) -> str:
    quantiles = ", ".join(f"{name} {length}" for name, length in found.quantiles.items())
    return f"shortest {found.minimum}, {quantiles}, longest {found.maximum}"


def _field_line(seen: Inspection) -> str:
    parts = []
    for name, facts in islice(seen.fields.items(), 2 * MAX_ROWS_OF_TABLE):
        kinds = " or ".join(facts.kinds) or "null"
        absent = seen.ledger.num_rows_read - facts.num_there
        notes = [
            f"{absent} without" * (absent > 0),
            f"{facts.num_empty} empty" * (facts.num_empty > 0),
        ]
        notes += [f"{facts.num_distinct} values" if facts.num_distinct is not None else ""]
        said = ", ".join(note for note in notes if note)
        parts.append(f"{_printable(name)} ({kinds}{'; ' if said else ''}{said})")
    more = len(seen.fields) - len(parts)
    return ", ".join(parts) + (f", {more} more" if more > 0 else "")


def _comparison_line(seen: Inspection) -> str:
    c = seen.comparisons
    parts = [f"{plural(c.num, 'comparison')}: {c.num_hard} hard, {c.num_soft} soft"]
    parts += [f"{c.num_with_ties} with tie votes"] if c.num_with_ties else []
    parts += [f"{c.num_undecided} undecided"] if c.num_undecided else []
    if c.margins:
        parts.append(f"{c.num_with_margin} with a margin from {c.margins[0]:g} to {c.margins[1]:g}")
    if c.weights:
        parts.append(f"{c.num_weighted} with a weight from {c.weights[0]:g} to {c.weights[1]:g}")
    return ", ".join(parts)


def _vote_lines(seen: Inspection) -> Iterator[str]:
    votes = seen.votes
    assert votes is not None
    per_group = _counts(votes.votes_per_group)
    yield f"{votes.num_votes} votes, {votes.num_ties} ties; on a group: {per_group}"
    ordered = sorted(votes.annotators.items(), key=lambda item: -item[1].num_votes)
    for name, person in ordered[:MAX_ROWS_OF_TABLE]:
        yield (
            f"{_printable(name)}: {person.num_votes} votes, {person.num_ties} ties,"
            f" most often {person.usual_answer} ({percent(person.usual_share)})"
        )
    if len(ordered) > MAX_ROWS_OF_TABLE:
        yield f"and {len(ordered) - MAX_ROWS_OF_TABLE} more annotators"
    if votes.pairs:
        agree = [f"{pair} {percent(share)}" for pair, share in votes.pairs.items()]
        yield f"agreement: {', '.join(map(_printable, agree[:MAX_ROWS_OF_TABLE]))}"


def _model_lines(seen: Inspection) -> Iterator[str]:
    models = sorted(seen.quality.models.items(), key=lambda item: -(item[1].win_share or 0))
    for name, model in models[:MAX_ROWS_OF_TABLE]:
        won = "never compared" if model.win_share is None else f"wins {percent(model.win_share)}"
        compared = f"{model.num_compared} (ties half)"
        yield f"{_printable(name)}: {won} of {compared}, {plural(model.num_answers, 'answer')}"
    if len(models) > MAX_ROWS_OF_TABLE:
        yield f"and {len(models) - MAX_ROWS_OF_TABLE} more models"
    if (predicts := seen.quality.model_predicts) is not None:
        yield (
            f"names alone predict {interval(predicts)} of the decided comparisons (order fitted on"
            " the other half of the prompts, equal ones half)"
        )


def group_lines(group: PreferenceGroup, width: int) -> list[str]:
    """A group as people read it: the turns, the answers in order of rank, the votes."""
    lines = []
    for message in _turns(group.prompt):
        label, text = (
            ("...", message) if isinstance(message, str) else (message.role, message.content)
        )
        lines += _block(label, text, width)
    ranked = ranks(len(group.responses), group.comparisons)
    for rank, index in ranked[:MAX_SHOWN_ANSWERS]:
        response = group.responses[index]
        notes = [f"answer {index}", *_won(index, group)]
        notes += [f"rated {response.rating:g}"] if response.rating is not None else []
        notes += [f"by {response.model}"] if response.model else []
        notes += ["unfinished"] if not response.finished else []
        lines += ["", f"  {rank}. {_printable('; '.join(notes))}"]
        lines += _block("", response.text, width)
    if len(ranked) > MAX_SHOWN_ANSWERS:
        lines += ["", f"  and {len(ranked) - MAX_SHOWN_ANSWERS} more answers"]
    if group.votes:
        said = [_vote(vote) for vote in group.votes[:MAX_SHOWN_VOTES]]
        more = len(group.votes) - len(said)
        said += [f"{more} more"] if more else []
        lines += ["", *_labelled("  votes", _printable("; ".join(said)), width)]
    return lines


def ranks(num_responses: int, comparisons: Iterable[Comparison]) -> list[tuple[int, int]]:
    """(rank, response) in order; those with equal scores share a rank, from 1.

    A response's score is the mean over its comparisons of the chance to win them (ties half).
    """
    scores: list[list[float]] = [[] for _ in range(num_responses)]
    for c in comparisons:
        won = c.tie / 2 + (1 - c.tie) * c.probability
        scores[c.better].append(won)
        scores[c.worse].append(1 - won)
    means = [sum(own) / len(own) if own else 0.5 for own in scores]
    order = sorted(range(num_responses), key=lambda index: (-means[index], index))
    return [(1 + sum(mean > means[index] for mean in means), index) for index in order]


def _won(index: int, group: PreferenceGroup) -> list[str]:
    """Whom this response beats, and how surely."""
    own = [c for c in group.comparisons if index in (c.better, c.worse)]
    if not own:
        return ["never compared"]
    even = [str(c.better + c.worse - index) for c in own if c.probability == 0.5 or c.tie == 1]
    beaten = [c for c in own if c.better == index and c.probability > 0.5 and c.tie < 1]
    sure = [str(c.worse) for c in beaten if c.probability == 1 and c.tie == 0]
    unsure = [
        f"{c.worse} with {c.probability:.2f}" + (f" (ties {c.tie:.2f})" if c.tie else "")
        for c in beaten
        if c.probability < 1 or c.tie > 0
    ]
    named = [*sure, *unsure]
    beats = [f"beats {', '.join(named)}"] if named else []
    return beats + ([f"even with {', '.join(even)}"] if even else [])


def _vote(vote: Vote) -> str:
    tiers = [" = ".join(map(str, tier)) for tier in vote.ranking]
    if vote.rest_unordered:
        tiers[-1] = f"{', '.join(map(str, vote.ranking[-1]))} in no order"
    order = " > ".join(tiers)
    strength = f" (strength {vote.strength:g})" if vote.strength is not None else ""
    return f"{vote.annotator or 'someone'}: {order}{strength}"


def _turns(prompt: Sequence[Message]) -> list[Message | str]:
    if len(prompt) <= MAX_SHOWN_TURNS:
        return list(prompt)
    num_first = MAX_SHOWN_TURNS // 2
    num_last = MAX_SHOWN_TURNS - num_first
    between = f"{len(prompt) - num_first - num_last} more turns"
    return [*prompt[:num_first], between, *prompt[-num_last:]]


def _block(label: str, text: str, width: int) -> list[str]:
    return [f"  {line}" for line in _labelled(label, _elided(_printable(text)), width - 2)]


def _elided(text: str) -> str:
    if len(text) <= MAX_SHOWN_CHARACTERS:
        return text
    half = MAX_SHOWN_CHARACTERS // 2
    return f"{text[:half]} [... {len(text) - 2 * half} characters ...] {text[-half:]}"


def _printable(text: str) -> str:
    """Without what a terminal would obey: control and direction characters are spelled out."""
    return "".join(
        character if character.isprintable() or character == "\n" else f"\\u{ord(character):04x}"
        for character in text.replace("\r\n", "\n").replace("\t", "    ")
    )


def as_json(seen: Inspection) -> dict[str, Any]:
    """All that was counted; estimates as value, low, high and n; groups as canonical rows."""
    plain = {
        f.name: _plain(getattr(seen, f.name))
        for f in fields(seen)
        if f.name not in ("ledger", "examples", "heeds")
    }
    ledger = seen.ledger
    return {
        **plain,
        "num_rows": ledger.num_rows_read,
        "num_rows_in_ledger": ledger.num_rows_left_out,
        "ledger": ledger.by_reason(),
        "observations": observations(seen),
        "groups": [{"lines": list(g.lines), **to_canonical(g)} for g in seen.examples],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value.as_json()
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value
