"""Known data sets brought into the files that an evaluation reads."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from services.domain import BadRequest

Row = tuple[object, ...]
USER_FEATURES = 4


def open_bandit(folder: Path, out: Path) -> tuple[Path, Path, Path]:
    """Open Bandit, men's campaign: what Thompson sampling showed becomes events (clicks and impressions), what the
    uniform random policy showed becomes the lists that are judged, of one item each, with position and propensity.
    There are no user ids: users are groups of equal features."""
    events, items, shown = (out / name for name in ("events.csv", "items.csv", "shown.csv"))
    out.mkdir(parents=True, exist_ok=True)
    _write(
        events,
        ("user_id", "item_id", "timestamp", "kind"),
        (
            (_user(r), r["item_id"], _at(r), "click" if r["click"] == "1" else "impression")
            for r in _rows(folder, "bts")
        ),
    )
    _write(
        shown,
        ("impression_id", "user_id", "timestamp", "item_id", "clicked", "position", "propensity"),
        (
            (n, _user(r), _at(r), r["item_id"], r["click"], r["position"], r["propensity_score"])
            for n, r in enumerate(_rows(folder, "random"))
        ),
    )
    arms = sorted({int(row["item_id"]) for name in ("bts", "random") for row in _rows(folder, name)})
    _write(items, ("item_id", "title"), ((arm, f"arm {arm}") for arm in arms))
    return events, items, shown


RECIPES: Mapping[str, Callable[[Path, Path], tuple[Path, Path, Path]]] = {"open-bandit": open_bandit}
"""By name: from a folder of the data set and one to write to, to the paths of events, items and lists."""


def _rows(folder: Path, policy: str) -> Iterator[dict[str, str]]:
    path = folder / f"{policy}-men.csv.gz"
    if not path.is_file():
        raise BadRequest(f"{folder} holds no {path.name}")
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _user(row: Mapping[str, str]) -> str:
    return "-".join(row[f"user_feature_{n}"][:6] for n in range(USER_FEATURES))


def _at(row: Mapping[str, str]) -> float:
    return datetime.fromisoformat(row["timestamp"]).timestamp()


def _write(path: Path, header: Row, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header])
        csv.writer(file).writerows(rows)
