"""The formats by name, and which one a row shows."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from palate.preferences.formats.argilla import ANSWERS, argilla
from palate.preferences.formats.benchmarks import rewardbench, rewardbench2, rm_bench
from palate.preferences.formats.canonical import canonical
from palate.preferences.formats.fields import Parsed, Row
from palate.preferences.formats.judged import (
    ANNOTATOR_COLUMN,
    INDIVIDUAL,
    OVERALL,
    annotated,
    helpsteer,
    judgebench,
    labelled,
    llmbar,
)
from palate.preferences.formats.kway import nemo_rl, ranked, ultrafeedback
from palate.preferences.formats.label_studio import label_studio
from palate.preferences.formats.message_texts import texts_in
from palate.preferences.formats.pairs import hh, implicit, pairs, score_columns
from palate.preferences.formats.rated import RATINGS, rated
from palate.preferences.formats.transcripts import TURN
from palate.preferences.settings import ReadSettings

FORMATS: dict[str, Callable[[Row, ReadSettings], Parsed]] = {
    "canonical": canonical,
    "ranked": ranked,
    "rated": rated,
    "pairs": pairs,
    "implicit": implicit,
    "hh": hh,
    "annotated": annotated,
    "labelled": labelled,
    "helpsteer": helpsteer,
    "ultrafeedback": ultrafeedback,
    "nemo_rl": nemo_rl,
    "rewardbench": rewardbench,
    "rewardbench2": rewardbench2,
    "rm_bench": rm_bench,
    "judgebench": judgebench,
    "llmbar": llmbar,
    "argilla": argilla,
    "label_studio": label_studio,
}
"""Format name to the function that reads one of its rows."""
ONE_RESPONSE_A_ROW = ("rated",)
"""Formats in which only several rows make a group."""

KNOWN_FORMATS = (
    "canonical (prompt, responses, comparisons or votes), ranked (prompt, responses with ratings or"
    " a ranking), rated (prompt, response, rating; one response a row), pairs (prompt, chosen,"
    " rejected), implicit (chosen, rejected as messages), hh (transcripts), annotated (prompt,"
    " response1, response2, annotator1, ...), labelled (prompt, response1, response2, preferred),"
    " and files of UltraFeedback, HelpSteer, RewardBench, RM-Bench, JudgeBench, LLMBar, NeMo-RL,"
    " Argilla and Label Studio; read.columns maps other names to these"
)

_RESPONSE_PAIRS = (("response1", "response2"), ("response_1", "response_2"))


def most_frequent_format(rows: Sequence[Row]) -> tuple[str, str] | None:
    """(format, what shows it) of most of the rows that show one: a single damaged row at the top
    must not decide for all others. None where no row shows any."""
    known = Counter(found for row in rows if (found := detect_format(row)) is not None)
    if not known:
        return None
    formats: Counter[str] = Counter()
    for (format, _), num_rows in known.items():
        formats[format] += num_rows
    format, num_rows = formats.most_common(1)[0]
    # Rows of one format show it by different fields, where some have nulls.
    why, num_by_it = next((why, n) for (name, why), n in known.most_common() if name == format)
    if num_by_it == num_rows:
        return format, f"{num_rows} of the first {len(rows)} rows have {why}"
    return format, f"{num_rows} of the first {len(rows)} rows show it, {num_by_it} by {why}"


def detect_format(row: Row) -> tuple[str, str] | None:
    """(format, the fields that show it), or None where a row's fields show none."""
    # Parquet has every column in every row, null where there is nothing.
    there = {str(key): value for key, value in row.items() if value is not None}
    for look in (_exported, _listed, _chosen, _judged, _single):
        if found := look(there):
            return found
    return None


def _has(there: Mapping[str, Any], *names: str) -> bool:
    return all(name in there for name in names)


def _exported(there: Mapping[str, Any]) -> tuple[str, str] | None:
    if isinstance(there.get("fields"), Mapping) and isinstance(there.get("responses"), Mapping):
        return "argilla", "fields and responses as objects"
    if answers := sorted(name for name in there if ANSWERS.fullmatch(name)):
        return "argilla", f"answers of annotators in {', '.join(answers):.80}"
    if isinstance(there.get("data"), Mapping) and "annotations" in there:
        return "label_studio", "data and annotations"
    return None


def _listed(there: Mapping[str, Any]) -> tuple[str, str] | None:
    if "responses" in there:
        if stated := [name for name in ("comparisons", "votes") if name in there]:
            return "canonical", f"responses and {' and '.join(stated)}"
        return "ranked", "responses without comparisons or votes"
    if _has(there, "completions", "context"):
        return "nemo_rl", "context and completions"
    if "completions" in there and ("instruction" in there or "prompt" in there):
        return "ultrafeedback", "completions to an instruction or prompt"
    return None


def _chosen(there: Mapping[str, Any]) -> tuple[str, str] | None:
    if not _has(there, "chosen", "rejected"):
        return None
    chosen = there["chosen"]
    # A table holds such lists as JSON; with a prompt of the same kind they are turns.
    lists = [texts_in(there[name]) for name in ("chosen", "rejected")]
    several = "num_correct" in there or min(map(len, lists)) > 1
    if several and all(lists) and not texts_in(there.get("prompt")):
        chosen = lists[0]
    if isinstance(chosen, Sequence) and chosen and not isinstance(chosen, str):
        if all(isinstance(item, str) for item in chosen) and not texts_in(there.get("prompt")):
            if "num_correct" in there:
                return "rewardbench2", "num_correct and lists of texts in chosen and rejected"
            return "rm_bench", "lists of texts in chosen and rejected"
        if "prompt" not in there and ("instruction" not in there or len(chosen) > 1):
            why = "chosen and rejected as messages, and no prompt"
            return "implicit", why + _scores(there)
    if _has(there, "prompt", "subset", "chosen_model"):
        return "rewardbench", "prompt, chosen, rejected, subset and chosen_model"
    if "prompt" in there:
        return "pairs", "prompt, chosen and rejected" + _scores(there)
    if isinstance(chosen, str) and TURN.match(chosen):
        return "hh", "chosen and rejected that start with '\\n\\nHuman:'"
    if "instruction" in there:
        return "pairs", "instruction, chosen and rejected" + _scores(there)
    return None


def _scores(there: Mapping[str, Any]) -> str:
    columns = score_columns("chosen", "") + score_columns("rejected", "")
    scored = [column for column in columns if column in there]
    return f", with {' and '.join(scored)}" if scored else ""


def _judged(there: Mapping[str, Any]) -> tuple[str, str] | None:
    if _has(there, "question", "response_A", "response_B", "label"):
        return "judgebench", "question, response_A, response_B and label"
    if _has(there, "input", "output_1", "output_2", "label"):
        return "llmbar", "input, output_1, output_2 and label"
    pair = next((names for names in _RESPONSE_PAIRS if _has(there, *names)), None)
    if pair is None:
        return None
    if stated := [name for name in (*OVERALL, *INDIVIDUAL) if name in there]:
        return "helpsteer", f"{', '.join(pair)} and {', '.join(stated)}"
    if "preferred" in there and pair == _RESPONSE_PAIRS[0]:
        return "labelled", f"{', '.join(pair)} and preferred"
    return _annotated(there)


def _annotated(there: Mapping[str, Any]) -> tuple[str, str] | None:
    columns = sorted(name for name in there if ANNOTATOR_COLUMN.fullmatch(name))
    return ("annotated", f"columns of annotators ({', '.join(columns):.80})") if columns else None


def _single(there: Mapping[str, Any]) -> tuple[str, str] | None:
    ratings = [name for name in RATINGS if name in there]
    asked = next((name for name in ("prompt", "instruction") if name in there), None)
    if asked and "response" in there and ratings:
        return "rated", f"{asked}, one response and its {ratings[0]}"
    return _annotated(there)
