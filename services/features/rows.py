"""The sets of user rows as one process has them: which one is live, and what is open of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from services.features.namespaces import DEFAULT, Definition, Namespace, Namespaces

if TYPE_CHECKING:
    from services.features.store import FeastFeatureStore


class Rows:
    """Opens stores by the name of a namespace, each once. `wanted` is what makes rows by the settings of now."""

    def __init__(
        self, namespaces: Callable[[], Namespaces], open_feast: Callable[[str], Any], wanted: Definition
    ) -> None:
        self._namespaces = namespaces
        self._open_feast = open_feast
        self.wanted = wanted
        self._live: Namespace | None = None
        self._feasts: dict[str, Any] = {}
        self._stores: dict[str, FeastFeatureStore] = {}

    @property
    def namespaces(self) -> Namespaces:
        """The table of them."""
        return self._namespaces()

    def live(self) -> str:
        """Which rows are live, as far as this process has heard (`look`)."""
        return (self._live or self.look()).name

    def look(self) -> Namespace:
        """Ask which rows are live."""
        self._live = self.namespaces.live()
        return self._live

    def feast(self, name: str) -> Any:
        """The `feast.FeatureStore` with these user rows."""
        if name not in self._feasts:
            self._feasts[name] = self._open_feast(name)
        return self._feasts[name]

    def store(self, name: str) -> FeastFeatureStore:
        """These user rows."""
        from services.features.store import FeastFeatureStore

        if name not in self._stores:
            self._stores[name] = FeastFeatureStore(self.feast(name))
        return self._stores[name]

    def forget(self, name: str) -> None:
        """Delete these user rows, online and in the history."""
        self.store(name).forget_users()
        self._stores.pop(name).close()
        del self._feasts[name]

    def made_by(self, rows: Namespace) -> Definition:
        """What makes these rows of events: what was said when they were built. The first rows follow the settings."""
        return rows.definition or self.wanted

    def consumed_by(self, rows: Namespace) -> Definition:
        """The same for a consumer: while there are no others, the first rows are made as the settings say now."""
        if rows.name == DEFAULT and self.namespaces.record_default(self.wanted):
            return self.wanted
        return self.made_by(rows)

    def close(self) -> None:
        """Close every store."""
        while self._stores:
            self._stores.popitem()[1].close()
