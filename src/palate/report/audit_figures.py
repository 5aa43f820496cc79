"""Figures of an audit as inline SVG. Nothing is computed here but coordinates.

A figure comes as plain JSON; its `kind` says what is drawn:

- `bins`: `bins`, a list of `{"name", "value", "low", "high", "n"}` in their order, side by side
- `bars`: `bars`, a list of the same, each on a line of its own
- `curve`: `points`, a list of `{"x", "value", "low", "high"}`, joined, with their band; with
  `diagonal` the line on which value and x are equal
- `interval`: nothing further; the finding's statistic, interval and threshold
- `rates` and `shares`: `annotators` with as many `rates` and `intervals`, or `shares`, as bars
- `agreement`: `alpha`, `raw` and `chance`, then `pairs` of annotators with their `kappa`, as bars
- `probe`: `effect` and `flips`, each a value with its two ends, and `limits`, one for each

Each may have `x` and `y`, what the axes show, or a `title`, and `reference`, a value to hold
against. Values that are missing or not finite are left out; a kind that is not known draws nothing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from palate.report.audit_axes import Axis, axis, finite, present

MAX_BARS = 24
MAX_NAME = 34
WIDTH = 400
"""Units of a figure's width: letters of 13 stay readable on a telephone, 360 pixels wide."""
_LEFT, _RIGHT, _TOP, _HEIGHT = 46, 12, 12, 160

Item = Mapping[str, Any]


def number(value: Any) -> str:
    """As people read it: counts whole, small numbers with three places."""
    shown = finite(value)
    if shown is None:
        return "-"
    if abs(shown) < 1e-12:  # 0 but for rounding
        return "0"
    if shown == round(shown) and (isinstance(value, int) or abs(shown) > 1):
        return f"{shown:,.0f}"
    if abs(shown) < 0.0005:
        return f"{shown:.1e}"
    return f"{shown:.3f}" if abs(shown) < 100 else f"{shown:,.1f}"


_SMALL = """<svg class="small" viewBox="0 0 160 22" role="img" aria-label="{{ label }}">
<line x1="4" x2="156" y1="11" y2="11" class="axis"/>
{% if threshold is not none %}<line x1="{{ threshold }}" x2="{{ threshold }}" y1="1" y2="21"
 class="threshold"/>{% endif %}
{% if low is not none %}<line x1="{{ low }}" x2="{{ high }}" y1="11" y2="11"
 class="whisker"/>{% endif %}
<circle cx="{{ value }}" cy="11" r="4" class="dot"/></svg>"""

_AXIS_BELOW = """{% for x, text in ticks %}<line x1="{{ x }}" x2="{{ x }}" y1="{{ top }}"
 y2="{{ bottom }}" class="grid"/><text x="{{ x }}" y="{{ bottom + 16 }}"
 text-anchor="middle" class="muted">{{ text }}</text>
{% endfor %}{% if reference is not none %}<line x1="{{ reference }}" x2="{{ reference }}"
 y1="{{ top }}" y2="{{ bottom }}" class="reference"/>{% endif %}
{% if threshold is not none %}<line x1="{{ threshold }}" x2="{{ threshold }}" y1="{{ top }}"
 y2="{{ bottom }}" class="threshold"/>{% endif %}
"""

_BARS = (
    """<figure><svg viewBox="0 0 400 {{ bottom + 22 }}" role="img" aria-label="{{ label }}">
"""
    + _AXIS_BELOW
    + """{% for bar in bars %}<text x="{{ left }}" y="{{ bar.y - 8 }}">{{ bar.name }}<title>
{{- bar.full }}</title></text><text x="388" y="{{ bar.y - 8 }}" text-anchor="end" class="muted">
{{- bar.text }}</text>
{% if bar.low is not none %}<line x1="{{ bar.low }}" x2="{{ bar.high }}" y1="{{ bar.y + 3 }}"
 y2="{{ bar.y + 3 }}" class="whisker"/>{% endif %}
<circle cx="{{ bar.x }}" cy="{{ bar.y + 3 }}" r="4.5" class="dot"/>
{% endfor %}</svg>
<figcaption>{{ caption }}{% if left_out %} ({{ left_out }} more are not drawn){% endif %}
</figcaption></figure>"""
)

_AXES = """<figure><svg viewBox="0 0 400 {{ bottom + 22 }}" role="img" aria-label="{{ label }}">
{% for y, text in ticks %}<line x1="{{ left }}" x2="388" y1="{{ y }}" y2="{{ y }}"
 class="grid"/><text x="{{ left - 6 }}" y="{{ y + 4 }}" text-anchor="end"
 class="muted">{{ text }}</text>
{% endfor %}{% if reference is not none %}<line x1="{{ left }}" x2="388" y1="{{ reference }}"
 y2="{{ reference }}" class="reference"/>{% endif %}
{% if threshold is not none %}<line x1="{{ left }}" x2="388" y1="{{ threshold }}"
 y2="{{ threshold }}" class="threshold"/>{% endif %}
{% for x, text in names %}<text x="{{ x }}" y="{{ bottom + 16 }}" text-anchor="middle"
 class="muted">{{ text }}</text>
{% endfor %}
{% if diagonal %}<polyline points="{{ diagonal }}" class="reference"/>{% endif %}
{% if band %}<polygon points="{{ band }}" class="band"/>{% endif %}
{% if line %}<polyline points="{{ line }}" class="line"/>{% endif %}
{% for mark in marks %}{% if mark.low is not none %}<line x1="{{ mark.x }}" x2="{{ mark.x }}"
 y1="{{ mark.low }}" y2="{{ mark.high }}" class="whisker"/>{% endif %}
<circle cx="{{ mark.x }}" cy="{{ mark.y }}" r="4" class="dot"/>
{% endfor %}</svg><figcaption>{{ caption }}</figcaption></figure>"""

_ENVIRONMENT = Environment(autoescape=True, trim_blocks=True)


def _drawn(template: str, **values: Any) -> Markup:
    return Markup(_ENVIRONMENT.from_string(template).render(**values))


def small_interval(finding: Item) -> Markup:
    """The statistic with its interval against the threshold, for a line of the table; empty where
    there is neither interval nor threshold to hold it against."""
    value, threshold = finite(finding["statistic"]), finite(finding["threshold"])
    ends = present(finding["low"], finding["high"])
    if value is None or (len(ends) < 2 and not threshold):
        return Markup("")
    place = axis(present(value, threshold, *ends), 6, 154)
    return _drawn(
        _SMALL,
        label=f"{number(finding['statistic'])} against {number(finding['threshold'])}",
        value=place(value),
        threshold=None if threshold is None else place(threshold),
        **_ends(finding, place),
    )


def _ends(item: Item, place: Axis) -> dict[str, float | None]:
    ends = present(item.get("low"), item.get("high"))
    whole = len(ends) == 2
    return {"low": place(ends[0]) if whole else None, "high": place(ends[1]) if whole else None}


def _scale(figure: Item, items: Sequence[Item], start: float, stop: float) -> Axis:
    marks = present(figure.get("reference"), figure.get("threshold"))
    keys = ("value", "low", "high")
    values = [value for item in items for value in present(*(item.get(key) for key in keys))]
    return axis(values + marks, start, stop)


def _rules(figure: Item, place: Axis) -> dict[str, float | None]:
    values = {key: finite(figure.get(key)) for key in ("reference", "threshold")}
    return {key: None if value is None else place(value) for key, value in values.items()}


def _shown(figure: Item, key: str) -> list[Item]:
    return [item for item in figure.get(key) or () if finite(item.get("value")) is not None]


def _caption(figure: Item) -> str:
    what, along = str(figure.get("y") or figure.get("title") or ""), str(figure.get("x") or "")
    return f"{what}, by {along}" if what and along else what or along


def _bars(figure: Item) -> Markup:
    bars = _shown(figure, "bars")
    if not bars:
        return Markup("")
    left_out = max(0, len(bars) - MAX_BARS)
    bars = bars[:MAX_BARS]
    place = _scale(figure, bars, 16, WIDTH - 16)
    return _drawn(
        _BARS,
        label=str(figure.get("y") or "values with their intervals"),
        caption=_caption(figure),
        left=8,
        top=4,
        bottom=14 + 38 * len(bars),
        ticks=place.ticks,
        left_out=left_out,
        bars=[
            {
                "name": _shortened(str(bar["name"])),
                "full": str(bar["name"]),
                "text": number(bar["value"]) + (f" (n = {bar['n']:,})" if bar.get("n") else ""),
                "y": 28 + 38 * i,
                "x": place(bar["value"]),
                **_ends(bar, place),
            }
            for i, bar in enumerate(bars)
        ],
        **_rules(figure, place),
    )


def _shortened(name: str) -> str:
    """With the middle left out, since names of models and of n-grams differ at both ends."""
    half = MAX_NAME // 2 - 1
    return name if len(name) <= MAX_NAME else f"{name[:half]} … {name[-half:]}"


def _bins(figure: Item) -> Markup:
    bins = _shown(figure, "bins")
    if not bins:
        return Markup("")
    place = _scale(figure, bins, _TOP + _HEIGHT, _TOP)
    room = (WIDTH - _LEFT - _RIGHT) / len(bins)
    middles = [round(_LEFT + room * (i + 0.5), 2) for i in range(len(bins))]
    # Every name where they fit, at seven units a letter; else every second, third, ...
    widest = 7 * max(len(str(item["name"])) for item in bins) + 8
    every = math.ceil(widest / room)
    names = [(x, str(item["name"])) for x, item in zip(middles, bins, strict=True)]
    marks = [
        {"x": x, "y": place(item["value"]), **_ends(item, place)}
        for x, item in zip(middles, bins, strict=True)
    ]
    return _upright(figure, place, names[::every], marks)


def _curve(figure: Item) -> Markup:
    points = [point for point in _shown(figure, "points") if finite(point.get("x")) is not None]
    if not points:
        return Markup("")
    points.sort(key=lambda point: float(point["x"]))
    place = _scale(figure, points, _TOP + _HEIGHT, _TOP)
    along = axis([float(point["x"]) for point in points], _LEFT, WIDTH - _RIGHT)
    marks = [
        {"x": along(point["x"]), "y": place(point["value"]), **_ends(point, place)}
        for point in points
    ]
    ends = [mark for mark in marks if mark["low"] is not None]
    upper = [f"{mark['x']},{mark['high']}" for mark in ends]
    lower = [f"{mark['x']},{mark['low']}" for mark in reversed(ends)]
    line = " ".join(f"{mark['x']},{mark['y']}" for mark in marks)
    equal = (max(along.low, place.low), min(along.high, place.high))
    return _upright(
        figure,
        place,
        along.ticks,
        marks,
        line=line,
        band=" ".join(upper + lower),
        diagonal=" ".join(f"{along(v)},{place(v)}" for v in equal) * bool(figure.get("diagonal")),
    )


def _upright(
    figure: Item,
    place: Axis,
    names: Sequence[tuple[float, str]],
    marks: Sequence[Mapping[str, float | None]],
    **strokes: str,
) -> Markup:
    return _drawn(
        _AXES,
        label=str(figure.get("y") or "values with their intervals"),
        caption=_caption(figure),
        left=_LEFT,
        bottom=_TOP + _HEIGHT,
        ticks=place.ticks,
        names=names,
        marks=marks,
        **_rules(figure, place),
        **strokes,
    )


def _rates(figure: Item) -> Markup:
    named = zip(figure["annotators"], figure["rates"], figure["intervals"], strict=True)
    bars = [{"name": n, "value": rate, "low": low, "high": high} for n, rate, (low, high) in named]
    return _bars({"y": "by annotator", **figure, "bars": bars})


def _shares(figure: Item) -> Markup:
    named = zip(figure["annotators"], figure["shares"], strict=True)
    bars = [{"name": name, "value": share} for name, share in named]
    return _bars({"y": "share of the votes, by annotator", **figure, "bars": bars})


def _agreement(figure: Item) -> Markup:
    bars = [
        {"name": "raw agreement", "value": figure["raw"]},
        {"name": "agreement by chance", "value": figure["chance"]},
        {"name": "Krippendorff's alpha", "value": figure["alpha"]},
        *(
            {"name": f"kappa, {pair['first']} and {pair['second']}", "value": pair["kappa"], **pair}
            for pair in figure["pairs"]
        ),
    ]
    return _bars({"y": "agreement", **figure, "bars": bars})


def _probe(figure: Item) -> Markup:
    named = (
        ("change of the reward, in standard deviations of the margins", "effect"),
        ("share of pairs that flip", "flips"),
    )
    return Markup("").join(
        _bars(
            {
                "y": caption,
                "reference": 0,
                "threshold": limit,
                "bars": [dict(zip(("value", "low", "high"), figure[key], strict=True), name=key)],
            }
        )
        for (caption, key), limit in zip(named, figure["limits"], strict=True)
    )


_KINDS: dict[str, Callable[[Item], Markup]] = {
    "bars": _bars,
    "bins": _bins,
    "curve": _curve,
    "rates": _rates,
    "shares": _shares,
    "agreement": _agreement,
    "probe": _probe,
}


def draw(finding: Item) -> Markup:
    """The figure of a finding; empty where it has none."""
    figure = finding.get("figure") or {}
    if figure.get("kind") == "interval":
        alone = {**finding, "name": finding["check"], "value": finding["statistic"]}
        return _bars({"threshold": finding["threshold"], **figure, "bars": [alone]})
    drawn = _KINDS.get(str(figure.get("kind")))
    return drawn(figure) if drawn else Markup("")
