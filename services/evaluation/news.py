"""The news model on shown lists: items become titles, users what they have read, lists what the model learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.batches import Progress
from models.text import EncoderMissing, minilm_folder
from services.catalogue.cards import card_text
from services.domain import SECOND_US, ItemCard
from services.evaluation.baselines import Scores
from services.evaluation.files import Item
from services.evaluation.learned import LISTS_MIN, Made, made_of, of_impressions, useful
from services.evaluation.shown import ShownLists
from services.training.columns import EventColumns

if TYPE_CHECKING:
    from models.news import NewsConfig, NewsLists, NewsModel
    from models.news_fit import FittedNews
    from models.titles import TitleBody, TitleReader, Titles
    from services.evaluation.run import Means

LISTS_MAX = {"demo": 20_000, "normal": 150_000, "full": 1_000_000}
Embed = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Taught:
    """What a news model learns from, what that is in words, and whether these lists were shown."""

    lists: NewsLists
    told: str
    shown: bool


class News:
    """News models of several seeds over the same titles and lists. `embed` makes text vectors where a pretrained
    transformer stays as it is; `learned` are real lists, if there are any."""

    def __init__(
        self,
        events: EventColumns,
        items: Sequence[Item],
        lists: tuple[ShownLists, ShownLists | None],
        means: Means,
        embed: Embed,
        progress: Progress,
    ) -> None:
        from models.news import NewsConfig

        judged, learned = lists
        self.config = means.news or NewsConfig(effort=means.effort)
        self._means, self._progress = means, progress
        self._read = _Read(events, self.config.history)
        taught = _taught(events, items, learned, self._read, self.config)
        asked = self._read.lists(judged)
        parts = (taught.lists.history_rows, taught.lists.rows, asked.history_rows, asked.rows)
        used = np.unique(np.concatenate([each.ravel() for each in parts]))
        used = used[used > 0].astype(np.int64)
        rows = np.zeros(len(events.item_ids) + 1, dtype=np.int32)
        rows[used] = np.arange(1, len(used) + 1)
        self._rows = rows
        self._taught = _renamed(taught.lists, rows)
        self._texts = _texts(items, [events.item_ids[row - 1] for row in used.tolist()])
        self._opened = _Opened(means, self._texts, embed)
        self.told, self.shown = taught.told, taught.shown
        self._titles: Titles | None = None

    def fitted(self, seed: int) -> FittedNews:
        """A model of one seed."""
        import torch

        from models.news_fit import fit_news

        torch.set_num_threads(self._means.threads or torch.get_num_threads())
        config = replace(self.config, seed=seed)
        reader, body, width = self._opened.reader_and_body(self._taught, config)
        if self._titles is None:
            count = len(self._texts)
            self._titles = reader.read(self._texts, lambda done: self._progress(done, count, "reading titles"))
        return fit_news(self._taught, self._titles, reader, body, width, config, self._progress, self._means.device)

    def scores(self, model: NewsModel, shown: ShownLists) -> Scores:
        """The chance of a click of every item that some lists show, of those that the judged lists show. float64 [M]"""
        assert self._titles is not None, "asked before anything was fitted"
        vectors = model.vectors(self._titles, self._progress)
        logits = model.scores(vectors, _renamed(self._read.lists(shown), self._rows), self._progress)
        return 1.0 / (1.0 + np.exp(-np.clip(logits.astype(np.float64), -50, 50)))

    @property
    def setting(self) -> str:
        """How the model was set, in words."""
        return f"effort {self.config.effort}, {self._opened.told}; {self.told}"


class _Read:
    """What each user had read by a time: rows of titles (item code + 1) of their positive events."""

    def __init__(self, events: EventColumns, length: int) -> None:
        liked = np.flatnonzero(events.positive)
        order = liked[np.argsort(events.user_codes[liked], kind="stable")]
        self._rows = events.item_codes[order].astype(np.int64) + 1
        self._times = events.occurred_us[order]
        self._offsets = np.searchsorted(events.user_codes[order], np.arange(len(events.user_ids) + 1))
        self._place = np.zeros(len(events), dtype=np.int64)
        self._place[order] = np.arange(len(order))
        self._length = length

    def before(self, users: NDArray[np.int64], times_us: NDArray[np.int64]) -> NDArray[np.int32]:
        """Strictly before a time. [n, length]"""
        starts, stops = self._offsets[users], self._offsets[users + 1]
        pairs = zip(starts.tolist(), stops.tolist(), times_us.tolist(), strict=True)
        ends = [a + int(np.searchsorted(self._times[a:b], until)) for a, b, until in pairs]
        return self._newest(starts, np.array(ends, dtype=np.int64))

    def before_events(self, users: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int32]:
        """Before some positive events, as the file stands where times are equal. [n, length]"""
        return self._newest(self._offsets[users], self._place[places])

    def lists(self, shown: ShownLists) -> NewsLists:
        """Shown lists with what their users had read."""
        from models.news import NewsLists

        history = self.before(shown.users, shown.time_us)
        rows = (shown.items + 1).astype(np.int32)
        return NewsLists(history, rows, shown.offsets, shown.clicked, shown.time_us // SECOND_US)

    def _newest(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int32]:
        places = ends[:, None] - np.arange(self._length, 0, -1)[None, :]
        real = places >= starts[:, None]
        found = self._rows[np.where(real, places, 0)] if len(self._rows) else np.zeros(places.shape, dtype=np.int64)
        return np.where(real, found, 0).astype(np.int32)


class _Opened:
    """Which transformer reads the titles, opened once: a pretrained one, learned from a depth on that the budget pays
    for, or a small one that learns from words."""

    def __init__(self, means: Means, texts: Sequence[str], embed: Embed) -> None:
        self._means, self._texts, self._embed = means, texts, embed
        self._pretrained: Any = None
        self.told = ""
        name = means.text_encoder
        source = minilm_folder() if name == "auto" else None if name in ("hashing", "tiny") else name
        self._source = None if source is None else str(source)

    def reader_and_body(self, lists: NewsLists, config: NewsConfig) -> tuple[TitleReader, TitleBody, int]:
        """The reader, a new body of the config's seed, and its width."""
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            return self._of_words(config) if self._source is None else self._of_pretrained(lists, config)

    def _of_words(self, config: NewsConfig) -> tuple[TitleReader, TitleBody, int]:
        from models.news import heads_of
        from models.titles import WordBody, WordReader

        reader = WordReader.fitted(self._texts)
        heads = heads_of(config.width)
        self.told = f"a transformer of {config.layers} layer(s) of its own over {len(reader.words):,} words"
        body = WordBody(reader.numbers_max, config.width, config.layers, heads, config.dropout)
        return reader, body, config.width

    def _of_pretrained(self, lists: NewsLists, config: NewsConfig) -> tuple[TitleReader, TitleBody, int]:
        from models.device import pick_device
        from models.news_fit import depth_affordable
        from models.titles import Pretrained, VectorBody, VectorReader

        assert self._source is not None
        try:
            pretrained = self._pretrained or Pretrained(self._source)
            self._pretrained = pretrained
            depth = depth_affordable(pretrained, lists, config, len(self._texts))
            if depth < pretrained.layers:
                self.told = f"{self._means.text_encoder}, the upper {pretrained.layers - depth} layer(s) learned"
                where = str(pick_device(self._means.device))
                return pretrained.reader(depth, where), pretrained.body(depth), pretrained.width
        except EncoderMissing:
            pass  # it cannot be cut, but it may still be used as it is
        self.told = f"text encoder {self._means.text_encoder}, frozen"
        reader = VectorReader(self._means.text_encoder, self._embed)
        width = self._embed(["a"]).shape[1]
        return reader, VectorBody(width), width


def _taught(
    events: EventColumns, items: Sequence[Item], learned: ShownLists | None, read: _Read, config: NewsConfig
) -> Taught:
    """Real lists where there are enough of them, of a file or of the events; otherwise lists made of the events."""
    most = LISTS_MAX[config.effort]
    for lists, of in ((learned, "the lists before"), (of_impressions(events), "the events' impressions")):
        some = None if lists is None else useful(lists)
        if some is not None and len(some) >= LISTS_MIN:
            some = some.take(np.arange(max(0, len(some) - most), len(some)))
            return Taught(read.lists(some), f"learned from {len(some):,} lists ({of})", True)
    code = {item_id: n for n, item_id in enumerate(events.item_ids)}
    published = [(each.published_us, code[each.item_id]) for each in items if each.published_us]
    made = _of_made(made_of(events, published, most, config.seed), events, read)
    told = f"learned from {len(made):,} lists made of the events: each click beside titles alive then, not shown"
    return Taught(made, told, False)


def _of_made(made: Made, events: EventColumns, read: _Read) -> NewsLists:
    """Made lists of readers who had read something; of all, where hardly anybody had."""
    from models.news import NewsLists

    users = events.user_codes[made.places].astype(np.int64)
    rows = np.concatenate([events.item_codes[made.places][:, None], made.beside], axis=1)
    kept = rows >= 0
    offsets = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int64)
    clicked = np.zeros(rows.shape, dtype=np.bool_)
    clicked[:, 0] = True
    history = read.before_events(users, made.places)
    asked_s = events.occurred_us[made.places] // SECOND_US
    lists = NewsLists(history, (rows[kept] + 1).astype(np.int32), offsets, clicked[kept], asked_s)
    readers = np.flatnonzero(history.any(axis=1))
    return lists.take(readers) if len(readers) >= LISTS_MIN else lists


def _renamed(lists: NewsLists, rows: NDArray[np.int32]) -> NewsLists:
    return replace(lists, history_rows=rows[lists.history_rows], rows=rows[lists.rows])


def _texts(items: Sequence[Item], item_ids: Sequence[str]) -> list[str]:
    by_id: Mapping[str, Item] = {item.item_id: item for item in items}
    known = [by_id.get(item_id) for item_id in item_ids]
    return ["" if e is None else card_text(ItemCard(e.item_id, e.title, e.text, e.categories)) for e in known]
