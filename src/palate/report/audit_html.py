"""The page of an audit: a verdict, the findings worst first, and what they rest on."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from palate.report.audit_axes import finite
from palate.report.audit_figures import draw, number, small_interval
from palate.report.page import STYLE
from palate.text import plural

_FINDINGS_STYLE = """
.findings td { overflow-wrap: anywhere; }
.findings .check { min-width: 8rem; max-width: 14rem; }
.findings .number { width: 11rem; font-variant-numeric: tabular-nums; font-size: .9rem; }
.examples li { margin: .5rem 0; }
@media (max-width: 40rem) {
  .findings thead { display: none; }
  .findings tr { display: block; border-bottom: 1px solid var(--rule); padding: .6rem 0; }
  .findings td { display: block; border: 0; padding: .1rem 0; width: auto; }
  .findings td.severity, .findings td.check { display: inline-block; padding-right: .5rem; }
}
@media print { details::details-content { content-visibility: visible; } }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>palate audit: {{ names }}</title>
<style>{{ style }}</style></head><body>
<h1>Audit of {{ names }}</h1>
<p class="verdict">{{ verdict }}</p>
<p>{{ plural(report.num_groups, "prompt") }} with
{{ plural(report.num_comparisons, "comparison") }}
{%- if report.against %}, held against {{ against }}{% endif %}.</p>
<table class="findings"><thead><tr><th>severity<th>check<th>statistic, 95 % interval, threshold
<th>finding</tr></thead><tbody>
{% for finding in report.findings %}
<tr><td class="severity"><span class="chip {{ finding.severity }}">{{ finding.severity }}</span>
<td class="check"><a href="#finding-{{ loop.index }}">{{ finding.check }}</a>
<td class="number">{{ small_interval(finding) }}{{ measured(finding) }}
<td>{{ first_sentence(finding.message) }}</tr>
{% else %}<tr><td colspan="4">No check found anything to say.</tr>
{% endfor %}</tbody></table>
<p class="muted">Dot and bar: the statistic with its 95 % interval, each on a scale of its own.
Dashed: the threshold from which a finding is more than a note.</p>

<h2>The findings one by one</h2>
{% for finding in report.findings %}
<section id="finding-{{ loop.index }}">
<h3><span class="chip {{ finding.severity }}">{{ finding.severity }}</span> {{ finding.check }}</h3>
<p>{{ finding.message }}</p>
<p class="muted">{{ finding.what }}: {{ measured(finding) }}
{%- if finding.threshold is not none %}; threshold {{ number(finding.threshold) }}{% endif %}
{%- if finding.n %}; n = {{ "{:,}".format(finding.n) }}{% endif %}</p>
{{ draw(finding) }}
{% if finding.fix %}<p><strong>What to do</strong></p>
{% for is_code, part in fix_parts(finding.fix) %}
{% if is_code %}<pre><code>{{ part }}</code></pre>{% else %}<p>{{ part }}</p>{% endif %}
{% endfor %}{% endif %}
{% if finding.examples %}
<details{% if finding.severity != "note" and loop.index <= num_open %} open{% endif %}>
<summary>{{ plural(finding.examples|length, "example") }}, worst first</summary>
<ol class="examples">
{% for example in finding.examples %}
<li><code>{{ example.file }}{% if example.line %}<span class="line">:{{ example.line }}</span>
{%- endif %}</code>
<q>{{ example.text }}</q></li>
{% endfor %}</ol></details>{% endif %}
</section>
{% endfor %}

<h2>Checks that these data can't be put to</h2>
<table><thead><tr><th>check<th>why it was skipped</tr></thead><tbody>
{% for skipped in report.skipped %}<tr><td>{{ skipped.check }}
<td class="value">{{ skipped.reason }}</tr>
{% else %}<tr><td colspan="2">None: every check was made.</tr>{% endfor %}</tbody></table>

<h2>How to read this</h2>
<p>An <em>error</em> says that what is trained on these data will be wrong, or that what is measured
on them will flatter. A <em>warn</em> is worth a look before money is spent. A <em>note</em> is a
fact, or says that all is well.</p>
<p>Data alone can't tell a legitimate preference from a spurious one. Where longer answers win,
people may have been taken in by length, or good answers may need more words: the labels look the
same. So a statistic of labels is a warning at most, unless a few words decide nearly every
comparison that they are in, whatever the length. What tells the two apart is a counterfactual: an
answer against the same answer with only the feature changed, put to people or to a model.</p>
<p>The unit of every interval is the prompt cluster (prompts with the same first user turn), since
comparisons of one prompt are not independent. Of many intervals at 95 %, one in twenty misses.</p>

<h2>What it rests on</h2>
{% for title, entries in tables %}
<h3>{{ title }}</h3>
<table><tbody>
{% for name, value in entries %}<tr><td>{{ name }}<td class="value">{{ value }}</tr>
{% else %}<tr><td>nothing</tr>{% endfor %}</tbody></table>
{% endfor %}
<details><summary>Settings</summary><table><tbody>
{% for name, value in settings %}<tr><td><code>{{ name }}</code><td class="value">{{ value }}</tr>
{% endfor %}</tbody></table></details>
</body></html>
"""

NUM_OPEN = 3
"""Findings, of those graver than notes, whose examples are shown without being asked for."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_COMMAND = re.compile(r"palate\s|make\s|--[a-z]|[a-z_][a-z_.]*:(\s+\S+)+$")
"""How a line begins that is a command of the shell, flags, or a setting `key: value`."""
_CODE = re.compile(r"`([^`]+)`|((?<![\w./-])(?:--[a-z]|[a-z_]{2,}\.[a-z_])[a-z_.-]*[a-z_](?!\w))")
"""What stands between backquotes, flags, and dotted names in small letters: settings and files."""


def audit_page(report: Mapping[str, Any]) -> str:
    """The page of an audit's JSON, self-contained: no scripts, nothing loaded from elsewhere.

    `report` holds what `palate audit --json` prints: `data`, `against`, `rows`, `num_groups`,
    `num_comparisons`, `sample`, `settings`, `versions`, `findings` (worst first) and `skipped`.
    """
    environment = Environment(autoescape=True, trim_blocks=True)
    rendered: str = environment.from_string(_PAGE).render(
        report=report,
        names=_listed(report["data"]),
        against=_listed(report["against"]),
        verdict=verdict(report["findings"]),
        style=Markup(STYLE + _FINDINGS_STYLE),
        settings=list(_flat(report["settings"])),
        tables=[
            (title, list(_flat(report[key], ": ")))
            for title, key in (
                ("Rows read, and rows left out by reason", "rows"),
                ("What was sampled", "sample"),
                ("Versions", "versions"),
            )
        ],
        draw=draw,
        fix_parts=fix_parts,
        measured=measured,
        number=number,
        plural=plural,
        small_interval=small_interval,
        first_sentence=lambda message: _SENTENCE_END.split(message, 1)[0],
        num_open=NUM_OPEN,
    )
    return rendered


def verdict(findings: Sequence[Mapping[str, Any]]) -> str:
    """One sentence with the number of findings of each severity, and what to do about them."""
    counts = Counter(finding["severity"] for finding in findings)
    errors, warnings = plural(counts["error"], "error"), plural(counts["warn"], "warning")
    notes = plural(counts["note"], "note")
    if counts["error"]:
        return (
            f"{errors}, {warnings} and {notes}: mend what the errors say before you train on these"
            " data or measure with them."
        )
    if counts["warn"]:
        return f"No error, {warnings} and {notes}: look at the warnings before you train."
    return f"No error and no warning; {notes}."


def measured(finding: Mapping[str, Any]) -> str:
    """The statistic and its interval in figures: "0.843 (0.829 to 0.857)"."""
    value, low, high = (finding[key] for key in ("statistic", "low", "high"))
    if finite(low) is None or finite(high) is None:
        # A count comes without an interval; as a float it is still a count.
        is_whole = isinstance(value, float) and finite(value) is not None and value.is_integer()
        return number(int(value) if is_whole else value)
    return f"{number(value)} ({number(low)} to {number(high)})"


def fix_parts(fix: str) -> list[tuple[bool, Markup | str]]:
    """Lines of a fix, each with whether it is a command or setting, to be shown as code; within
    prose, settings, flags and what stands between backquotes are marked as code too."""
    parts: list[tuple[bool, Markup | str]] = []
    for line in filter(None, (line.strip() for line in fix.splitlines())):
        whole = _CODE.fullmatch(line)
        if whole or _COMMAND.match(line):
            parts.append((True, line.strip("`")))
        else:
            parts.append((False, Markup("").join(_marked(line))))
    return parts


def _marked(prose: str) -> Iterator[Markup]:
    end = 0
    for code in _CODE.finditer(prose):
        yield Markup.escape(prose[end : code.start()])
        yield Markup("<code>{}</code>").format(code[1] or code[2])
        end = code.end()
    yield Markup.escape(prose[end:])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(str, names))


def _flat(
    values: Mapping[str, Any], joint: str = ".", prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """Entries of nested mappings under their joined names, values as people read them."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, joint, f"{prefix}{name}{joint}")
        elif isinstance(value, (list, tuple)):
            yield f"{prefix}{name}", _listed(value) or "none"
        else:
            yield f"{prefix}{name}", _plain(value)


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
