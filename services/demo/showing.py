"""How the demo looks: progress bars, both lists side by side, a closing table, lines to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from services.demo.films import Cast

if TYPE_CHECKING:
    from services.demo.story import Figures

Bars = Callable[[], AbstractContextManager[Callable[[int, int, str], None]]]
TITLE_LENGTH = 38
MARKS = {"new": "bold green", "gone": "red", "up": "green", "down": "yellow", "same": "dim"}


class Showing:
    """The screen. `bars` opens progress bars; handed in, as every command has them."""

    def __init__(self, console: Console, bars: Bars) -> None:
        self._console = console
        self._bars = bars

    @contextmanager
    def bars(self) -> Iterator[Callable[[int, int, str], None]]:
        """Progress bars for a step longer than a second."""
        with self._bars() as progress:
            yield progress

    def opening(self, about: str) -> None:
        """What is about to happen."""
        self._console.print(Panel(f"freshrank on {about}.", expand=False))

    def step(self, sentence: str) -> None:
        """One line of the story."""
        self._console.print(f"[bold]·[/] {sentence}.", highlight=False)

    def verdict(self, verdict: Mapping[str, Any], seconds: float) -> None:
        """What the judge said."""
        outcome = "promoted" if verdict["promoted"] else "not promoted"
        self.step(
            f"Release {verdict['release_id']} {outcome} after {seconds:.0f} s: {str(verdict['reason']).rstrip('.')}"
        )

    def both_lists(self, cast: Cast, before: Mapping[str, Any], after: Mapping[str, Any], ms: float) -> None:
        """The list before the clicks beside the one after, with what is new, moved and gone."""
        self.step(f"User {cast.user_id} mostly likes {cast.taste}; now they click on {cast.other}")
        for _, title in cast.clicks:
            self._console.print(f"    click  {title}", highlight=False)
        drawn = Table(title=f"{ms:.0f} ms from the click to the changed list", title_style="bold", show_lines=False)
        for name, width_min in (("", 2), ("before", 0), ("", 3), ("after", 0), ("source", 8), ("reason", 14)):
            drawn.add_column(name, no_wrap=name != "reason", min_width=width_min)
        for row in side_by_side(before["items"], after["items"]):
            drawn.add_row(*row)
        self._console.print(drawn)

    def newborn(self, pick: Mapping[str, Any], length: int, ms: float) -> None:
        """When an item without any click could be recommended."""
        self.step(
            f"A new item that no release has seen, {pick['title']!r}, stands at place {pick['rank'] + 1} of {length}"
            f" for this user {ms:.0f} ms after it was sent (source {pick['source']})"
        )

    def closing(self, figures: Figures, url: str, cast: Cast) -> None:
        """Every figure, and what to try."""
        self._console.print(_quality(figures))
        self._console.print(_speeds(figures))
        self._console.print("\nTry it:", highlight=False)
        for line in curl_lines(url, cast):
            self._console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)


def side_by_side(
    before: list[Mapping[str, Any]], after: list[Mapping[str, Any]]
) -> list[tuple[str | Text, ...]]:  # fmt: skip
    """A row per place: the item before (struck when gone), and the item after with its mark, source and reason."""
    was = {each["item_id"]: place for place, each in enumerate(before)}
    stays = {each["item_id"] for each in after}
    rows: list[tuple[str | Text, ...]] = []
    for place in range(max(len(before), len(after))):
        left: tuple[str | Text, ...] = ("", "")
        right: tuple[str | Text, ...] = ("", "", "", "")
        if place < len(before):
            gone = before[place]["item_id"] not in stays
            title = _short(before[place]["title"])
            left = (str(place + 1), Text(title, style=MARKS["gone"] if gone else ""))
        if place < len(after):
            mark, style = moved(was.get(after[place]["item_id"]), place)
            each = after[place]
            right = (
                Text(mark, style=style),
                Text(_short(each["title"]), style=style),
                each["source"],
                each["reason"]["text"],
            )
        rows.append(left + right)
    return rows


def moved(was: int | None, place: int) -> tuple[str, str]:
    """The mark of an item at a place and its style: `new`, `↑2`, `↓1` or `=`."""
    if was is None:
        return "new", MARKS["new"]
    if was == place:
        return "=", MARKS["same"]
    return (f"↑{was - place}", MARKS["up"]) if was > place else (f"↓{place - was}", MARKS["down"])


def curl_lines(url: str, cast: Cast) -> tuple[str, ...]:
    """Three calls of the API to try."""
    item_id = cast.clicks[0][0]
    body = f'{{"user_id": "{cast.user_id}", "item_id": "{item_id}", "kind": "like"}}'
    return (
        f"curl -s '{url}/v1/users/{cast.user_id}/recommendations?limit=5'",
        f"curl -s '{url}/v1/events?wait=features' -H 'content-type: application/json' -d '{body}'",
        f"curl -s '{url}/v1/items/{item_id}/related?limit=5'",
    )


def _quality(figures: Figures) -> Table:
    users = max((line[3] for line in figures.quality), default=0)
    drawn = Table(
        title=f"Judged on {users:,} users, features frozen at the cut", title_style="bold", title_justify="left"
    )
    for name in ("model", "HR@10", "NDCG@10"):
        drawn.add_column(name)
    for model, hit_ratio, ndcg, _ in figures.quality:
        drawn.add_row(model, f"{hit_ratio:.3f}", f"{ndcg:.3f}")
    return drawn


def _speeds(figures: Figures) -> Table:
    drawn = Table("what", "measured", title="Measured on this machine", title_style="bold", title_justify="left")
    drawn.add_row("events through all four consumers", f"{figures.events:,} at {figures.events_per_s:,.0f} per s")
    drawn.add_row("training and judging", f"{figures.training_s:.1f} s")
    drawn.add_row("from a click to the changed list", f"{figures.click_to_list_ms:.0f} ms")
    if figures.newborn_ms is not None:
        drawn.add_row("from a new item to a list that has it", f"{figures.newborn_ms:.0f} ms")
    drawn.add_row("one list over HTTP", f"{figures.ask_ms:.1f} ms")
    drawn.add_row("the demo so far", f"{figures.demo_s:.0f} s")
    now_mb = sum(figures.memory_mb.values())
    drawn.add_row("memory of all processes (PSS)", f"{now_mb:,.0f} MB now, {figures.peak_memory_mb:,.0f} MB at most")
    return drawn


def _short(title: str) -> str:
    return title if len(title) <= TITLE_LENGTH else title[: TITLE_LENGTH - 1] + "…"
