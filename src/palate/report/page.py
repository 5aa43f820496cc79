"""What every page shares: its style, light and dark, on paper and on a telephone; and how sections
become HTML.

A page is self-contained: no scripts, nothing loaded from elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from palate.report.audit_figures import draw

STYLE = """
:root { color-scheme: light dark; --text: #222; --soft: #5a5a5a; --page: #fff; --rule: #ddd;
  --box: #f4f4f4; --ink: #1a4fa3; --bad: #b3261e; --axis: #bbb; --grid: #e2e2e2; --mark: #888; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e4e4; --soft: #a8a8a8; --page: #16181b; --rule: #3a3d42; --box: #22252a;
    --ink: #8ab4f8; --bad: #f2938c; --axis: #5c6066; --grid: #2c2f34; --mark: #8a8f96; }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--text); background: var(--page); }
h1, h2, h3, p, li, summary, figcaption { overflow-wrap: anywhere; }
td, .value { overflow-wrap: break-word; }
h2 { margin: 2.6rem 0 .4rem; } h3 { margin: 2rem 0 .4rem; } a { color: var(--ink); }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem;
  border-bottom: 1px solid var(--rule); }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.verdict { font-size: 1.2rem; } .muted, figcaption { color: var(--soft); font-size: .9rem; }
.chip { display: inline-block; padding: 0 .55rem; border-radius: 1rem; font-size: .8rem;
  font-weight: 600; white-space: nowrap; color: #fff; -webkit-print-color-adjust: exact;
  print-color-adjust: exact; }
.error, .fail { background: #b3261e; } .warn { background: #8a5a00; } .note { background: #5f6368; }
.pass { background: #1e6b34; }
.value { min-width: 5rem; } .line { white-space: nowrap; }
svg { display: block; width: 100%; height: auto; } svg.small { width: 160px; }
svg text, svg text.muted { font-size: 13px; fill: var(--text); paint-order: stroke;
  stroke: var(--page); stroke-width: 4px; } svg text.muted { fill: var(--soft); }
.axis { stroke: var(--axis); } .grid { stroke: var(--grid); } .reference { stroke: var(--mark);
  fill: none; }
.threshold { stroke: var(--bad); stroke-dasharray: 4 3; } .dot { fill: var(--ink); }
.whisker { stroke: var(--ink); stroke-width: 3; } .band { fill: var(--ink); opacity: .14; }
.line { fill: none; stroke: var(--ink); stroke-width: 2; }
figure { max-width: 30rem; margin: 1rem 0; }
.figures { display: flex; flex-wrap: wrap; gap: 0 2rem; } .figures figure { flex: 1 1 20rem; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1.5rem; }
pre, code { font: .85em/1.45 ui-monospace, monospace; } code { overflow-wrap: anywhere; }
pre { background: var(--box); padding: .6rem .8rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
q { display: block; white-space: pre-wrap; quotes: none; border-left: 3px solid var(--rule);
  padding-left: .6rem; font-size: .95rem; max-height: 18rem; overflow: auto; }
details { margin: .6rem 0; } summary { cursor: pointer; }
.wide { overflow-x: auto; }
@media (max-width: 40rem) { .sides { grid-template-columns: 1fr; } th, td { padding: .3rem; } }
@media print {
  :root { color-scheme: light; --text: #222; --soft: #5a5a5a; --page: #fff; --rule: #ddd;
    --box: #f4f4f4; --ink: #1a4fa3; --bad: #b3261e; --axis: #bbb; --grid: #e2e2e2; --mark: #888; }
  body { margin: 0; max-width: none; font-size: 11pt; } tr, figure, li { break-inside: avoid; }
  h2, h3, h2 + p { break-after: avoid; } q { max-height: none; }
}
"""

Figure = Mapping[str, Any]
"""As `palate.report.audit_figures.draw` takes it."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells; a cell `(status, text)` becomes a coloured chip with the text."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Any]]
    numbers: frozenset[int] = frozenset()
    """Columns that hold numbers, to be set flush right."""


@dataclass(frozen=True, kw_only=True)
class Quote:
    """Something to read: what is said of it, then texts side by side, each under its name."""

    about: str
    texts: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page; what is empty isn't shown."""

    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    quotes: Sequence[Quote] = ()
    note: str = ""
    """Said in small letters at the end: how to read it."""
    folded: Sequence[Table] = field(default_factory=tuple)
    """Tables that are shown when asked for; on paper only their number of rows is."""


_TABLE = """{% macro table(t) %}<div class="wide"><table><thead><tr>
{% for h in t.headings %}<th{% if loop.index0 in t.numbers %} class="n"{% endif %}>{{ h }}</th>
{% endfor %}</tr></thead><tbody>
{% for row in t.rows %}<tr>{% for cell in row %}
<td{% if loop.index0 in t.numbers %} class="n"{% endif %}>
{%- if cell is string or cell is number or cell is none %}{{ "" if cell is none else cell }}
{%- else %}<span class="chip {{ cell[0] }}">{{ cell[1] }}</span>{% endif %}</td>
{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endmacro %}"""

_PAGE = (
    _TABLE
    + """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style></head><body>
<h1>{{ heading }}</h1>
{% for sentence in verdict %}<p class="verdict">{{ sentence }}</p>
{% endfor %}
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% if section.text %}<p>{{ section.text }}</p>{% endif %}
{% if section.figures %}<div class="figures">
{% for figure in section.figures %}{{ draw({"figure": figure}) }}{% endfor %}</div>{% endif %}
{% for t in section.tables %}{{ table(t) }}{% endfor %}
{% for quote in section.quotes %}<p>{{ quote.about }}</p><div class="sides">
{% for name, text in quote.texts %}<div><p class="muted">{{ name }}</p><q>{{ text }}</q></div>
{% endfor %}</div>{% endfor %}
{% for t in section.folded %}<details><summary>{{ t.rows|length }} rows</summary>{{ table(t) }}
</details>{% endfor %}
{% if section.note %}<p class="muted">{{ section.note }}</p>{% endif %}
{% endfor %}
</body></html>
"""
)


def render_page(
    title: str, heading: str, verdict: Sequence[str], sections: Sequence[Section]
) -> str:
    """One page of sections in their order, after a verdict in sentences."""
    template = Environment(autoescape=True, trim_blocks=True).from_string(_PAGE)
    rendered: str = template.render(
        title=title,
        heading=heading,
        verdict=verdict,
        sections=sections,
        style=Markup(STYLE),
        draw=draw,
    )
    return rendered
