"""A lease in SQL: one holder at a time across processes and machines, for as long as it keeps renewing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import ColumnElement, Connection, Engine, and_, insert, or_, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from services.domain import BadRequest, StageUnavailable, from_us, to_us
from services.tables import leases

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to do one thing, named `name`. A holder that stops renewing loses it after `length`."""

    engine: Engine
    name: str
    holder: str
    now: Callable[[], datetime]
    length: timedelta = timedelta(seconds=60)

    def acquire(self) -> None:
        """Take it or renew it; BadRequest with the holder's name when somebody else has it."""
        now = self.now()
        free = and_(leases.c.name == self.name, or_(leases.c.holder == self.holder, leases.c.until_us <= to_us(now)))
        mine = {"holder": self.holder, "until_us": to_us(now + self.length)}
        with self.engine.begin() as connection:
            if connection.execute(update(leases).where(free).values(mine)).rowcount:
                return
        try:
            with self.engine.begin() as connection:
                connection.execute(insert(leases).values(name=self.name, **mine))
        except IntegrityError:
            with self.engine.connect() as connection:
                row = connection.execute(select(leases).where(leases.c.name == self.name)).first()
            who = f"by {row.holder} until {from_us(row.until_us):%H:%M:%S} UTC" if row else "elsewhere"
            raise BadRequest(f"{self.name} is running already, {who}") from None

    def renew(self) -> None:
        """Lengthen it. StageUnavailable once somebody else took it, even if that one has given it back since."""
        with self.engine.begin() as connection:
            kept = connection.execute(
                update(leases).where(self._ours()).values(until_us=to_us(self.now() + self.length))
            ).rowcount
        if not kept:
            raise self._lost()

    def confirm(self, connection: Connection) -> None:
        """Within a transaction: still ours? Nobody can take it before the commit (the row is locked, and SQLite's only
        lock is held by a transaction that has written already)."""
        if connection.execute(select(leases.c.holder).where(self._ours()).with_for_update()).first() is None:
            raise self._lost()

    def release(self) -> None:
        """Give it back, if it is still ours."""
        with self.engine.begin() as connection:
            connection.execute(leases.delete().where(self._ours()))

    def _ours(self) -> ColumnElement[bool]:
        return and_(leases.c.name == self.name, leases.c.holder == self.holder)

    def _lost(self) -> StageUnavailable:
        return StageUnavailable(f"the lease {self.name} was lost to another process")

    @contextmanager
    def held(self) -> Iterator[Callable[[], None]]:
        """Hold it for a block, renewed by a thread. Yields a check that raises StageUnavailable once it is lost."""
        self.acquire()
        done = threading.Event()
        lost = threading.Event()

        def renew() -> None:
            while not done.wait(self.length.total_seconds() / 3):
                try:
                    self.renew()
                except StageUnavailable:
                    lost.set()
                    return
                except SQLAlchemyError as error:  # a locked database: the next third may succeed
                    log.warning("lease not renewed", lease=self.name, error=str(error))

        def check() -> None:
            if lost.is_set():
                raise self._lost()

        thread = threading.Thread(target=renew, name=f"lease-{self.name}", daemon=True)
        thread.start()
        try:
            yield check
        finally:
            done.set()
            thread.join()
            self.release()
