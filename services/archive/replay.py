"""A fixed message back into the log: what the quarantine kept, as it is or mended, with a link to where it stood."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from services import intake, wire
from services.domain import TOPIC_EVENTS, TOPIC_ITEMS, BadRequest, Coordinate, Message, Outgoing, WireError
from services.ports import EventSink, Quarantine
from services.quarantine import Entry, Rejected


@dataclass(frozen=True, slots=True)
class Replay:
    """Replays entries of one quarantine into one log."""

    quarantine: Quarantine
    sink: EventSink
    now: Callable[[], datetime]

    def __call__(self, entry: Entry, value: bytes | None = None, again: bool = False) -> Coordinate:
        """Publish the entry, or `value` in its place; where the message stands now. BadRequest where it cannot be read
        still, was replayed before (unless `again`), or is kept in part only.

        1. read it, 2. mark the entry, 3. publish, 4. note the place. A process that dies between 2 and 4 leaves an
        entry that says so; `again` publishes it once more, which an event's id makes harmless.
        """
        message = mended(entry.rejected, value)
        if not self.quarantine.claim(entry.number, self.now(), again):
            raise BadRequest(f"entry {entry.number} {_because(self.quarantine.get(entry.number))}")
        try:
            (coordinate,) = self.sink.publish([message])
        except BaseException:
            self.quarantine.release(entry.number)  # it may be tried again: as far as the log says, it has nothing
            raise
        self.quarantine.settle(entry.number, coordinate)
        return coordinate


def mended(rejected: Rejected, value: bytes | None = None) -> Outgoing:
    """The message to publish: written anew, keyed as it must be, saying when it was accepted first and where it stood.

    It is judged as of its first acceptance: what was of the future then is still wrong, what was erased since stays
    erased, and a time that was never given is that of the acceptance, not of the replay.
    """
    if value is None and not rejected.is_whole:
        kept = len(rejected.value)
        raise BadRequest(f"only {kept} of {rejected.size} bytes were kept; give the whole message with --value-file")
    given = rejected.value if value is None else value
    topic, place = rejected.coordinate.topic, str(rejected.coordinate)
    message = Message(rejected.coordinate, rejected.key, given, rejected.accepted_at)
    try:
        if topic == TOPIC_EVENTS:
            event = intake.event_of(message)
            found = wire.encode_event(event, event.accepted_at, place)
        elif topic == TOPIC_ITEMS:
            change = intake.item_of(message)
            found = wire.encode_item(change, change.accepted_at, place)
        else:
            found = wire.encode_slate(intake.slate_of(message), place)
        intake.check(Message(rejected.coordinate, found.key, found.value, rejected.accepted_at))
    except WireError as error:
        raise BadRequest(f"it still cannot be read: {error}") from None
    return found


def with_fields(value: bytes, changes: Mapping[str, str]) -> bytes:
    """A JSON object with some fields set: `name` or `name.inner`, each to a JSON value or else to a text."""
    try:
        found = json.loads(value)
    except ValueError as error:
        raise BadRequest(f"no field can be set: the message is no JSON ({error}); use --edit or --value-file") from None
    if not isinstance(found, dict):
        raise BadRequest("no field can be set: the message is no JSON object; use --edit or --value-file")
    for path, text in changes.items():
        place = found
        *outer, name = path.split(".")
        for step in outer:
            inner = place.setdefault(step, {})
            if not isinstance(inner, dict):
                raise BadRequest(f"{path} cannot be set: {step} is no object")
            place = inner
        place[name] = _json_or_text(text)
    return json.dumps(found, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _json_or_text(text: str) -> object:
    try:
        found: object = json.loads(text)
    except ValueError:
        return text
    return found


def _because(entry: Entry | None) -> str:
    if entry is None or entry.replayed_at is None:
        return "is not in the quarantine any more"
    when = f"{entry.replayed_at:%Y-%m-%d %H:%M:%S} UTC"
    if entry.replayed_as is None:
        return f"is being replayed since {when}, or its replay died on the way; --again publishes it once more"
    return f"was replayed at {when} as {entry.replayed_as}; --again publishes it once more"
