"""The dashboard and the alerts: every metric, label and function in an expression exists, and its brackets close."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from services import telemetry

FOLDER = Path(__file__).resolve().parents[2] / "infra" / "grafana"
FUNCTIONS = {
    "sum", "max", "min", "avg", "topk", "rate", "increase", "changes", "histogram_quantile", "time", "label_values",
}  # fmt: skip
OF_SCRAPES = {"job", "instance"}
TOKEN = re.compile(r'"[^"]*"|\$\{?\w+\}?|\[\w+\]|[a-zA-Z_:][\w:]*|\d+(?:\.\d+)?|[=!]~|[=!<>]=|[-+*/(){},=<>]')
PAIRS = {")": "(", "}": "{"}


def series() -> dict[str, set[str]]:
    """Every series that the product exports, with its labels."""
    found: dict[str, set[str]] = {}
    for metric in vars(telemetry).values():
        if not isinstance(metric, MetricWrapperBase):
            continue
        name, labels = metric._name, set(metric._labelnames)
        match metric._type:
            case "counter":
                found[f"{name}_total"] = labels
            case "histogram":
                found |= {f"{name}_{end}": labels for end in ("count", "sum")} | {f"{name}_bucket": labels | {"le"}}
            case _:
                found[name] = labels
    return found


def faults(expression: str) -> list[str]:
    """What is wrong with an expression: unreadable signs, brackets, unknown names, labels that a metric has not."""
    left = TOKEN.sub("", expression).strip()
    wrong = [f"cannot be read: {left}"] if left else []
    opened: list[str] = []
    known, used, grouped = series(), set[str](), set[str]()
    tokens = TOKEN.findall(expression)
    for place, token in enumerate(tokens):
        following = tokens[place + 1] if place + 1 < len(tokens) else ""
        if token in "({":
            opened.append("by" if token == "(" and place and tokens[place - 1] == "by" else token)
        elif token in PAIRS:
            closed = opened.pop() if opened else ""
            if closed not in {PAIRS[token], "by"}:
                wrong.append(f"{token} closes nothing")
        elif not re.match(r"[a-zA-Z_]", token) or token == "by":
            continue
        elif opened and opened[-1] in {"{", "by"}:
            grouped.add(token)
        elif token in known:
            used.add(token)
        elif not (token in FUNCTIONS and following in {"(", "by"}) and token != "job":
            wrong.append(f"no metric or function {token}")
    if opened:
        wrong.append(f"{opened} stay open")
    labels = set().union(*(known[name] for name in used)) | OF_SCRAPES
    return wrong + [f"no label {label} of {sorted(used)}" for label in sorted(grouped - labels)]


def panels() -> Iterator[tuple[str, str, str]]:
    """(title, expression, legend) of every query of every panel."""
    for panel in json.loads((FOLDER / "freshrank.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"], target["legendFormat"]


def rules() -> list[dict[str, object]]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize(("title", "expression", "legend"), list(panels()))
def test_every_panel_asks_for_what_there_is(title: str, expression: str, legend: str) -> None:
    assert faults(expression) == []
    assert set(re.findall(r"{{(\w+)}}", legend)) <= set(TOKEN.findall(expression)), f"{title}: {legend}"


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_every_alert_asks_for_what_there_is(rule: dict[str, object]) -> None:
    assert faults(str(rule["expr"])) == []
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}


def test_the_dashboard_can_be_laid_out_and_its_variables_are_declared() -> None:
    """Panels have ids of their own, lie within the 24 columns and do not cover one another."""
    board = json.loads((FOLDER / "freshrank.json").read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    covered: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & covered, panel["title"]
        assert max(x for x, _ in cells) < 24
        covered |= cells
    declared = {variable["name"] for variable in board["templating"]["list"]}
    asked = set(re.findall(r"\$\{?(\w+)", json.dumps(board))) - {"__all"}
    assert asked == declared
    variables = [each["definition"] for each in board["templating"]["list"] if "definition" in each]
    assert [faults(each) for each in variables] == [[]]


def test_the_scrape_file_names_the_rules_that_stand_beside_it() -> None:
    scrape = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert [(FOLDER / name).is_file() for name in scrape["rule_files"]] == [True]
    assert all(job["static_configs"][0]["targets"] for job in scrape["scrape_configs"])


def test_the_readiness_states_of_the_alerts_are_those_of_the_product() -> None:
    from services.api.measured import STATES

    assert STATES == ("green", "yellow", "red")


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("sum(rate(freshrank_lag_mesages[5m]))", "no metric or function freshrank_lag_mesages"),
        ("sum(freshrank_lag_messages", "['('] stay open"),
        ("freshrank_lag_messages)", ") closes nothing"),
        ("sum by (colour) (freshrank_lag_messages)", "no label colour of ['freshrank_lag_messages']"),
        ('freshrank_lag_messages{topic="x"}', "no label topic of ['freshrank_lag_messages']"),
        ("freshrank_freshness_seconds", "no metric or function freshrank_freshness_seconds"),
        ("median(freshrank_lag_messages)", "no metric or function median"),
        ("freshrank_lag_messages % 3", "cannot be read: %"),
    ],
)
def test_what_is_wrong_with_an_expression_is_found(expression: str, fault: str) -> None:
    assert fault in faults(expression)
