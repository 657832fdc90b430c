"""Text vectors of item cards: a thread embeds what is waiting, newest first, and writes it to the change feed.

The queue is the `items` table itself: a card waits while the text it was last embedded from, and the encoder, are not
today's. So a restart loses nothing, and another encoder embeds everything anew, but for what the feed has of it already
(a training run that tuned it has written its vectors there; after a rollback those of before are there still).
"""

from __future__ import annotations

import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
import structlog
from sqlalchemy import ColumnElement, Engine, and_, func, literal, select, update
from sqlalchemy.exc import OperationalError

from models.text import TextEncoder
from services.catalogue.cards import LOCK, WriteParts, card_of, card_text
from services.catalogue.live import encoder_tag
from services.domain import from_us
from services.freshness import arrived
from services.item_parts import Payload, VectorPart
from services.tables import among, items, items_live, next_number
from services.telemetry import TEXT_QUEUE

CACHE_MAX = 4096
AHEAD_MAX = 2048
"""Cards read ahead from the queue; a card that comes meanwhile ends the round after the running batch."""
WINDOW = 8
"""Batches that share their texts by length: a batch takes as long as its longest text. The newest are still among
the first."""
IDLE_S = 5.0
FOLLOW_S = 0.5
NICE = 10
"""A backlog of texts is minutes of arithmetic: events that come meanwhile go first. On Linux a thread has a
niceness of its own."""
RETRY_S = 2.0
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Waiting:
    item_id: str
    text: str
    text_hash: str
    accepted_us: int
    is_news: bool


class TextVectors:
    """Embeds waiting cards. `open` starts its thread, `close` ends it after the running batch. `follow` says which
    encoder is in effect; it is asked before every round."""

    def __init__(
        self,
        engine: Engine,
        encoder: TextEncoder,
        write_parts: WriteParts,
        batch_max: int = 64,
        retry_s: float = RETRY_S,
        follow: Callable[[], TextEncoder] | None = None,
    ) -> None:
        self._engine = engine
        self._encoder = encoder
        self._follow = follow
        self._write_parts = write_parts
        self._batch_max = batch_max
        self._retry_s = retry_s
        self._tag = encoder_tag(encoder.name)
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._woken = threading.Event()
        self._closing = threading.Event()
        self._one_round = threading.Lock()
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Start the thread; harmless when it runs."""
        if self._thread is None:
            self._closing.clear()
            self._thread = threading.Thread(target=self._work, name="text-vectors", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread after its batch; what waits still waits."""
        self._closing.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wake(self) -> None:
        """Cards have changed."""
        self._woken.set()

    def pending(self) -> int:
        """How many cards wait for their vector."""
        self._look()
        with self._engine.connect() as connection:
            return int(connection.execute(select(func.count()).select_from(items).where(self._waits())).scalar_one())

    def drain(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Embed everything that waits, here and now; `progress` gets (done, total). Returns how many were embedded."""
        done, total = 0, self.pending()

        def batch_done(size: int) -> bool:
            nonlocal done
            done += size
            if progress:
                progress(min(done, total), total)
            return True

        while self._round(batch_done):
            pass
        return done

    # ------------------------------------------------------------------------------------------- inside

    def _work(self) -> None:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while not self._closing.is_set():
            self._woken.clear()
            try:
                if not self._round(self._undisturbed):
                    TEXT_QUEUE.set(0)
                    self._idle()
            except OperationalError as error:
                _log.warning("text_vectors_wait", error=str(error.orig))
                self._closing.wait(self._retry_s)
            except Exception:  # the thread outlives a failing encoder: cards wait, and it tries again
                _log.exception("text_vectors_failed", encoder=self._encoder.name)
                self._closing.wait(self._retry_s)

    def _idle(self) -> None:
        """Until there is something to do, IDLE_S at most."""
        for _ in range(round(IDLE_S / FOLLOW_S)):
            if self._woken.wait(FOLLOW_S) or self._look():
                return

    def _look(self) -> bool:
        """Take the encoder that is in effect; whether it is another one."""
        encoder = self._follow() if self._follow else self._encoder
        if encoder.name == self._encoder.name:
            return False
        with self._one_round:
            self._encoder, self._tag = encoder, encoder_tag(encoder.name)
            self._cache.clear()
        return True

    def _undisturbed(self, _size: int) -> bool:
        return not self._closing.is_set() and not self._woken.is_set()

    def _round(self, go_on: Callable[[int], bool]) -> int:
        """Embed what is read ahead in batches, while `go_on(size of the batch)` says so; returns how many were."""
        self._look()
        with self._one_round:
            waiting = _of_like_length(self._next(), WINDOW * self._batch_max)
            TEXT_QUEUE.set(len(waiting))
            done = 0
            for start in range(0, len(waiting), self._batch_max):
                batch = waiting[start : start + self._batch_max]
                there = self._there(batch)
                wanted = [each for each in batch if each.item_id not in there]
                self._store(batch, wanted, self._embedded(wanted))
                done += len(batch)
                if not go_on(len(batch)):
                    break
            return done

    def _next(self) -> list[_Waiting]:
        query = select(
            items.c.item_id, items.c.card, items.c.text_hash, items.c.vector_hash, items.c.accepted_us
        ).where(self._waits())
        query = query.order_by(items.c.accepted_us.desc(), items.c.item_id).limit(AHEAD_MAX)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [
            _Waiting(
                r.item_id, card_text(card_of(r.item_id, r.card)), r.text_hash, r.accepted_us,
                not r.vector_hash.endswith(r.text_hash),  # else only the encoder is another one
            )
            for r in rows
        ]  # fmt: skip

    def _there(self, batch: Sequence[_Waiting]) -> set[str]:
        """The items that have the vector of today's text in the feed; only another encoder makes that likely."""
        texts = {each.item_id: each.text_hash for each in batch if not each.is_news}
        if not texts:
            return set()
        t = items_live.c
        with self._engine.connect() as connection:
            mine = select(items_live).where(t.part == f"vector.{self._tag}", among(connection, t.item_id, list(texts)))
            rows = connection.execute(mine).all()
        return {r.item_id for r in rows if _text_hash(r.payload) == texts[r.item_id]}

    def _embedded(self, batch: Sequence[_Waiting]) -> list[bytes]:
        """The vector of each card as float16 bytes; equal texts are embedded once."""
        unknown = {each.text_hash: each.text for each in batch if each.text_hash not in self._cache}
        if unknown:
            vectors = self._encoder.embed(list(unknown.values()))
            assert vectors.shape == (len(unknown), self._encoder.width), f"{vectors.shape} for {len(unknown)} texts"
            self._cache |= {h: vector.astype("<f2").tobytes() for h, vector in zip(unknown, vectors, strict=True)}
        found = [self._cache[each.text_hash] for each in batch]
        while len(self._cache) > CACHE_MAX:
            self._cache.popitem(last=False)
        return found

    def _store(self, batch: Sequence[_Waiting], wanted: Sequence[_Waiting], vectors: Sequence[bytes]) -> None:
        """Write the wanted vectors whose card still has the text that was embedded; those of the batch that were there
        before wait no longer."""
        with self._engine.begin() as connection:
            next_number(connection, LOCK)  # the writer of the cards stands in the same line: no card changes meanwhile
            ids = [each.item_id for each in batch]
            texts = {
                r.item_id: r.text_hash
                for r in connection.execute(_hashes.where(among(connection, items.c.item_id, ids)))
            }
            parts: list[tuple[str, Payload]] = []
            moments: list[tuple[datetime, bool]] = []
            for each, vector in zip(wanted, vectors, strict=True):
                if texts.get(each.item_id) == each.text_hash:
                    parts.append((each.item_id, VectorPart(self._encoder.name, vector, each.text_hash)))
                    moments += [(from_us(each.accepted_us), True)] * each.is_news
            if parts:
                self._write_parts(connection, parts, arrived("vector", moments))
            done = [each.item_id for each in batch if texts.get(each.item_id) == each.text_hash]
            if done:
                current = among(connection, items.c.item_id, done)
                connection.execute(update(items).where(current).values(vector_hash=self._wanted()))

    def _waits(self) -> ColumnElement[bool]:
        return and_(items.c.text_hash != "", items.c.vector_hash != self._wanted())

    def _wanted(self) -> ColumnElement[str]:
        return literal(self._tag) + items.c.text_hash


def _of_like_length(waiting: Sequence[_Waiting], window: int) -> list[_Waiting]:
    """The same cards, so many at a time by the length of their text."""
    return [
        each
        for start in range(0, len(waiting), window)
        for each in sorted(waiting[start : start + window], key=lambda each: len(each.text))
    ]


def _text_hash(payload: bytes) -> str:
    return msgspec.msgpack.decode(payload, type=VectorPart).text_hash


_hashes = select(items.c.item_id, items.c.text_hash)
