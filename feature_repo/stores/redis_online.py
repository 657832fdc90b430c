"""Feast's online store on Redis, one server or a Cluster: one key per row, compare-and-set on the row time by Lua.

    <prefix>:<view>:<entity id>      8 bytes row time in µs (big-endian), then the packed features

Each row is written whole or not at all. On a Cluster a script touches one key, so it runs on whichever node holds it;
one server takes 50 rows by a call. Scripts travel with the call (EVAL, 250 bytes beside rows of 1.6 KB): one that was
restarted, failed over or flushed its scripts needs nothing from us, where EVALSHA would need a second round trip and a
way to answer half a pipeline anew.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import redis
from feast.infra.online_stores.online_store import OnlineStore
from feast.repo_config import FeastConfigBaseModel
from pydantic import Field
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import RedisClusterException
from redis.retry import Retry

from feature_repo.stores.faults import StoreDown
from feature_repo.stores.rows import Read, Row, key_of, moment_of, pack_values, stored_name, unpack_values, us_of

AWAY = (redis.RedisError, RedisClusterException, OSError)
CLUSTER = "+cluster"
_TIME = struct.Struct(">q")

IF_UNCHANGED = """
local done = {}
for i, key in ipairs(KEYS) do
    local is_so = redis.call('GETRANGE', key, 0, 7) == ARGV[2 * i - 1]
    if is_so then redis.call('SET', key, ARGV[2 * i]) end
    done[i] = is_so and 1 or 0
end
return done
"""
UNLESS_NEWER = """
local done = {}
for i, key in ipairs(KEYS) do
    local held = redis.call('GETRANGE', key, 0, 7)
    local is_newer = held ~= '' and struct.unpack('>i8', held) > struct.unpack('>i8', ARGV[i])
    if not is_newer then redis.call('SET', key, ARGV[i]) end
    done[i] = is_newer and 0 or 1
end
return done
"""
ROWS_PER_CALL = 50
"""Rows of one script: a call costs our client as much as packing a row; the server runs 50 in half a millisecond."""


class RedisOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """`url`: redis://, rediss:// (TLS), unix://; redis+cluster:// or rediss+cluster:// for a Cluster. `key_prefix`
    stands before every key. `batch_rows_max`: rows of one pipeline. `renamed`: under which name the rows of a view are
    kept, where it is not its own."""

    type: str = "feature_repo.stores.redis_online.RedisOnlineStore"
    url: str
    key_prefix: str = "freshrank"
    read_wait_ms: int = 200
    write_wait_ms: int = 5000
    renamed: dict[str, str] = Field(default_factory=dict)
    batch_rows_max: int = 500
    connections_max: int = 64
    vector_enabled: bool = False


class RedisOnlineStore(OnlineStore):  # type: ignore[misc]
    """Rows in Redis. Nothing is connected before the first call; threads share the clients."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clients: dict[str, Any] = {}

    def online_read(
        self, config: Any, table: Any, entity_keys: Sequence[Any], requested_features: Sequence[str] | None = None
    ) -> list[Read]:
        """The newest row of each key, in the order asked; `(None, None)` for one that has none."""
        rows = self.read_packed(config, table, entity_keys)
        return [
            (moment_of(row[0]), unpack_values(row[1], table, requested_features)) if row else (None, None)
            for row in rows
        ]

    def read_packed(self, config: Any, table: Any, entity_keys: Sequence[Any]) -> list[tuple[int, bytes] | None]:
        """The newest row of each key as it is stored: row time in µs and the packed features; None where there is
        none."""
        keys = [_key(config, table, key) for key in entity_keys]
        rows: list[bytes | None] = []
        try:
            client = self._client(config, "reads", config.online_store.read_wait_ms)
            if len(keys) == 1:
                rows.append(client.get(keys[0]))
            else:
                for some in _pieces(keys, config.online_store.batch_rows_max):
                    with client.pipeline(transaction=False) as pipeline:
                        for key in some:
                            pipeline.get(key)
                        rows += pipeline.execute()
        except AWAY as error:
            raise _down("read", error) from error
        return [(_TIME.unpack_from(row)[0], row[8:]) if row else None for row in rows]

    def online_write_batch(
        self, config: Any, table: Any, data: Sequence[Row], progress: Callable[[int], Any] | None
    ) -> None:
        """Write the rows; one that is older than what is stored is passed over."""
        calls = [(_key(config, table, key), _TIME.pack(us_of(at)) + pack_values(values)) for key, values, at, _ in data]
        self._evaluated(config, UNLESS_NEWER, calls)
        if progress:
            progress(len(calls))

    def write_if_unchanged(
        self, config: Any, table: Any, data: Sequence[tuple[Any, bytes, int]], expected_us: Sequence[int]
    ) -> tuple[int, ...]:
        """Write each row (entity key, packed features, row time in µs) whose stored row time is what is expected
        (0: there is none); the places of those refused. As durable on return as the server is; each row by itself."""
        calls = [
            (_key(config, table, key), _TIME.pack(expected) if expected else b"", _TIME.pack(at_us) + features)
            for (key, features, at_us), expected in zip(data, expected_us, strict=True)
        ]
        written = self._evaluated(config, IF_UNCHANGED, calls)
        return tuple(place for place, done in enumerate(written) if not done)

    def user_ids(self, config: Any, table: Any) -> Iterator[str]:
        """The id of every row, for views whose key is one text; one may come twice."""
        prefix = _prefix(config, table)
        try:
            client = self._client(config, "writes", config.online_store.write_wait_ms)
            for key in client.scan_iter(match=prefix + b"*", count=1000):
                yield key[len(prefix) :].decode()
        except AWAY as error:
            raise _down("read", error) from error

    def what_it_may_lose(self, config: Any) -> tuple[str, ...]:
        """Why rows that were written may be gone later, a phrase each; empty where they may not."""
        try:
            client = self._client(config, "writes", config.online_store.write_wait_ms)
            answers = [_info(client, section) for section in ("persistence", "memory")]
        except AWAY as error:
            raise _down("asked how it keeps rows", error) from error
        said: dict[str, None] = {}
        for persistence, memory in zip(*answers, strict=True):
            if int(persistence.get("aof_enabled", 0)) != 1:
                said["appendonly is off, so a restart loses rows (set appendonly yes)"] = None
            policy = memory.get("maxmemory_policy", "unknown")
            if policy != "noeviction":
                said[f"maxmemory-policy is {policy}, so a full memory loses rows (set noeviction)"] = None
        return tuple(said)

    def update(
        self,
        config: Any,
        tables_to_delete: Sequence[Any],
        tables_to_keep: Sequence[Any],  # noqa: ARG002
        entities_to_delete: Sequence[Any],  # noqa: ARG002
        entities_to_keep: Sequence[Any],  # noqa: ARG002
        partial: bool,  # noqa: ARG002
    ) -> None:
        """Delete the rows of views that are gone; a view that is applied needs nothing made."""
        for view in tables_to_delete:
            self.forget(config, view)

    def teardown(self, config: Any, tables: Sequence[Any], entities: Sequence[Any]) -> None:  # noqa: ARG002
        """Delete the rows."""
        self.update(config, tables, (), (), (), partial=False)

    def forget(self, config: Any, view: Any) -> int:
        """Delete every row of a view; how many there were."""
        count = 0
        try:
            client = self._client(config, "writes", config.online_store.write_wait_ms)
            found = client.scan_iter(match=_prefix(config, view) + b"*", count=1000)
            for some in _pieces(found, config.online_store.batch_rows_max):
                with client.pipeline(transaction=False) as pipeline:
                    for key in some:
                        pipeline.unlink(key)
                    count += sum(pipeline.execute())
        except AWAY as error:
            raise _down("cleared", error) from error
        return count

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()

    # ------------------------------------------------------------------------------------------ inside

    def _evaluated(self, config: Any, script: str, calls: Sequence[tuple[bytes, ...]]) -> list[int]:
        answers: list[int] = []
        try:
            client = self._client(config, "writes", config.online_store.write_wait_ms)
            for some in _pieces(calls, config.online_store.batch_rows_max):
                with client.pipeline(transaction=False) as pipeline:
                    for rows in _pieces(some, 1 if isinstance(client, RedisCluster) else ROWS_PER_CALL):
                        keys = [key for key, *_ in rows]
                        given = chain.from_iterable(values for _, *values in rows)
                        pipeline.execute_command("EVAL", script, len(keys), *keys, *given)  # a Cluster's has no eval()
                    answers += chain.from_iterable(pipeline.execute())
        except AWAY as error:
            raise _down("written", error) from error
        return answers

    def _client(self, config: Any, use: str, wait_ms: int) -> Any:
        """One client per use, each with its own deadline for every answer. A connection that turns out to be closed is
        opened once more; what ran out of time is not tried again."""
        client = self._clients.get(use)
        if client is not None:
            return client
        if not self._lock.acquire(timeout=wait_ms / 1000):  # somebody is looking for the nodes of a Cluster
            raise StoreDown("Redis cannot be reached: the first connection is still being made")
        try:
            return self._clients.get(use) or self._clients.setdefault(use, _connected(config, wait_ms / 1000))
        finally:
            self._lock.release()


def _connected(config: Any, wait_s: float) -> Any:
    options: dict[str, Any] = {
        "socket_timeout": wait_s,
        "socket_connect_timeout": wait_s,
        "retry": Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        "max_connections": config.online_store.connections_max,
    }
    url = str(config.online_store.url)
    scheme, _, rest = url.partition("://")
    try:
        if scheme.endswith(CLUSTER):
            return RedisCluster.from_url(f"{scheme.removesuffix(CLUSTER)}://{rest}", **options)
        return redis.Redis.from_url(url, **options)
    except ValueError as error:  # says what is wrong with the address, not the address: it may hold a password
        raise StoreDown(f"Redis cannot be reached at the address given: {error}") from None


def _info(client: Any, section: str) -> list[dict[str, Any]]:
    """INFO of every primary: managed servers allow it where they hide CONFIG."""
    if isinstance(client, RedisCluster):
        nodes: Any = client.get_primaries()  # type: ignore[no-untyped-call]
        whole: Any = client.info
        return [whole(section, target_nodes=node) for node in nodes]
    return [client.info(section)]


def _prefix(config: Any, view: Any) -> bytes:
    return f"{config.online_store.key_prefix}:{stored_name(config, view)}:".encode()


def _key(config: Any, view: Any, entity_key: Any) -> bytes:
    """The id itself where the key is one text, Feast's serialised key otherwise."""
    values = entity_key.entity_values
    if len(values) == 1 and values[0].WhichOneof("val") == "string_val":
        return _prefix(config, view) + str(values[0].string_val).encode()
    return _prefix(config, view) + key_of(config, entity_key)


def _pieces(things: Any, length: int) -> Iterator[list[Any]]:
    held: list[Any] = []
    for each in things:
        held.append(each)
        if len(held) == length:
            yield held
            held = []
    if held:
        yield held


def _down(what: str, error: Exception) -> StoreDown:
    return StoreDown(f"Redis cannot be {what}: {error}")
