"""What a careful analyst would say of a source, in short sentences with their numbers."""

from collections.abc import Iterator

from palate.artifacts.ledger import LedgerEntry
from palate.pipeline.inspection.inspect import Inspection
from palate.pipeline.inspection.quality import EDGE_SHARE
from palate.preferences.formats.judged import OVERALL
from palate.statistics import Estimate
from palate.text import plural

LEFT_OUT_SHARE = 0.01
EMPTY_SHARE = 0.01
SHARING_SHARE = 0.05
LONG_PROMPT_SHARE = 0.4
SATURATED_SHARE = 0.25
REPEATED_ANSWERS_SHARE = 0.01
PREDICTED_BY_MODEL = 0.7
LOW_AGREEMENT_OVER_CHANCE = 0.2
MIN_GROUPS_TO_TELL = 20
HABIT_SHARE = 0.95
MIN_VOTES_OF_HABIT = 20
MIN_ANSWERS_OF_CONSTANT_MODEL = 20
TIES_SHARE = 0.05
MAX_NAMED = 5
"""Annotators, models, fields or reasons that a sentence names."""

NOT_LOOKED_AT = (
    "Not judged here: what the texts say. Whether answers are true, offensive, private or in the"
    " right language is not looked at; read the groups below, and more."
)


def observations(seen: Inspection) -> list[str]:
    """The sentences that the numbers of this source give rise to, and what was not looked at."""
    parts = (_rows, _fields, _prompts, _texts, _labels, _votes, _ratings, _length, _models, _tokens)
    return [*(sentence for part in parts for sentence in part(seen)), NOT_LOOKED_AT]


def percent(share: float) -> str:
    """44.8 %, and more digits near 0 and 1, so that neither is claimed."""
    for digits in (1, 2, 3):
        text = f"{100 * share:.{digits}f}"
        if share in (0, 1) or float(text) not in (0, 100):
            return f"{text} %"
    return "under 0.001 %" if share < 0.5 else "over 99.999 %"


def interval(estimate: Estimate) -> str:
    """value [low, high] in per cent, and the number of groups that they rest on."""
    if estimate.low == -float("inf"):
        return f"{percent(estimate.value)} (no interval: one prompt cluster)"
    ends = f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
    return f"{percent(estimate.value)} {ends} (n = {plural(estimate.n, 'group')})"


def _rows(seen: Inspection) -> Iterator[str]:
    ledger = seen.ledger
    reasons = ledger.by_reason().items()
    if ledger.num_rows_left_out >= LEFT_OUT_SHARE * ledger.num_rows_read:
        named = [
            f"{count} {reason.removeprefix('row: ')} (first: {_place(ledger.first[reason])})"
            for reason, count in reasons
            if reason.startswith("row: ")
        ]
        yield (
            f"{ledger.num_rows_left_out} of {ledger.num_rows_read} rows"
            f" ({percent(ledger.num_rows_left_out / ledger.num_rows_read)}) can't be used:"
            f" {', '.join(named[:MAX_NAMED])}."
        )
    for reason, count in reasons:
        if reason.startswith("file: "):
            what = reason.removeprefix("file: ")
            yield f"The file is damaged in {plural(count, 'place')}: {what}. Get it again."


def _place(entry: LedgerEntry) -> str:
    says_more = entry.detail and entry.detail != entry.reason
    return f"row {entry.line}{f', {entry.detail:.60}' if says_more else ''}"


def _fields(seen: Inspection) -> Iterator[str]:
    for name, facts in seen.fields.items():
        share = facts.num_empty / max(1, facts.num_there)
        if EMPTY_SHARE <= share < 1:
            counted = f"{facts.num_empty} of {facts.num_there} rows ({percent(share)})"
            yield f"Field {name!r} is empty in {counted}."
        if len(facts.kinds) > 1:
            kinds = ", ".join(f"{kind} in {count}" for kind, count in facts.kinds.items())
            yield f"Field {name!r} is not of one type: {kinds} rows."


def _prompts(seen: Inspection) -> Iterator[str]:
    prompts = seen.prompts
    if prompts.num_sharing >= SHARING_SHARE * seen.num_groups and not seen.is_merged:
        yield (
            f"{prompts.num_sharing} of {seen.num_groups} groups share their prompt with another one"
            f" (there are {prompts.num_prompts} prompts, one in {prompts.largest_sharing} groups):"
            " read.merge_prompts makes one group of each, which is then computed once and weighs"
            " as one prompt."
        )
    if prompts.num_extending:
        go = "goes" if prompts.num_extending == 1 else "go"
        yield (
            f"{plural(prompts.num_extending, 'prompt')} {go} on from the prompt of another group,"
            f" in one prompt cluster with it ({prompts.num_clusters} clusters of"
            f" {prompts.num_prompts} prompts); a split by rows would put one in training and the"
            " other in the test."
        )


def _texts(seen: Inspection) -> Iterator[str]:
    answers, prompts = seen.answers, seen.prompts
    long = sum(count for number, count in prompts.num_messages.items() if number > 1)
    if answers.prompt_share >= LONG_PROMPT_SHARE:
        turns = f"; {long} of {seen.num_groups} prompts have several turns" if long else ""
        yield (
            f"Prompts are long beside their answers: {percent(answers.prompt_share)} of all"
            f" characters are prompt. Computing each prompt once for all its answers saves"
            f" {percent(answers.saved_share)}{turns}."
        )
    if answers.num_repeated >= REPEATED_ANSWERS_SHARE * answers.num_answers:
        yield (
            f"{answers.num_repeated} of {answers.num_answers} answers"
            f" ({percent(answers.num_repeated / answers.num_answers)}) are, to the letter, also"
            " answers to another prompt: stock phrases, or copied rows."
        )
    if answers.num_identical:
        yield f"In {plural(answers.num_identical, 'group')} two answers have the same text."


def _strength_said(seen: Inspection) -> str:
    """What uses the strengths that the rows state."""
    named = [name for name in ("strength", *OVERALL) if name in seen.fields]
    if not named:
        return "no strength of preference"
    return (
        f"and the strength in {named[0]} is used by read.votes.margin_per_strength and"
        " scale_by_strength only"
    )


def _labels(seen: Inspection) -> Iterator[str]:
    c = seen.comparisons
    if c.num_hard == c.num and seen.votes is None and seen.ratings is None:
        yield (
            f"All {c.num} comparisons are bare: no votes, {_strength_said(seen)}"
            f"{', no margin' if not c.num_with_margin else ''}. How sure people were, and how often"
            " they would disagree, can't be known from this file."
        )
    if c.num_undecided:
        yield (
            f"{c.num_undecided} of {c.num} comparisons have no better side (all ties, evenly split,"
            " or without weight)."
        )


def _votes(seen: Inspection) -> Iterator[str]:
    votes = seen.votes
    if votes is None:
        return
    per_group = ", ".join(f"{n} in {count}" for n, count in votes.votes_per_group.items())
    who = (
        f"by {plural(len(votes.annotators), 'annotator')}" if votes.annotators else "without names"
    )
    if votes.annotators and votes.num_unnamed:
        who += f", {votes.num_unnamed} without a name"
    are = "is" if votes.num_votes == 1 else "are"
    yield f"There {are} {plural(votes.num_votes, 'vote')} {who}; votes on a group: {per_group}."
    if votes.agreement is not None and votes.agreement_by_chance is not None:
        chance = votes.agreement_by_chance
        # The upper end: a few votes that happen to differ are no finding.
        over = (votes.agreement.high - chance) / (1 - chance) if chance < 1 else 1.0
        is_low = over < LOW_AGREEMENT_OVER_CHANCE and votes.agreement.n >= MIN_GROUPS_TO_TELL
        verdict = " That is little: many of these labels are noise." if is_low else ""
        yield (
            f"Two votes on the same two answers agree in {interval(votes.agreement)};"
            f" {percent(chance)} would by chance.{verdict}"
        )
    if votes.num_ties >= TIES_SHARE * votes.num_votes:
        one = votes.num_ties == 1
        share = percent(votes.num_ties / votes.num_votes)
        yield (
            f"{plural(votes.num_ties, 'vote')} ({share}) {'is a tie' if one else 'are ties'}: the"
            " default loss counts a tie half for each side; objective.kind davidson or"
            " objective.kind rao-kupper models ties."
        )
    for name, person in votes.annotators.items():
        if person.num_votes >= MIN_VOTES_OF_HABIT and person.usual_share >= HABIT_SHARE:
            yield (
                f"Annotator {name!r} gave the same answer ({person.usual_answer}) in"
                f" {percent(person.usual_share)} of {person.num_votes} votes: look at them, or give"
                " them weight 0 in read.votes.annotator_weights."
            )
    if votes.first_wins is not None and _is_apart(votes.first_wins):
        place = "shown" if votes.num_with_shown else "listed"
        share = interval(votes.first_wins)
        yield f"The answer {place} first wins {share} of the votes with a winner."


def _is_apart(estimate: Estimate) -> bool:
    """Whether enough was seen to say that it is not one half."""
    return estimate.n >= MIN_GROUPS_TO_TELL and (estimate.low > 0.5 or estimate.high < 0.5)


def _ratings(seen: Inspection) -> Iterator[str]:
    ratings, quality = seen.ratings, seen.quality
    if ratings is None:
        return
    if seen.votes is None:
        yield (
            f"Each of {ratings.num_ratings} ratings stands alone, as from one judge: how far"
            " another judge would agree can't be known from this file."
        )
    for share, end, name in (
        (quality.share_at_lowest, ratings.lowest, "lowest"),
        (quality.share_at_highest, ratings.highest, "highest"),
    ):
        if share is not None and share >= SATURATED_SHARE:
            yield (
                f"Ratings are saturated: {percent(share)} lie within"
                f" {EDGE_SHARE * (ratings.highest - ratings.lowest):g} of the {name}, {end:g}."
                " Nothing tells these answers apart: read.votes.min_gap leaves out comparisons of"
                " nearly equal ratings, and does not mend the saturation."
            )
    if ratings.num_equal_pairs:
        share = ratings.num_equal_pairs / ratings.num_pairs
        yield (
            f"{ratings.num_equal_pairs} of {ratings.num_pairs} pairs of answers to one prompt"
            f" ({percent(share)}) have equal ratings: read.votes.equal says what becomes of them."
        )


def _length(seen: Inspection) -> Iterator[str]:
    quality = seen.quality
    for estimate, which in (
        (quality.longer_wins, "the decided comparisons"),
        (quality.longer_wins_where_clear, "those whose ratings differ by"),
    ):
        if estimate is None:
            continue
        if estimate is quality.longer_wins_where_clear:
            which = f"{which} {quality.clear_gap:.2g} or more"
        few = estimate.n < MIN_GROUPS_TO_TELL
        verdict = "too few groups to tell" if few else "no clear preference for length"
        if _is_apart(estimate):
            verdict = (
                "longer answers are preferred"
                if estimate.value > 0.5
                else "shorter answers are preferred"
            )
        yield f"The longer answer wins {interval(estimate)} of {which}: {verdict}."


def _models(seen: Inspection) -> Iterator[str]:
    quality = seen.quality
    estimate = quality.model_predicts_where_clear or quality.model_predicts
    if estimate is not None and estimate.value >= PREDICTED_BY_MODEL:
        where = (
            f" whose ratings differ by {quality.clear_gap:.2g} or more"
            if quality.model_predicts_where_clear
            else ""
        )
        yield (
            f"The names of the {len(quality.models)} models alone predict {interval(estimate)} of"
            f" the comparisons{where} (order fitted on the other half of the prompts): a reward"
            " model can score well here by telling who wrote an answer."
        )
    for name, model in quality.models.items():
        ratings = model.ratings
        if (
            ratings
            and ratings[0] == ratings[1]
            and model.num_answers >= MIN_ANSWERS_OF_CONSTANT_MODEL
        ):
            yield (
                f"All {model.num_answers} answers of {name} are rated {ratings[0]:g}: no judgement"
                " of the answer is in that; it may be the reference of the others."
            )


def _tokens(seen: Inspection) -> Iterator[str]:
    tokens = seen.tokens
    if tokens is None:
        return
    if tokens.num_prompts_cut:
        yield (
            f"At the default limits {tokens.num_prompts_cut} of {seen.num_groups} prompts are cut"
            f" to {tokens.max_prompt_tokens} tokens."
        )
    if tokens.num_answers_left_out:
        won = tokens.longer_won_of_left_out
        lost = f"; among them the longer answer had won {percent(won)}" if won is not None else ""
        yield (
            f"At the default limits {tokens.num_answers_left_out} of {seen.answers.num_answers}"
            f" answers have more than {tokens.max_response_tokens} tokens and are left out, with"
            f" {tokens.num_comparisons_left_out} of {seen.comparisons.num} comparisons and"
            f" {tokens.num_groups_left_out} groups{lost}."
        )
