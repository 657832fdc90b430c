"""The registry of releases and the log of training runs, in SQL."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
import structlog
from sqlalchemy import Connection, Engine, Row, and_, insert, select, update
from sqlalchemy.exc import IntegrityError

from services.domain import BadRequest, Metric, ReleaseInfo, Verdict, from_us, to_us
from services.tables import next_number, releases, runs

log = structlog.get_logger()
_LOCK = "releases_live"
HALF_WRITTEN = ".*.writing"
"""What a release is called until all of it is written."""
RunState = Literal["running", "done", "failed"]


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One training run; `ended_at` is None while it runs (or when its process died)."""

    run_id: str
    started_at: datetime
    ended_at: datetime | None
    state: RunState
    effort: str
    release_id: str
    message: str
    metrics: tuple[Metric, ...]
    seconds: float


class SqlRegistry:
    """A ReleaseRegistry over the tables `releases` and `runs`. Exactly one release is live once one was promoted.

    Paths are kept relative to `folder` and resolved when they are read, so a copy of the home speaks of its own
    releases. Nothing outside `folder` is ever removed.
    """

    def __init__(
        self,
        engine: Engine,
        now: Callable[[], datetime],
        folder: Path,
        confirm: Callable[[Connection], None] = lambda _connection: None,
    ) -> None:
        self._engine = engine
        self._now = now
        self._folder = folder
        self._confirm = confirm

    def fenced(self, confirm: Callable[[Connection], None]) -> SqlRegistry:
        """The same registry for the holder of a lease: `confirm` is asked within every publication and promotion, after
        its write, and what it raises undoes it."""
        return SqlRegistry(self._engine, self._now, self._folder, confirm)

    # ---------------------------------------------------------------------------------------- releases

    def publish(self, info: ReleaseInfo) -> None:
        """ReleaseRegistry."""
        row = {
            "release_id": info.release_id, "path": self._stored(info.path), "created_us": to_us(info.created_at),
            "data_until_us": to_us(info.data_until), "promoted_us": 0, "live": False,
            "reason": info.reason, "metrics": _packed(info.metrics),
        }  # fmt: skip
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(releases).values(row))
                self._confirm(connection)
        except IntegrityError:
            raise BadRequest(f"release {info.release_id} is published already") from None
        except Exception:  # without a row (the lease was lost, the database is away) nobody will ever ask for it
            self._remove(Path(info.path))
            raise

    def promote(self, release_id: str, verdict: Verdict | None = None) -> None:
        """ReleaseRegistry."""
        chosen: dict[str, Any] = {"live": True, "promoted_us": to_us(self._now())}
        if verdict is not None:
            chosen |= {"reason": verdict.reason, "metrics": _packed(verdict.metrics)}
        with self._engine.begin() as connection:
            next_number(connection, _LOCK)  # two promotions stand in line
            found = connection.execute(update(releases).where(releases.c.release_id == release_id).values(**chosen))
            if found.rowcount != 1:
                raise BadRequest(f"there is no release {release_id}")
            connection.execute(update(releases).where(releases.c.release_id != release_id).values(live=False))
            self._confirm(connection)

    def live(self) -> ReleaseInfo | None:
        """ReleaseRegistry."""
        with self._engine.connect() as connection:
            row = connection.execute(select(releases).where(releases.c.live)).first()
        return self._release(row) if row else None

    def all(self) -> Sequence[ReleaseInfo]:
        """ReleaseRegistry."""
        newest_first = select(releases).order_by(releases.c.created_us.desc(), releases.c.release_id.desc())
        with self._engine.connect() as connection:
            return [self._release(row) for row in connection.execute(newest_first)]

    def rollback(self) -> ReleaseInfo:
        """Make the release live that was live before this one; BadRequest when there was none."""
        with self._engine.begin() as connection:
            next_number(connection, _LOCK)
            live = connection.execute(select(releases).where(releases.c.live)).first()
            before = and_(releases.c.promoted_us > 0, releases.c.promoted_us < (live.promoted_us if live else 0))
            newest = select(releases).where(before).order_by(releases.c.promoted_us.desc())
            earlier = connection.execute(newest).first()
            if live is None or earlier is None:
                raise BadRequest("there is no earlier release to go back to")
            # A second rollback goes further back, and none comes back to the one that was left.
            connection.execute(update(releases).values(live=releases.c.release_id == earlier.release_id))
            left = update(releases).where(releases.c.release_id == live.release_id)
            connection.execute(left.values(promoted_us=0))
        return self._release(earlier)

    def prune(self, keep: int) -> tuple[str, ...]:
        """Forget releases beyond the newest `keep` and remove their folders, never the live one's or the one before
        it, and what runs that died have left half written; the ids removed. Nobody may be writing one."""
        everything = self.all()
        safe = {each.release_id for each in everything if each.live} | self._before_live()
        kept = safe | {each.release_id for each in everything[:keep]}
        gone = [each for each in everything if each.release_id not in kept]
        for each in gone:
            with self._engine.begin() as connection:  # the row first: nobody can promote what has no folder
                still = and_(releases.c.release_id == each.release_id, releases.c.live.is_(False))
                removed = connection.execute(releases.delete().where(still)).rowcount
            if removed:
                self._remove(Path(each.path))
        for path in self._folder.glob(HALF_WRITTEN):
            self._remove(path)
        return tuple(each.release_id for each in gone)

    def _before_live(self) -> set[str]:
        """The release that was promoted last before the live one, if there is one."""
        promoted = select(releases.c.release_id).where(releases.c.promoted_us > 0, releases.c.live.is_(False))
        with self._engine.connect() as connection:
            return set(connection.execute(promoted.order_by(releases.c.promoted_us.desc()).limit(1)).scalars())

    def _release(self, row: Row[Any]) -> ReleaseInfo:
        return ReleaseInfo(
            row.release_id, self._found(row.path), from_us(row.created_us), from_us(row.data_until_us),
            row.promoted_us > 0, row.live, row.reason, _unpacked(row.metrics),
        )  # fmt: skip

    def _stored(self, path: str) -> str:
        whole, folder = Path(path).resolve(), self._folder.resolve()
        return str(whole.relative_to(folder)) if whole.is_relative_to(folder) else path

    def _found(self, stored: str) -> str:
        """Where a release lies. An absolute path may name the home it was copied from: ours first."""
        path = Path(stored)
        if not path.is_absolute():
            return str(self._folder / path)
        own = self._folder / path.name
        return str(own) if own.exists() else stored

    def _remove(self, path: Path) -> None:
        whole, folder = path.resolve(), self._folder.resolve()
        if folder not in whole.parents:
            log.warning("release_folder_kept", path=str(path), why="it is not among the releases of this home")
            return
        shutil.rmtree(whole, ignore_errors=True)

    # -------------------------------------------------------------------------------------------- runs

    def start_run(self, run_id: str, started_at: datetime, effort: str) -> None:
        """Write down that a run has begun."""
        row = {
            "run_id": run_id, "started_us": to_us(started_at), "ended_us": 0, "state": "running", "effort": effort,
            "release_id": "", "message": "", "metrics": _packed(()), "seconds": 0.0,
        }  # fmt: skip
        with self._engine.begin() as connection:
            connection.execute(insert(runs).values(row))

    def end_run(self, run_id: str, ended_at: datetime, state: RunState, verdict: Verdict | None, message: str) -> None:
        """Write down how a run ended."""
        with self._engine.begin() as connection:
            connection.execute(
                update(runs)
                .where(runs.c.run_id == run_id)
                .values(
                    ended_us=to_us(ended_at),
                    state=state,
                    release_id=verdict.release_id if verdict else "",
                    message=message,
                    metrics=_packed(verdict.metrics if verdict else ()),
                    seconds=(to_us(ended_at) - runs.c.started_us) / 1e6,
                )
            )

    def runs(self, limit: int) -> Sequence[RunInfo]:
        """The newest runs, newest first."""
        newest_first = select(runs).order_by(runs.c.started_us.desc(), runs.c.run_id.desc()).limit(limit)
        with self._engine.connect() as connection:
            return [_run(row) for row in connection.execute(newest_first)]


def _run(row: Row[Any]) -> RunInfo:
    ended_at = from_us(row.ended_us) if row.ended_us else None
    return RunInfo(
        row.run_id, from_us(row.started_us), ended_at, row.state, row.effort, row.release_id, row.message,
        _unpacked(row.metrics), row.seconds,
    )  # fmt: skip


def _packed(metrics: tuple[Metric, ...]) -> bytes:
    return msgspec.json.encode(metrics)


def _unpacked(packed: bytes) -> tuple[Metric, ...]:
    return msgspec.json.decode(packed, type=tuple[Metric, ...])
