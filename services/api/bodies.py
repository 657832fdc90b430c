"""Reading bodies of many records: one object, a list, an object that names the list, or NDJSON."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request

from services import document
from services.api.problems import Problem
from services.domain import Coordinate, Outgoing, Partition, StageUnavailable, WireError
from services.ports import LogView
from services.wire import BYTES_MAX

WAIT_STEP_S = 0.004
_UNESCAPED = ((b"\\\\", b"__"), (b"\\u0022", b'\\"'), (b"\\u003a", b":"), (b"\\u003A", b":"))
"""Escapes of which a text may be written in two ways that count differently; pairs of backslashes first, they hide."""


@dataclass(frozen=True, slots=True)
class Refused:
    """One record of a body that was not accepted, by its place in the body."""

    index: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Waited:
    """How a wait for a consumer ended."""

    group: str
    reached: bool
    milliseconds: float


def records(body: bytes, content_type: str, list_name: str, records_max: int) -> list[object]:
    """The records of a body, not yet checked; Problem when the body as a whole cannot be read.

    A record that cannot be read, or that names something twice, stays bytes and is refused by its index.
    """
    if not body.strip():
        raise Problem("bad-body", "the body is empty; send JSON, or one JSON object per line")
    is_lines = "ndjson" in content_type or "jsonl" in content_type or "json-seq" in content_type
    try:
        found = _lines(body) if is_lines else _document(body, list_name)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        fix = "send JSON, or one JSON object per line with Content-Type: application/x-ndjson"
        raise Problem("bad-body", f"the body is not JSON ({error}); {fix}") from None
    if isinstance(found, dict) and isinstance(found.get(list_name), list):
        found = found[list_name]
    if isinstance(found, dict | bytes):
        found = [found]
    if not isinstance(found, list):
        raise Problem(
            "bad-body", f"the body must be an object, a list of objects or NDJSON, not a {type(found).__name__}"
        )
    if len(found) > records_max:
        raise Problem("too-large", f"{len(found)} records, at most {records_max} (api_events_max) are taken at once")
    return found


def parse_each(
    found: Sequence[object], parse: Callable[[dict[str, object]], Outgoing]
) -> tuple[list[Outgoing], list[Refused]]:
    """The message of every record that can be read, and why the others cannot."""
    messages: list[Outgoing] = []
    refused: list[Refused] = []
    for index, record in enumerate(found):
        try:
            if isinstance(record, bytes):
                raise _fault(record)
            if not isinstance(record, dict):
                raise WireError("not_an_object", f"a JSON {type(record).__name__}")
            message = parse(record)
            if len(message.value) > BYTES_MAX:
                raise WireError("oversized", f"{len(message.value)} bytes, the limit is {BYTES_MAX}")
            messages.append(message)
        except WireError as error:
            refused.append(Refused(index, error.reason, error.detail))
    return messages, refused


async def check_json(request: Request) -> None:
    """A dependency of routes whose body the framework reads: loosely, of a name given twice it keeps the last value."""
    body, content_type = await body_of(request)
    if body and "json" not in content_type:
        given = f"Content-Type is {content_type}" if content_type else "there is no Content-Type"
        raise Problem("bad-body", f"{given}; send application/json")
    try:
        if body:
            document.check(body)
    except WireError as error:
        raise Problem("bad-body", error.detail, {"reason": error.reason}) from None


async def body_of(request: Request) -> tuple[bytes, str]:
    """The whole body (its size is limited by the edge) and its content type."""
    return await request.body(), request.headers.get("content-type", "").lower()


async def wait_for(view: LogView, group: str, coordinates: Sequence[Coordinate], wait_ms_max: int) -> Waited:
    """Wait until the group has committed all of these, at most `wait_ms_max`.

    These are in the log already: a log that cannot be asked just now ends the wait as not reached, never as an error.
    """
    started = time.perf_counter()
    wanted: dict[Partition, int] = {}
    for c in coordinates:
        place = Partition(c.topic, c.partition)
        wanted[place] = max(wanted.get(place, 0), c.offset + 1)
    topics = {place.topic for place in wanted}
    while True:
        reached = await run_in_threadpool(_reached, view, group, topics, wanted)
        waited_ms = (time.perf_counter() - started) * 1e3
        if reached or waited_ms >= wait_ms_max:
            return Waited(group, reached, round(waited_ms, 2))
        await asyncio.sleep(WAIT_STEP_S)


def _reached(view: LogView, group: str, topics: set[str], wanted: dict[Partition, int]) -> bool:
    try:
        committed = {place: offset for topic in topics for place, offset in view.committed(group, topic).items()}
    except StageUnavailable:
        return False
    return all(committed.get(place, 0) >= offset for place, offset in wanted.items())


def _document(body: bytes, list_name: str) -> object:
    """A JSON body. Of a list, the records that name something twice stay bytes; a name twice elsewhere is all of it."""
    found = msgspec.json.decode(body)
    if not _names_twice(body, found):
        return found
    if isinstance(found, list):
        return _named_once(msgspec.json.decode(body, type=list[msgspec.Raw]), found)
    if isinstance(found, dict) and isinstance(found.get(list_name), list):
        listed = msgspec.json.decode(body, type=dict[str, msgspec.Raw])[list_name]
        if _names(body) - _names(listed) == _names(msgspec.json.encode({**found, list_name: 0})):
            return _named_once(msgspec.json.decode(listed, type=list[msgspec.Raw]), found[list_name])
    return body


def _lines(body: bytes) -> list[object]:
    lines = [line for line in body.splitlines() if line.strip()]
    found = [_line(line) for line in lines]
    read = [(line, record) for line, record in zip(lines, found, strict=True) if not isinstance(record, bytes)]
    together = b"[" + b",".join(line for line, _ in read) + b"]"  # one look at all of them costs a third of one at each
    return _named_once(lines, found) if _names_twice(together, [record for _, record in read]) else found


def _named_once(values: Sequence[bytes | msgspec.Raw], found: Sequence[object]) -> list[object]:
    """The records, but those that name something twice as the bytes they were read from."""
    return [
        bytes(value) if isinstance(record, bytes) or _names_twice(value, record) else record
        for value, record in zip(values, found, strict=True)
    ]


def _names_twice(value: bytes | msgspec.Raw, found: object) -> bool:
    """Whether some JSON has more names than what was read from it: of a name given twice only one is left."""
    return _names(value) > msgspec.json.encode(found).count(b'":')


def _names(value: bytes | msgspec.Raw) -> int:
    """How many `":` stand in some JSON: one behind each name, and those within texts, counted as if written again."""
    plain = bytes(value)
    if b"\\" in plain:
        for escape, written in _UNESCAPED:
            plain = plain.replace(escape, written)
    return msgspec.json.format(plain, indent=-1).count(b'":')


def _fault(value: bytes) -> WireError:
    """Why a record stayed bytes."""
    try:
        document.check(value)
    except WireError as error:
        if error.reason == "duplicate_key":
            return error
    return WireError("not_json", "the line is not JSON")


def _line(line: bytes) -> object:
    """One NDJSON line; a line that cannot be read stays what it is."""
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return line
