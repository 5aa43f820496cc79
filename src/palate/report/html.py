"""A one-page HTML report of a run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment

from palate.model.checkpoint import Sidecar
from palate.report.card import about_part, calibration, interval, shown
from palate.statistics import Estimate
from palate.text import plural

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>palate: {{ facts.model }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
h1, td { overflow-wrap: break-word; } code { font-size: .75em; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd; }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; } .muted { color: #666; }
</style>
<h1>Reward model on {{ facts.model }}</h1>
<p>Trained on {{ plural(facts.num_groups.train, "prompt") }},
{{ plural(facts.steps, "step") }}{% if facts.best %}; the
model is {{ facts.best }}, the best by validation loss{% endif %}.
{{ calibration(temperature) }}</p>
{% for part, metrics in results.items() %}
{% set title, note = about_part(part, temperature) %}
<h2>On {{ title }}</h2>
<p>{{ note }}</p>
<svg viewBox="0 0 640 {{ 40 + 34 * bars[part]|length }}" role="img"
 aria-label="accuracies with intervals">
{% for x in (0, 0.25, 0.5, 0.75, 1) %}
<line x1="{{ 220 + 400 * x }}" x2="{{ 220 + 400 * x }}" y1="8"
 y2="{{ 12 + 34 * bars[part]|length }}" stroke="{{ '#888' if x == 0.5 else '#ddd' }}"/>
<text x="{{ 220 + 400 * x }}" y="{{ 32 + 34 * bars[part]|length }}" font-size="13"
 text-anchor="middle" fill="#666">{{ x }}</text>
{% endfor %}
{% for name, m in bars[part] %}{% set y = 26 + 34 * loop.index0 %}
<text x="210" y="{{ y + 5 }}" font-size="15" text-anchor="end"
 {% if name == "accuracy" %}font-weight="bold"{% endif %}>{{ name }}</text>
{% if m.low is finite %}
<line x1="{{ 220 + 400 * m.low }}" x2="{{ 220 + 400 * m.high }}" y1="{{ y }}" y2="{{ y }}"
 stroke="#36c" stroke-width="3"/>
{% endif %}
<circle cx="{{ 220 + 400 * m.value }}" cy="{{ y }}" r="5" fill="#36c"/>
{% endfor %}</svg>
<table><tr><th>metric<th class="n">value<th class="n">95 % interval<th class="n">prompts</tr>
{% for name in shown(metrics) %}{% set m = metrics[name] %}
<tr><td>{{ name }}<td class="n">{{ "%.3f"|format(m.value) }}
<td class="n">{{ interval(m) }}<td class="n">{{ m.n }}</tr>
{% endfor %}</table>
{% else %}<p>Nothing was held out, so nothing was measured.</p>
{% endfor %}
<p class="muted">Within a prompt comparisons are averaged, over prompts the mean is taken; equal
rewards count half; intervals resample prompt clusters, and one cluster gives none. The prompt-blind
baseline is a logistic model of the answers' style and words, fitted on the training part.</p>
<h2>Rows</h2>
<p>{{ facts.num_rows }} read. {{ facts.left_out }}</p>
<table><tr><th>in the ledger<th class="n">entries</tr>
{% for reason, count in facts.ledger.items() %}<tr><td>{{ reason }}<td class="n">{{ count }}</tr>
{% else %}<tr><td>nothing<td class="n">0</tr>{% endfor %}</table>
<h2>Training</h2>
<p>Objective {{ facts.objective }}, method {{ facts.method }}.
{% for name, value in facts.learned.items() %}Learned beside the rewards: {{ name }} {{ value }}.
{% endfor %}</p>
<table><tr><th class="n">step<th class="n">loss<th class="n">validation loss
<th class="n">validation accuracy</tr>
{% for e in history %}{% if "loss" in e or "eval_loss" in e %}<tr><td class="n">{{ e.step }}
<td class="n">{{ "%.4f"|format(e.loss) if "loss" in e }}
<td class="n">{{ "%.4f"|format(e.eval_loss) if "eval_loss" in e }}
<td class="n">{{ "%.3f"|format(e.eval_accuracy) if "eval_accuracy" in e }}</tr>{% endif %}
{% endfor %}</table>
<h2>Identity</h2>
<table>
{% for name, value in fingerprint.items() %}
<tr><td>{{ name }}<td><code>{{ value }}</code></tr>
{% endfor %}{% for name, value in versions.items() %}
<tr><td>{{ name }}<td>{{ value }}</tr>
{% endfor %}{% for name, value in facts.data.items() %}
<tr><td>{{ name }}<td><code>{{ value }}</code></tr>
{% endfor %}</table></html>
"""

BARS = ("accuracy", "prompt-blind", "longer wins", "shorter wins", "random")


def html_report(
    sidecar: Sidecar,
    results: Mapping[str, Mapping[str, Estimate]],
    facts: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
) -> str:
    """The page, self-contained; `history` is the trainer's log."""
    bars = {
        part: [(name, metrics[name]) for name in BARS if name in metrics]
        for part, metrics in results.items()
    }
    environment = Environment(autoescape=True, trim_blocks=True)
    environment.tests["finite"] = math.isfinite
    rendered: str = environment.from_string(_PAGE).render(
        results=results,
        about_part=about_part,
        interval=interval,
        bars=bars,
        shown=shown,
        plural=plural,
        facts=facts,
        history=history,
        temperature=sidecar.temperature,
        calibration=calibration,
        fingerprint=sidecar.fingerprint,
        versions=sidecar.versions,
    )
    return rendered
