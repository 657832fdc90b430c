"""How Feast is imported, and how its repository is opened for one home."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import Engine

from feature_repo.stores.parts_io import locked
from services.features.namespaces import DEFAULT
from services.features.places import registry_url, renamed_views, sqlite_online

REPO = Path(__file__).parents[2] / "feature_repo"
REGISTRY_WAIT_MS = 15_000
REGISTRY_LOCK_S = 60.0
"""How long processes of a home that start together stand in line for its registry."""
LOCK_NUMBER = 7_303_015
"""Names the registry's advisory lock in PostgreSQL."""
METRICS_FOLDERS = ("PROMETHEUS_MULTIPROCESS_DIR", "PROMETHEUS_MULTIPROC_DIR")
SERVERS = ("feast.feature_server", "feast.ui_server")
"""What Feast would serve by itself: a tenth of its import, and only `feast serve` wants it."""


def import_feast() -> ModuleType:
    """Import Feast in a quarter of the time: no type checks compiled into it, no torch (which it only probes for), its
    servers only when they are asked for something.

    What it sets for everybody (warning filters, torch made absent, typeguard, Prometheus over several processes) is
    put back afterwards.
    """
    if "feast" in sys.modules:
        return sys.modules["feast"]
    import typeguard

    importlib.import_module("prometheus_client")  # chooses its mode when imported: before Feast sets one
    checked = typeguard.typechecked
    folders = [name for name in METRICS_FOLDERS if name not in os.environ]
    os.environ.update(dict.fromkeys(folders, ""))
    torch_blocked = "torch" not in sys.modules
    with warnings.catch_warnings():
        typeguard.typechecked = _unchecked
        if torch_blocked:
            sys.modules["torch"] = None  # type: ignore[assignment]
        try:
            sys.modules.update({name: _Later(name) for name in SERVERS})
            feast = importlib.import_module("feast")
            for name in ("feast.infra.registry.sql", "feast.infra.passthrough_provider"):
                importlib.import_module(name)
        finally:
            typeguard.typechecked = checked
            for name in folders:
                del os.environ[name]
            if torch_blocked:
                del sys.modules["torch"]
    return feast


class _Later(ModuleType):
    """Stands for a module until something of it is asked for. (The standard library's `LazyLoader` reads the module
    when another one imports it.)"""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def open_feast(
    home: Path,
    read_wait_ms: int = 200,
    write_wait_ms: int = 5000,
    threads: int = 2,
    memory_limit: str = "2GB",
    online: Mapping[str, Any] | None = None,
    database: Engine | None = None,
    namespace: str = DEFAULT,
) -> Any:
    """The `feast.FeatureStore` of the repository with its state under `home`, registered. One per process.

    `threads` and `memory_limit` bound a point-in-time join. `online`: as `sqlite_online` or `redis_online` give it.
    `database`: a PostgreSQL that holds the registry. `namespace`: which user rows; all views of items are the same in
    every one.
    """
    feast = import_feast()
    text = (REPO / "feature_store.yaml").read_text().replace("${FRESHRANK_HOME}", str(home))
    given: dict[str, Any] = importlib.import_module("yaml").safe_load(text)
    waits = {"read_wait_ms": read_wait_ms, "write_wait_ms": write_wait_ms}
    renamed = {"renamed": renamed_views(namespace)}
    given["online_store"] = {**(online or sqlite_online(home)), **waits, **renamed}
    given["registry"] |= _registry(home, database)
    given["offline_store"] |= {"threads": threads, "memory_limit": memory_limit, **renamed}
    home.mkdir(parents=True, exist_ok=True)
    config = importlib.import_module("feast.repo_config").RepoConfig(**given)
    config.repo_path = REPO
    store = feast.FeatureStore(config=config)
    with _alone(home, database):  # processes that start together make the registry and apply one after the other
        apply_repo(store)
        if namespace != DEFAULT:
            from feature_repo.definitions import user_behaviour

            store.provider.online_store.update(config, (), (user_behaviour,), (), (), partial=True)
    return store


def _registry(home: Path, database: Engine | None) -> dict[str, Any]:
    """Where the registry is: a file in the home, or the PostgreSQL that holds the metadata, with the same deadlines."""
    if database is None:
        return {"path": registry_url(home)}
    waits = " ".join(f"-c {name}={REGISTRY_WAIT_MS}" for name in ("statement_timeout", "lock_timeout"))
    connect = {"connect_timeout": REGISTRY_WAIT_MS // 1000, "options": waits}
    options = {"pool_pre_ping": True, "hide_parameters": True, "connect_args": connect}
    return {"path": database.url.render_as_string(hide_password=False), "sqlalchemy_config_kwargs": options}


def drop_registry(database: Engine) -> None:
    """Remove Feast's tables from the database that holds the metadata."""
    import_feast()
    importlib.import_module("feast.infra.registry.sql").metadata.drop_all(database)


@contextmanager
def _alone(home: Path, database: Engine | None) -> Iterator[None]:
    """One process at a time: of this home, or of all machines that share the registry."""
    if database is not None:
        from services.postgresql import alone

        with alone(database, LOCK_NUMBER):
            yield
        return
    with locked(home / ".registry.lock", REGISTRY_LOCK_S):
        yield


def apply_repo(store: Any) -> bool:
    """Register the definitions where the registry does not hold exactly them; whether it had to."""
    from feature_repo import definitions as d

    views, services = (d.user_behaviour, d.item_stats, d.item_live), (d.retrieval_v1, d.ranking_v1)
    known = {view.name: view for view in store.list_feature_views()}
    known_services = {service.name for service in store.list_feature_services()}
    if all(known.get(view.name) == view for view in views) and known_services >= {s.name for s in services}:
        return False
    store.apply([d.user, d.item, *views, *services])
    return True


def _unchecked(target: Any = None, **_options: Any) -> Any:
    return target if target is not None else (lambda decorated: decorated)
