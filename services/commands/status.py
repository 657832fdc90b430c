"""status: how the instance is, from any process: lags, freshness, processes, releases, what was rejected."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from services.commands.edge import Json, age, answer, existing, moment, settings_of, table

if TYPE_CHECKING:
    from services.domain import PartHealth
    from services.freshness import Figures
    from services.ports import LogView
    from services.reports import Report, Told
    from services.settings import Settings
    from services.wiring import Home

SHOWN_AS = {"row": "user rows", "card": "item cards", "stats": "item counts", "vector": "text vectors"}
COUNTED_AS = {
    "late": "late (older than all of a full row)",
    "duplicate": "duplicates",
    "clamped": "clamped (time ahead of acceptance)",
    "rejected": "rejected since start",
    "rows_refused": "rows written twice (another owner came first)",
    "slates_dropped": "slates not recorded",
    "clock_ahead": "ages below zero (clocks differ)",
}
Fields = dict[str, object]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: freshrank status --json")(status)


def status(context: typer.Context, as_json: Json = False) -> None:
    """How the instance is.

    Lag of each consumer, freshness over the last minutes, processes on all machines, releases, what was rejected.
    """
    from services import wiring

    given = existing(settings_of(context))
    with wiring.open_home(given) as home:
        found = home.told()
        fields = {
            **_instance(home),
            **_freshness(home, found),
            "processes": [_process(r, found) for r in found.alive()],
        }
        groups = _groups(home.view, found)
    answer(as_json, {**fields, "consumers": groups}, lambda: _print(fields, groups, found))


def api_url(given: Settings) -> str | None:
    """Where the API of this home answers; None when no process serves it."""
    address: Path = given.home / "api.json"
    if not address.exists():
        return None
    fields = json.loads(address.read_text())
    return str(fields["url"]) if Path(f"/proc/{fields['pid']}").exists() else None


def _instance(home: Home) -> Fields:
    from services.domain import TOPICS
    from services.lag import lags_of
    from services.supervisor import holder_of

    given, live = home.settings, home.registry.live()
    return {
        "home": given.home,
        "running": holder_of(given.home),
        "api": api_url(given),
        "lag": lags_of(home.view),
        "accepted": {topic: sum(home.view.ends(topic).values()) for topic in TOPICS},
        "release": live.release_id if live else None,
        "data_until": live.data_until if live else None,
        "releases": len(home.registry.all()),
        "rejected": dict(home.quarantine.count()),
    }


def _freshness(home: Home, found: Told) -> Fields:
    from services.freshness import judged

    health: PartHealth = judged(found.figures, home.objective, found.stalled_s())
    return {
        "freshness": {"state": health.state, "detail": health.detail, "objective": home.objective,
                      "figures": [_rounded(each) for each in found.figures]},
        "counted": found.counted(),
        "items": _items(found),
    }  # fmt: skip


def _groups(view: LogView, found: Told) -> list[Fields]:
    """Each consumer group: its lag by partition, also while no process of it runs, and who takes it in."""
    from services.lag import progress_of

    waits = [each for each in found.alive() if each.waiting_s]
    rows: list[Fields] = []
    for group, places in progress_of(view).items():
        by = [each for each in found.alive() if group in each.role.split("+")]
        lags = {f"{p.topic}/{p.number}": end - done for p, (done, end) in places.items()}
        rows.append(
            {
                "consumer": group,
                "lag": sum(lags.values()),
                "partitions": lags,
                "waiting_s": round(max(each.waiting_s[group] for each in waits), 1) if waits else None,
                "processes": [f"{each.host}:{each.pid}" for each in by],
            }
        )
    return rows


def _items(found: Told) -> list[Fields]:
    """How old the item table of each serving process is, as of its last report."""
    return [
        {"process": f"{each.host}:{each.pid}"} | {name: round(s, 1) for name, s in each.serving.items()}
        for each in found.alive()
        if each.serving
    ]


def _process(each: Report, found: Told) -> Fields:
    return {
        "role": each.role,
        "host": each.host,
        "pid": each.pid,
        "up_s": round((found.at_us - each.started_us) / 1e6),
        "told_s_ago": round((found.at_us - each.at_us) / 1e6, 1),
        "resident_mb": round(each.process["resident_bytes"] / 2**20),
        "cpu_s": round(each.process["cpu_seconds"], 1),
        "open_files": int(each.process["open_files"]),
        "threads": int(each.process["threads"]),
    }


def _rounded(each: Figures) -> Fields:
    names = ("within_share", "p50_ms", "p95_ms", "p99_ms", "max_ms")
    values: dict[str, float | None] = {name: getattr(each, name) for name in names}
    told: Fields = {name: None if value is None else round(value, 4) for name, value in values.items()}
    return {"part": each.part, "origin": each.origin, "messages": each.events, **told}


def _print(fields: Mapping[str, object], groups: list[Fields], found: Told) -> None:
    from services.domain import to_us

    until, rejected, freshness = fields["data_until"], fields["rejected"], fields["freshness"]
    assert isinstance(rejected, dict)
    assert isinstance(freshness, dict)
    release = f"{fields['release']}, data until {moment(to_us(until))}" if fields["release"] else "none yet"  # type: ignore[arg-type]
    rows: list[tuple[object, object]] = [
        ("home", fields["home"]),
        ("running", fields["running"] or "no"),
        ("API", fields["api"] or "not served"),
        ("release", release),
        ("rejected", sum(rejected.values())),
        ("freshness", f"{freshness['state']}: {freshness['detail']}"),
        *((f"item table of {each['process']}", _table_age(each)) for each in _items(found)),
        *((COUNTED_AS[name], count) for name, count in found.counted().items() if count and name in COUNTED_AS),
    ]
    table("", ("what", "value"), rows)
    table(
        "Consumers",
        ("consumer", "lag", "oldest waits", "processes"),
        [(g["consumer"], g["lag"], _seconds(g["waiting_s"]), _who(g["processes"])) for g in groups],
    )
    shown = [each for each in found.figures if each.events]
    if shown:
        objective = freshness["objective"]
        table(
            f"From acceptance to what a read shows, last {objective.window_s:.0f} s",
            ("what", "messages", f"in {objective.age_ms} ms", "p50", "p95", "p99", "greatest"),
            [_figure_row(each) for each in shown],
        )
    told = [_process(each, found) for each in found.alive()]
    if told:
        columns = ("role", "host", "pid", "up", "MB", "CPU s", "files", "threads")
        names = ("role", "host", "pid", "up_s", "resident_mb", "cpu_s", "open_files", "threads")
        table("Processes that use this database", columns, [tuple(each[name] for name in names) for each in told])


def _figure_row(each: Figures) -> tuple[object, ...]:
    share = "" if each.within_share is None else f"{each.within_share:.2%}"
    ages = (each.p50_ms, each.p95_ms, each.p99_ms, each.max_ms)
    what = SHOWN_AS[each.part] + (", old" if each.origin == "history" else "")
    return (what, f"{each.events:,}", share, *(_ms(ms) for ms in ages))


def _table_age(each: Mapping[str, object]) -> str:
    return f"newest change {age(float(str(each['changed'])))} ago, compared {age(float(str(each['fed'])))} ago"


def _ms(ms: float | None) -> str:
    if ms is None:
        return ""
    return f"{ms:,.0f} ms" if ms < 10_000 else age(ms / 1000)


def _seconds(seconds: object) -> str:
    return "not known" if seconds is None else age(float(str(seconds)))


def _who(processes: object) -> str:
    assert isinstance(processes, list)
    return ", ".join(processes) or "none"
