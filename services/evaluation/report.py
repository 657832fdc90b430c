"""What an evaluation leaves behind: `metrics.json`, `run.json` and `report.html`, a page of its own with plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

from services.evaluation.reasons import SLICE
from services.evaluation.run import Report

Row = tuple[str, ...]
BAR, GAP, LABEL, PLOT = 18, 8, 190, 420
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .25em .7em; text-align: right }
th:first-child, td:first-child { text-align: left } tr:nth-child(even) { background: #f4f4f4 }
dt { font-weight: 600 } dd { margin: 0 0 .4em 1.5em; overflow-wrap: anywhere } svg { display: block; margin: 1em 0 }
"""


def write(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write the three files into a folder, made where it is not there; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "metrics.json": json.dumps([asdict(line) for line in report.lines], indent=1),
        "run.json": json.dumps(told(report), indent=1),
        "report.html": page(report),
    }
    for name, text in texts.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
    return tuple(folder / name for name in texts)


def told(report: Report) -> dict[str, object]:
    """What was run on what."""
    wanted = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(report.wanted).items()}
    return {"wanted": wanted, "facts": report.facts, "settings": report.settings, "against": report.against}


def overview(report: Report, k: int, part: str) -> tuple[Row, list[Row]]:
    """What people read first: a row per model, the metrics of one part at one depth."""
    found = {(line.model, line.metric): line for line in report.lines if line.slice == part}
    named = [f"hr@{k}", f"ndcg@{k}", f"ndcg-debiased@{k}", "mrr", f"coverage@{k}", f"gini@{k}", f"ild@{k}",
             f"entropy@{k}"]  # fmt: skip
    if report.wanted.impressions:
        named = ["auc", "gauc", "mrr", "ndcg@5", "ndcg@10", "ece", "pcoc", "brier", "f1", "snips"]
    if report.wanted.attacks:
        named = [f"{name}@10{of}" for name in ("ndcg", "exposure", "target-hr") for of in (" before", "", " / before")]
    shown = [name for name in named if any(name == metric for _, metric in found)]
    short = {f"ndcg-debiased@{k}": "debiased", f"coverage@{k}": "cover", f"gini@{k}": "gini",
             f"ild@{k}": "ild", f"entropy@{k}": "entropy"}  # fmt: skip
    rows: list[Row] = [
        (model, *(f"{found[model, name].value:.4f}" if (model, name) in found else "" for name in shown))
        for model in dict.fromkeys(model for model, _ in found)
    ]
    return ("model", *(short.get(name, name) for name in shown)), rows


def compared(report: Report, k: int, part: str) -> tuple[Row, list[Row]]:
    """Each model's NDCG less that of the one they are compared with, with the paired interval; no row without one."""
    known = {line.metric for line in report.lines}
    wanted = next((n for n in (f"ndcg@{k} - {report.against}", f"auc - {report.against}") if n in known), "difference")
    lines = [line for line in report.lines if (line.slice, line.metric) == (part, wanted)]
    rows: list[Row] = [(line.model, f"{line.value:+.4f}", f"{line.low:+.4f}", f"{line.high:+.4f}") for line in lines]
    return ("model", wanted, "low", "high"), rows


def parts_of(report: Report) -> dict[str, int]:
    """The parts that have cases, and how many users stand in each."""
    return {line.slice: line.users for line in report.lines if line.slice != SLICE}


def trusted(report: Report) -> tuple[Row, list[Row]]:
    """How far reasons can be trusted, a row per measure; no row where the pipeline was not asked."""
    lines = [line for line in report.lines if line.slice == SLICE]
    rows: list[Row] = [
        (line.metric, f"{line.value:.3f}", f"{line.low:.3f}", f"{line.high:.3f}", str(line.users)) for line in lines
    ]
    return ("reasons of the pipeline", "mean", "low", "high", "users"), rows


def first_depth(report: Report) -> int:
    """The depth that people look at first."""
    if report.wanted.impressions:
        return 10
    return 10 if 10 in report.wanted.at else report.wanted.at[0]


def page(report: Report) -> str:
    """The report as one HTML page that needs nothing else."""
    k = first_depth(report)
    kind = "shown lists" if report.wanted.impressions else report.wanted.protocol
    parts = [f"<h1>Evaluation: {escape(kind)}</h1>", _facts(report.facts)]
    parts += ["<h2>How each model was set</h2>", _facts(report.settings)]
    parts += ["<h2>All</h2>", *(_bars(report, name, "all") for name in (f"ndcg@{k}", f"hr@{k}", "gauc", "auc"))]
    parts.append(_curve(report))
    for part, users in parts_of(report).items():
        parts.append(f"<h2>{escape(part)}: {users:,} users</h2>")
        depths = (k,) if report.wanted.impressions else report.wanted.at
        parts += [_table(*overview(report, depth, part)) for depth in depths]
        parts.append(_table(*compared(report, k, part)))
        parts += [_bars(report, f"hr@{k}", part)] if part.startswith("cold") else []
    parts += [f"<h2>Reasons</h2>{_table(*trusted(report))}"] if trusted(report)[1] else []
    parts.append(
        "<p>Values are means over cases and seeds; bars end at the mean, thin lines are 95 % intervals of a bootstrap "
        "over users. Differences are paired: both models on the same resamples.</p>"
    )
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>freshrank: evaluation</title>'
        f"<style>{STYLE}</style>\n<body>\n{body}\n</body></html>"
    )


def _facts(facts: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(n)}</dt><dd>{escape(v)}</dd>" for n, v in facts.items()) + "</dl>"


def _table(header: Row, rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{escape(each)}</th>" for each in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(each)}</td>" for each in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _bars(report: Report, metric: str, part: str) -> str:
    """A bar per model with its interval; empty where the part is."""
    lines = [line for line in report.lines if line.metric == metric and line.slice == part]
    most = max((line.high for line in lines), default=0.0) or 1.0
    drawn = []
    for place, line in enumerate(lines):
        top, middle = 24 + place * (BAR + GAP), 24 + place * (BAR + GAP) + BAR / 2
        low, high, end = (LABEL + PLOT * max(each, 0.0) / most for each in (line.low, line.high, line.value))
        drawn.append(
            f'<text x="{LABEL - 8}" y="{middle + 5}" text-anchor="end">{escape(line.model)}</text>'
            f'<rect x="{LABEL}" y="{top}" width="{end - LABEL:.1f}" height="{BAR}" fill="#4a7fb5"/>'
            f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="#222"/>'
            f'<text x="{high + 6:.1f}" y="{middle + 5}">{line.value:.4f}</text>'
        )
    title = f"{metric}, {part} ({lines[0].users:,} users)" if lines else ""
    return _svg(title, drawn, 30 + len(lines) * (BAR + GAP)) if lines else ""


def _curve(report: Report) -> str:
    """HR by depth, a line per model; empty with one depth."""
    depths = sorted(report.wanted.at)
    if len(depths) < 2 or report.wanted.impressions or report.wanted.attacks:
        return ""
    values = {(line.model, line.metric): line.value for line in report.lines if line.slice == "all"}
    models = list(dict.fromkeys(model for model, _ in values))
    most = max((values[model, f"hr@{k}"] for model in models for k in depths), default=0.0) or 1.0
    drawn = []
    for number, model in enumerate(models):
        points = [
            (60 + 380 * place / (len(depths) - 1), 190 - 150 * values[model, f"hr@{k}"] / most)
            for place, k in enumerate(depths)
        ]
        colour = f"hsl({number * 360 // len(models)} 60% 40%)"
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        drawn.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="450" y="{40 + 18 * number}" fill="{colour}">{escape(model)}</text>'
        )
    drawn += [
        f'<text x="{60 + 380 * place / (len(depths) - 1):.0f}" y="210" text-anchor="middle">{k}</text>'
        for place, k in enumerate(depths)
    ]
    drawn.append(f'<text x="52" y="45" text-anchor="end">{most:.3f}</text>')
    drawn.append('<path d="M60 40V190H440" stroke="#888" fill="none"/>')
    return _svg("HR by depth", drawn, max(220, 40 + 18 * len(models)))


def _svg(title: str, drawn: Sequence[str], height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="{height}" font-size="13" role="img">'
        f'<text x="0" y="14" font-weight="600">{escape(title)}</text>{"".join(drawn)}</svg>'
    )
