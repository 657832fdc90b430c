"""Where Feast keeps what: its online store, its registry, and the names under which views are kept."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.features.namespaces import DEFAULT
from services.settings import Settings

USERS = "user_behaviour"


def online_config(settings: Settings) -> dict[str, Any]:
    """The online store that the settings choose, as Feast is told of it."""
    s = settings
    if s.online_store == "redis":
        return redis_online(s.redis_url, s.redis_key_prefix, s.redis_batch_max, s.redis_connections_max)
    return sqlite_online(s.home)


def renamed_views(namespace: str) -> dict[str, str]:
    """Under which names views are kept in a namespace: the online rows and the history of users have their own."""
    return {} if namespace == DEFAULT else {USERS: f"{USERS}@{namespace}"}


def registry_url(home: Path, database_url: str = "") -> str:
    """The registry's database as Feast wants it named."""
    if not database_url:
        return f"sqlite:///{home / 'registry.db'}"
    from services.postgresql import parsed

    return parsed(database_url).render_as_string(hide_password=False)


def sqlite_online(home: Path) -> dict[str, Any]:
    """User rows in a file of the home."""
    return {"type": "feature_repo.stores.sqlite_online.SqliteOnlineStore", "path": str(home / "online.db")}


def redis_online(url: str, key_prefix: str, batch_rows_max: int = 500, connections_max: int = 64) -> dict[str, Any]:
    """User rows in Redis."""
    return {
        "type": "feature_repo.stores.redis_online.RedisOnlineStore", "url": url, "key_prefix": key_prefix,
        "batch_rows_max": batch_rows_max, "connections_max": connections_max,
    }  # fmt: skip


def feast_environment(
    home: Path, online: Mapping[str, Any] | None = None, database_url: str = "", namespace: str = DEFAULT
) -> dict[str, str]:
    """The environment in which the `feast` command works on the repository (its folder is `REPO`)."""
    renamed = renamed_views(namespace)
    given = {
        "FRESHRANK_HOME": str(home),
        "FEAST_ONLINE_STORE": json.dumps({**(online or sqlite_online(home)), "renamed": renamed}),  # JSON is YAML
        "FEAST_REGISTRY": registry_url(home, database_url),
        "FEAST_RENAMED": json.dumps(renamed),
    }
    return {**os.environ, **given}
