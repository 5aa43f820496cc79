"""The battery: pairs that any working reward model gets right, by category.

It is no benchmark: the pairs are easy on purpose, and a category that fails says that something is
broken, not that the model is a little weaker. After the checklists of Ribeiro et al. 2020
(2005.04118).

Legend: N pairs.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from palate.artifacts.files import open_binary
from palate.artifacts.ledger import place
from palate.errors import PalateError
from palate.evaluation.score_texts import Score, TooLong, rewards_of
from palate.preferences.files.json_records import json_lines
from palate.preferences.files.records import CUT, DAMAGED_STREAM, Damage
from palate.preferences.formats.pairs import pairs
from palate.preferences.settings import ReadSettings
from palate.preferences.types import Message, Response, ScoringItem
from palate.statistics import Estimate, cluster_mean
from palate.statistics.intervals import wilson
from palate.text import plural

BUILT_IN = Path(__file__).parent / "battery_data" / "battery-1.jsonl"
FIELDS = ("category", "id", "prompt", "chosen", "rejected")
NOT_READ = ("tools", "template_arguments", "chat_template_kwargs")
"""Fields of preference files that would change what is scored; a pair of the battery has none."""
MIN_PAIRS = 15
"""Of a category: with all of 15 passed, Wilson's interval begins at 0.80."""
PASS_MARGIN = 1.0
"""Calibrated margin, reward difference / temperature, of a pass: a probability of 0.73."""


@dataclass(frozen=True, kw_only=True)
class BatteryItem:
    """A pair about which there is no dispute."""

    category: str
    id: str
    prompt: tuple[Message, ...]
    chosen: Response
    rejected: Response
    file: str
    line: int

    @property
    def sides(self) -> tuple[ScoringItem, ScoringItem]:
        """chosen, rejected."""
        return ScoringItem(self.prompt, self.chosen), ScoringItem(self.prompt, self.rejected)


@dataclass(frozen=True, kw_only=True)
class Battery:
    """Pairs by category, and which files they come from."""

    items: tuple[BatteryItem, ...]
    files: Mapping[str, str]
    """Name of each file (for the built-in one its version, such as battery-1) and its SHA-256."""

    @property
    def categories(self) -> tuple[str, ...]:
        """In the order of the files."""
        return tuple(dict.fromkeys(item.category for item in self.items))


@dataclass(frozen=True, kw_only=True)
class FailedItem:
    """A pair that is no pass."""

    item: BatteryItem
    margin: float
    """In the unit of the result."""


@dataclass(frozen=True, kw_only=True)
class CategoryResult:
    """What became of the pairs of one category, or of all."""

    name: str
    num_pairs: int
    num_passed: int
    num_won: int
    num_tied: int
    passed: Estimate
    """Share, with Wilson's interval."""
    won: Estimate
    """Share; a tie counts half."""
    margin: Estimate
    """Mean, in the unit of the result."""
    failed: tuple[FailedItem, ...]
    """Lowest margin first."""


@dataclass(frozen=True, kw_only=True)
class BatteryResult:
    """The battery's answer for one model."""

    categories: tuple[CategoryResult, ...]
    overall: CategoryResult
    temperature: float | None
    files: Mapping[str, str]
    num_texts: int
    cut: tuple[str, ...]
    """Ids of pairs with an answer that is longer than the model takes, and so was cut."""

    @property
    def unit(self) -> str:
        """Of the margins."""
        if self.temperature is None:
            return "reward, uncalibrated: a pass is a win of any size"
        return f"reward difference / temperature; a pass is {PASS_MARGIN:g} or more"

    def metrics(self) -> dict[str, Estimate]:
        """Shares passed, by name."""
        found = {f"battery, {category.name}": category.passed for category in self.categories}
        return {"battery": self.overall.passed, **found}


def read_battery(
    paths: Sequence[str | Path] = (),
    *,
    built_in: bool = True,
    categories: Sequence[str] = (),
    min_pairs: int = MIN_PAIRS,
) -> Battery:
    """The built-in pairs and those of more JSONL files, plain or `.gz`.

    A line has `category`, `id`, `prompt` (text or messages), `chosen` and `rejected`; a category
    may be one of the built-in ones or new; other fields are notes of its author's. `categories`
    keeps these alone. Raises PalateError, with file and line, for a line that lacks a field or has
    one of `NOT_READ`, an empty prompt or answer, an id that occurs twice, a damaged or empty file,
    one that is named twice, a category that is asked for and has no pair, and one with fewer than
    `min_pairs`.
    """
    files = [*([BUILT_IN] if built_in else []), *map(Path, paths)]
    if not files:
        raise PalateError("a battery of no files: give paths, or take the built-in one")
    for number, path in enumerate(files):
        if path in files[:number]:
            raise PalateError(f"{path}: named twice; name each file once")
    items = [item for path in files for item in _read(path)]
    _refuse_repeated(items)
    known = {item.category: item for item in items}
    for name in categories:
        if name not in known:
            raise PalateError(
                f"category {name!r} is empty: no pair of {', '.join(map(str, files))} is in it;"
                f" there are {', '.join(known)}"
            )
    chosen = [item for item in items if not categories or item.category in categories]
    _refuse_small(chosen, min_pairs)
    hashes = {path.stem if path == BUILT_IN else str(path): _sha256(path) for path in files}
    return Battery(items=tuple(chosen), files=hashes)


def _sha256(path: Path) -> str:
    with open_binary(path) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()  # type: ignore[arg-type]


def _read(path: Path) -> list[BatteryItem]:
    items: list[BatteryItem] = []
    line = 0
    with open_binary(path) as handle:
        try:
            for line, row in json_lines(handle):
                items.append(_item(row, str(path), line))
        except PalateError as error:
            raise PalateError(f"{path}:{line}: {error}", error.reason) from error
        except DAMAGED_STREAM as error:
            # Pairs before the damage are no whole battery.
            raise PalateError(
                f"{place(str(path), line)}: {CUT}: {error}; get the file again, or take .gz off its"
                " name where it is not gzipped",
                CUT,
            ) from error
    if not items:
        raise PalateError(f"{path}: no pair in it; each line needs {', '.join(FIELDS)}")
    return items


def _item(row: object, file: str, line: int) -> BatteryItem:
    if isinstance(row, Damage):
        raise PalateError(f"{row.reason}: {row.detail}", row.reason)
    if not isinstance(row, dict):
        raise PalateError(
            f"{row!r:.60} where an object was expected; a battery is JSON Lines, one pair a line",
            "not an object",
        )
    for name in FIELDS:
        if row.get(name) is None:
            found = ", ".join(map(repr, row))
            raise PalateError(f"no field {name!r}; found {found:.300}", "missing field")
    for name in NOT_READ:
        if row.get(name):
            raise PalateError(
                f"{name} has no effect in a battery; write what it says into the prompt",
                "no effect",
            )
    named = {name: _name(row[name], name) for name in ("category", "id")}
    parsed = pairs(row, ReadSettings())
    chosen, rejected = parsed.responses
    ScoringItem(parsed.prompt, chosen)  # refuses an empty prompt
    return BatteryItem(
        **named, prompt=parsed.prompt, chosen=chosen, rejected=rejected, file=file, line=line
    )


def _name(value: object, field: str) -> str:
    """A category or an id: text or a whole number."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        kind = type(value).__name__
        raise PalateError(f"{field} is {kind} {value!r:.40}, not a name", "wrong type")
    if not str(value).strip():
        raise PalateError(f"{field} is empty; give it a name", f"empty {field}")
    return str(value).strip()


def _refuse_repeated(items: Sequence[BatteryItem]) -> None:
    first: dict[str, BatteryItem] = {}
    for item in items:
        former = first.setdefault(item.id, item)
        if former is not item:
            raise PalateError(
                f"{item.file}:{item.line}: id {item.id!r} stands at {former.file}:{former.line}"
                " already; give each pair an id of its own",
                "repeated id",
            )


def _refuse_small(items: Sequence[BatteryItem], min_pairs: int) -> None:
    members: dict[str, list[BatteryItem]] = {}
    for item in items:
        members.setdefault(item.category, []).append(item)
    for name, found in members.items():
        if len(found) < min_pairs:
            last = found[-1]
            raise PalateError(
                f"{last.file}:{last.line}: category {name!r} ends here with"
                f" {plural(len(found), 'pair')}, too few to say anything of; {min_pairs} are the"
                " least: write more, or correct the name",
                "small category",
            )


def run_battery(
    score: Score,
    battery: Battery,
    temperature: float | None = None,
    *,
    too_long: TooLong | None = None,
) -> BatteryResult:
    """Score each text once and count.

    A pass is a win with (reward(chosen) - reward(rejected)) / temperature of `PASS_MARGIN` or more.
    Raw rewards have no common scale, so that without a temperature a pass is a win of any size and
    margins are plain differences of rewards. `too_long` names texts that `score` cuts, to be listed
    in the result. Raises PalateError for a temperature that is not above 0 and for a reward that is
    no finite number, with its item.
    """
    if temperature is not None and not (0 < temperature < np.inf):
        raise PalateError(f"temperature is {temperature}, must be above 0")
    texts = [side for item in battery.items for side in item.sides]
    places = [
        f"{item.file}:{item.line}: battery item {item.id!r}, {side}"
        for item in battery.items
        for side in ("chosen", "rejected")
    ]
    reward_N2 = rewards_of(score, texts, places).reshape(-1, 2)
    margin_N = (reward_N2[:, 0] - reward_N2[:, 1]) / (temperature or 1.0)
    is_pass_N = margin_N > 0 if temperature is None else margin_N >= PASS_MARGIN
    category_N = np.array([item.category for item in battery.items])
    cut = (
        ()
        if too_long is None
        else tuple(i.id for i in battery.items if any(map(too_long, i.sides)))
    )
    every = np.ones(len(margin_N), bool)
    return BatteryResult(
        categories=tuple(
            _counted(name, battery.items, margin_N, is_pass_N, category_N == name)
            for name in battery.categories
        ),
        overall=_counted("all", battery.items, margin_N, is_pass_N, every),
        temperature=temperature,
        files=battery.files,
        num_texts=len(texts),
        cut=cut,
    )


def _counted(
    name: str,
    items: Sequence[BatteryItem],
    margin_N: np.ndarray,
    is_pass_N: np.ndarray,
    here_N: np.ndarray,
) -> CategoryResult:
    places = np.flatnonzero(here_N).tolist()
    failed = sorted((i for i in places if not is_pass_N[i]), key=lambda i: margin_N[i])
    num_pairs, num_passed = len(places), int(is_pass_N[places].sum())
    num_won, num_tied = int((margin_N[places] > 0).sum()), int((margin_N[places] == 0).sum())
    return CategoryResult(
        name=name,
        num_pairs=num_pairs,
        num_passed=num_passed,
        num_won=num_won,
        num_tied=num_tied,
        passed=_share(num_passed, num_pairs),
        won=_share(num_won + num_tied / 2, num_pairs),
        margin=cluster_mean(margin_N[places], [items[i].id for i in places]),
        failed=tuple(FailedItem(item=items[i], margin=float(margin_N[i])) for i in failed),
    )


def _share(number: float, num_pairs: int) -> Estimate:
    return Estimate(number / num_pairs, *wilson(number / num_pairs, num_pairs), num_pairs)
