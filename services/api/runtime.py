"""What the API needs of a running instance. `wiring` builds one; the API never opens or knows a store by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from services.bus.spool import Taken
from services.domain import Metric, Outgoing, PartHealth
from services.items import ItemTable
from services.ports import Catalogue, EventSink, FeatureStore, LogView, Quarantine, ReleaseRegistry
from services.recommend import Stages
from services.reports import Told
from services.settings import Settings


class Run(Protocol):
    """One training run as the registry remembers it; `ended_at` is None while it runs (or if it died)."""

    @property
    def run_id(self) -> str: ...

    @property
    def state(self) -> str: ...

    @property
    def effort(self) -> str: ...

    @property
    def started_at(self) -> datetime: ...

    @property
    def ended_at(self) -> datetime | None: ...

    @property
    def seconds(self) -> float: ...

    @property
    def release_id(self) -> str: ...

    @property
    def message(self) -> str: ...

    @property
    def metrics(self) -> tuple[Metric, ...]: ...


class Runtime(Protocol):
    """A running instance, as the API sees it. Everything here is called from many threads at once."""

    @property
    def settings(self) -> Settings: ...

    @property
    def sink(self) -> EventSink: ...

    def take(self, events: Sequence[Outgoing]) -> Taken:
        """Durable on return. StageUnavailable: nothing was taken, and it may be sent again."""

    @property
    def view(self) -> LogView: ...

    @property
    def features(self) -> FeatureStore: ...

    @property
    def items(self) -> ItemTable: ...

    @property
    def catalogue(self) -> Catalogue: ...

    @property
    def registry(self) -> ReleaseRegistry: ...

    @property
    def quarantine(self) -> Quarantine: ...

    def now(self) -> datetime:
        """The clock of this instance: the only one that the API reads."""

    def start(self) -> None:
        """Called once in the serving process, before the first request: load items and the live release."""

    def stop(self) -> None:
        """Called once, after the last request: flush what was recorded, end the threads."""

    def stages(self) -> Stages:
        """The stages that answer now; a request takes them once."""

    def parts(self) -> Mapping[str, PartHealth]:
        """How each part is. Quick: it is asked every second. Ready means that none is red."""

    def told(self) -> Told:
        """What all processes of the instance tell of themselves. Raises StageUnavailable."""

    def ages_s(self) -> Mapping[str, float]:
        """Seconds since the item table took in a change (`changed`) and since it was compared with its feed (`fed`)."""

    def waiting_s(self) -> Mapping[str, float]:
        """By consumer group: how long its oldest message not yet committed has waited, at least."""

    def runs(self, limit: int) -> Sequence[Run]:
        """Training runs, newest first."""
