"""report.html: one file that needs neither network nor server."""

from __future__ import annotations

import datetime
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from autoprune.files import write_text
from autoprune.report import extras, provenance, scratch, speed
from autoprune.report.comparison import REFERENCE, gain, longer_trained
from autoprune.report.figures import Figure, figures
from autoprune.report.front import Front
from autoprune.report.quality import accuracy, accuracy_on_test, flops_fraction, has_sparsity, name_of, noise
from autoprune.report.significance import as_good_as_next
from autoprune.report.speed_tables import SPEED_COLUMNS, speed_cells
from autoprune.report.tables import (
    SCRATCH_COLUMNS,
    SCRATCH_LEGEND,
    counts_by_state,
    duration,
    human,
    percent,
    points,
    polished_cells,
    scratch_cells,
    sparse_cells,
    targets_of,
)
from autoprune.study.records import TrialRecord

# Nothing may be fetched: the page works from a disk, and tells nobody that it was opened.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"


def write_report(front: Front, path: Path | None = None) -> Path:
    """Write the report of a study, into its run folder by default, and return its path."""
    target = path or front.record.folder / "report.html"
    write_text(target, render(front))
    return target


def render(front: Front) -> str:
    """Return the whole page."""
    drawn = figures(front, provenance.group_sizes(front.record.folder))
    name = _text(front.record.config.name)
    body = "\n".join(
        [
            _heading(front),
            _cards(front),
            _plot_sections(drawn),
            _front_section(front),
            _polished_section(front),
            _scratch_section(front),
            _speed_section(front),
            _failures_section(front.record.trials),
            _about_section(front),
        ]
    )
    # A "<" could end or nest the script element; in JSON its escape is the same.
    data = json.dumps(drawn).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>autoprune: {name}</title>
<style>{_asset("report.css")}</style>
</head>
<body>
{body}
<script id="figures" type="application/json">{data}</script>
<script>{_plotly() if drawn else ""}</script>
<script>{_asset("report.js") if drawn else ""}</script>
</body>
</html>
"""


def _heading(front: Front) -> str:
    record = front.record
    counts = ", ".join(f"{n} {state}" for state, n in counts_by_state(record.trials).items() if n)
    base = front.base
    cost = f"{human(base.get('flops', math.nan))} FLOPs, {human(base.get('params', math.nan))} parameters"
    return f"""<header>
<h1>{_text(record.config.name)}</h1>
<p class="soft">{_text(record.config.model.name)} on {_text(record.config.data.name)}, base model {_text(cost)}.
Trials: {counts or "none yet"}. Time: {duration(record.seconds)}.</p>
</header>"""


def _cards(front: Front) -> str:
    cards = [_base_card(front.base)]
    for target in targets_of(front):
        best = front.best_of(target)
        cards.append(
            _card(_target_name(target), "no finished trial yet", "") if best is None else _best_card(front, best)
        )
    return f'<ul class="cards">{"".join(cards)}</ul>'


def _base_card(base: Mapping[str, float]) -> str:
    tested = base.get("test_accuracy", math.nan)
    more = f"test {percent(tested)}" if math.isfinite(tested) else ""
    return _card("Base model", percent(base.get("accuracy", math.nan)), more)


def _best_card(front: Front, best: TrialRecord) -> str:
    more = [name_of(best), f"{human(best.metrics['flops'])} FLOPs"]
    if math.isfinite(accuracy_on_test(best)):
        more.append(f"test {percent(accuracy_on_test(best))}")
    lead = gain(front, best)
    compared = ""
    if math.isfinite(lead):
        kind = "good" if lead > 0 else "bad" if lead < 0 else ""
        compared = f'<br><span class="{kind}">{points(lead)} points</span> against {REFERENCE}'
    return _card(_target_name(best.target_label), percent(accuracy(best)), _text(", ".join(more)) + compared)


def _card(what: str, big: str, more: str) -> str:
    return (
        f'<li><span class="what">{_text(what)}</span><span class="big">{_text(big)}</span>'
        f'<span class="more">{more}</span></li>'
    )


def _target_name(label: str) -> str:
    parts = [part.partition("=") for part in label.split(",")]
    return "Best at " + " and ".join(
        f"{100 * float(value):g} % of the {'FLOPs' if name == 'flops' else 'parameters'}" for name, _, value in parts
    )


_CAPTIONS = {
    "front": (
        "Accuracy against cost",
        "Filled circles are the front: no finished trial is better in one of the study's objectives and as good in the "
        "others. Diamonds show the same models on the test split, which the search never saw.",
    ),
    "trials": (
        "All trials, rung by rung",
        "Each column is a trial; its circles are its accuracy after each rung. A trial without a filled circle was "
        "stopped early or failed.",
    ),
    "hypervolume": (
        "Progress",
        "Area of the accuracy and cost plane that the finished trials dominate, against accuracy 0 at the base model's "
        "cost. Higher is better.",
    ),
    "kept": (
        "What the front keeps",
        "Share of every group's units that each model of the front keeps.",
    ),
}


def _plot_sections(drawn: Mapping[str, Figure]) -> str:
    return "\n".join(_plot_section(name, drawn[name]) for name in _CAPTIONS if name in drawn)


def _plot_section(name: str, figure: Figure) -> str:
    title, caption = _CAPTIONS[name]
    style = ""
    if name == "kept" and figure["data"]:
        heat = figure["data"][0]
        style = f' style="min-width:{22 * len(heat["x"]) + 240}px;height:{26 * len(heat["y"]) + 190}px"'
    low = " low" if name == "hypervolume" else ""
    return f"""<section><h2>{title}</h2>
<figure><div class="scroll">
<div id="{name}" class="plot{low}"{style} role="img" aria-label="{_text(title)}"></div></div>
<figcaption>{caption}</figcaption></figure></section>"""


def _front_section(front: Front) -> str:
    shown = {t.number: t for t in (*front.trials, *front.baselines)}
    rows = sorted(shown.values(), key=lambda t: (-flops_fraction(t), -accuracy(t)))
    on_front = {t.number for t in front.trials}
    sparse = has_sparsity(rows)
    columns = extras.headings([t.metrics for t in rows])
    body = "".join(_front_row(front, t, t.number in on_front, sparse, columns) for t in rows)
    more = '<th scope="col">speed-up</th>' if front.speed_of else ""
    more += (
        '<th scope="col">sparse FLOPs</th><th scope="col">of base</th><th scope="col">sparsity</th>' if sparse else ""
    )
    told = " by dense kernels; sparse FLOPs are those left were products with zero weights skipped" if sparse else ""
    return f"""<section><h2>The front and the baselines</h2>
<p class="soft">Validation accuracy is what the search saw; test accuracy is on a split it did not see. FLOPs are
2 x MACs for one sample{told}. {noise(front.trials)} A circle marks the front; ~ a model of it whose next cheaper
neighbour is as good within the noise (95 % level).{longer_trained(front)}{extras.legend(columns)}</p>
<div class="scroll"><table>
<thead><tr><th scope="col">model</th><th scope="col">FLOPs</th><th scope="col">of base</th>{more}
<th scope="col">params</th>
<th scope="col">of base</th><th scope="col">validation</th><th scope="col">vs {REFERENCE}</th><th scope="col">test</th>
{"".join(f'<th scope="col">{heading}</th>' for heading in columns)}
<th scope="col">by rung</th><th scope="col" class="left">recipe</th></tr></thead>
<tbody>{_base_row(front, sparse, columns)}{body}</tbody></table></div></section>"""


def _base_row(front: Front, sparse: bool, columns: Sequence[str]) -> str:
    base = front.base
    cells = [
        human(base.get("flops", math.nan)), "100 %", *(["1x"] if front.speed_of else []),
        *sparse_cells({"sparse_flops_fraction": 1.0, "sparsity": 0.0, "sparse_flops": math.nan, **base}, sparse),
        human(base.get("params", math.nan)), "100 %",
        percent(base.get("accuracy", math.nan)), "", percent(base.get("test_accuracy", math.nan)),
        *extras.cells(base, columns), "", "",
    ]  # fmt: skip
    return '<tr><th scope="row">base model</th>' + "".join(f"<td>{_text(c)}</td>" for c in cells) + "</tr>"


def _front_row(front: Front, trial: TrialRecord, on_front: bool, sparse: bool, columns: Sequence[str]) -> str:
    metrics = trial.metrics
    mark = _mark(front, trial) if on_front else ""
    name = name_of(trial) if trial.baseline is None else f"{trial.baseline} ({trial.number})"
    cells = [
        human(metrics["flops"]),
        f"{100 * flops_fraction(trial):.1f} %",
        *speed.cell(front, trial),
        *sparse_cells(metrics, sparse),
        human(metrics["params"]),
        f"{100 * metrics['params_fraction']:.1f} %",
        percent(accuracy(trial)),
        points(gain(front, trial)),
        percent(accuracy_on_test(trial)),
        *extras.cells(metrics, columns),
        " > ".join(f"{100 * r.metrics['accuracy']:.1f}" for r in trial.rungs),
    ]
    kind = "" if on_front else ' class="baseline"'
    return (
        f'<tr{kind}><th scope="row">{mark}{_text(name)}</th>'
        + "".join(f"<td>{_text(c)}</td>" for c in cells)
        + f'<td class="left">{_folded("recipe", trial.recipe or {})}</td></tr>'
    )


def _polished_section(front: Front) -> str:
    columns, rows = polished_cells(front)
    if not rows:
        return ""
    return f"""<section><h2>After polishing</h2>
<p class="soft">Mean and 95 % confidence interval over the trainings: the model's own, and repeats of its recipe from
the base model with other seeds.</p>
{_table(columns, rows)}</section>"""


def _scratch_section(front: Front) -> str:
    """The section about scratch baselines, once there is one; models without are marked."""
    if not scratch.read_runs(front.record.folder):
        return ""
    return f"""<section><h2>From scratch</h2>
<p class="soft">{_text(SCRATCH_LEGEND)}</p>
{_table(SCRATCH_COLUMNS, scratch_cells(front))}</section>"""


def _speed_section(front: Front) -> str:
    if not front.speeds:
        return ""
    tables = ""
    for own in speed.by_setting(front.speeds):
        first = own[0].measured
        tables += f'<h3>{_text(speed.heading(first))}</h3><p class="soft">{_text(speed.provenance(first))}</p>'
        tables += _table(SPEED_COLUMNS, [speed_cells(row) for row in own])
    return f"""<section><h2>Measured speed</h2>
<p class="soft">{_text(speed.LEGEND)} Tables of different settings do not compare. {_text(speed.COUNTED)}</p>
{tables}</section>"""


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of text cells; the first of each row names it."""
    heads = "".join(f'<th scope="col">{_text(head)}</th>' for head in columns)
    body = "".join(
        f'<tr><th scope="row">{_text(name)}</th>' + "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>"
        for name, *cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _mark(front: Front, trial: TrialRecord) -> str:
    tied = trial.number in as_good_as_next(front.trials)
    sign, title = "&#9679;", "on the front"
    if tied:
        sign, title = "~", "on the front; the next cheaper one is as good within the noise"
    return f'<span class="mark" title="{title}">{sign}</span> '


def _failures_section(trials: Sequence[TrialRecord]) -> str:
    failed = [t for t in trials if t.state == "failed"]
    if not failed:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{t.number}</th><td class="left">{_text(t.error_kind or "-")}</td>'
        f'<td class="wide">{_text(t.error or "-")}</td></tr>'
        for t in failed
    )
    return f"""<section><h2>Failed trials</h2><div class="scroll"><table>
<thead><tr><th scope="col">trial</th><th scope="col" class="left">kind</th>
<th scope="col" class="left">reason</th></tr></thead>
<tbody>{rows}</tbody></table></div></section>"""


def _about_section(front: Front) -> str:
    record = front.record
    spent: dict[str, float] = {}
    for trial in record.trials:
        for name, value in trial.cost.items():
            spent[name] = spent.get(name, 0.0) + value
    cost = {
        "time of the study": duration(record.seconds),
        "time of all trials together": duration(spent.get("seconds", 0.0)),
        "samples trained on": human(spent.get("trained_samples", 0.0)),
        "samples evaluated": human(spent.get("forward_samples", 0.0)),
        "seed": str(record.config.seed),
    }
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    about = {
        **provenance.versions(record.folder),
        **provenance.hardware(record.folder),
        "report written": made,
    }
    return f"""<section><h2>About this study</h2>
<div class="columns">{_pairs("cost", cost)}{_pairs("software and hardware", about)}</div>
{_folded("settings of the study", record.config.plain())}
</section>"""


def _pairs(title: str, values: Mapping[str, str]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{_text(k)}</th><td class="wide">{_text(v)}</td></tr>' for k, v in values.items()
    )
    head = f'<thead><tr><th colspan="2" scope="col">{title}</th></tr></thead>'
    return f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'


def _folded(title: str, value: Mapping[str, Any]) -> str:
    text = yaml.safe_dump(dict(value), sort_keys=False, default_flow_style=None, width=90)
    return f"<details><summary>{_text(title)}</summary><pre>{_text(text)}</pre></details>"


def _text(value: object) -> str:
    return html.escape(str(value))


def _asset(name: str) -> str:
    return resources.files("autoprune.report").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
