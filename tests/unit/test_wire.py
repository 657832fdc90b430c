"""The wire schema: golden messages of every version are read for ever; whatever is written is read back equal."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as replaced

from services import wire
from services.domain import Dropped, Event, ItemChange, Pick, Reason, Slate, WireError
from services.fields import VALUE_MAX, check_item_fields, parse_time

GOLDEN = Path(__file__).parent.parent / "golden" / "messages"
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
EVENT = Event("e1", "ann", "film-7", "rating", datetime(2026, 11, 23, 11, 59, 59, 250_000, UTC), NOW, 8.5, "r1", "s1")

ids = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=40).filter(
    lambda text: text == text.strip() and text
)
events = st.builds(
    Event,
    event_id=ids,
    user_id=ids,
    item_id=ids,
    kind=ids,
    occurred_at=st.datetimes(datetime(2000, 1, 1), NOW.replace(tzinfo=None)).map(lambda t: t.replace(tzinfo=UTC)),
    accepted_at=st.just(NOW),
    value=st.none() | st.floats(-VALUE_MAX, VALUE_MAX),
    request_id=st.none() | ids,
    session_id=st.none() | ids,
    properties=st.dictionaries(ids, ids, max_size=3),
)


@given(events)
def test_what_is_written_is_read_back_equal(event: Event) -> None:
    assert wire.decode_event(wire.encode_event(event).value, NOW) == event


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("event-v*.json")), ids=lambda path: path.name)
def test_every_golden_event_is_still_read(path: Path) -> None:
    read = wire.decode_event(path.read_bytes().strip(), NOW)
    assert read == replaced(EVENT, properties={"page": "home"})


def test_the_bytes_of_an_event_are_the_newest_golden_ones() -> None:
    written = wire.encode_event(replaced(EVENT, properties={"page": "home"}))
    assert written.value == (GOLDEN / "event-v1.json").read_bytes().strip()
    assert (written.topic, written.key) == ("freshrank.events", "ann")


def test_aliases_say_the_same_as_our_own_names() -> None:
    theirs = {
        "userId": "ann", "itemId": "film-7", "eventType": "rating", "sentAt": 1795435199.25, "eventValue": "8.5",
        "eventId": "e1", "recommendationId": "r1", "sessionId": "s1", "properties": {"page": "home"},
    }  # fmt: skip
    assert wire.decode_event(json.dumps(theirs).encode(), NOW) == replaced(EVENT, properties={"page": "home"})


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("2013-09-01T00:00:00Z", datetime(2013, 9, 1, tzinfo=UTC)),
        ("2013-09-01T02:00:00+02:00", datetime(2013, 9, 1, tzinfo=UTC)),
        ("2013-09-01 00:00:00", datetime(2013, 9, 1, tzinfo=UTC)),
        (1377993600, datetime(2013, 9, 1, tzinfo=UTC)),
        (1377993600.5, datetime(2013, 9, 1, 0, 0, 0, 500_000, UTC)),
        (1377993600123, datetime(2013, 9, 1, 0, 0, 0, 123_000, UTC)),
        ("1377993600", datetime(2013, 9, 1, tzinfo=UTC)),
    ],
)
def test_times_are_read_as_iso_or_as_an_epoch_in_s_or_ms(given: object, read: datetime) -> None:
    assert parse_time(given, "occurred_at") == read


GOOD = {
    "v": 1,
    "event_id": "e1",
    "user_id": "ann",
    "item_id": "i",
    "kind": "click",
    "occurred_at": "2026-11-23T11:00:00Z",
}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b'{"v":1,"event_id":"e1","user', "truncated"),
        (b'{"v":1,"event_id":"e1\xc3', "truncated"),
        (b"\xff\xfe", "not_utf8"),
        (b"[1,2]", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"NaN", "not_finite"),
        (b"{]", "not_json"),
        (b"[" * 60_000, "too_deep"),
        (b'{"a":"\\ud800"}', "bad_text"),
        (b"{} {}", "trailing_data"),
        (
            b'{"v":1,"event_id":"e1","event_id":"e2","user_id":"ann","item_id":"i","kind":"k",'
            b'"occurred_at":"2026-11-23T11:00:00Z"}',
            "duplicate_key",
        ),
        (b'{"user":"ann","item":"i","properties":{"a":"1","a":"1"}}', "duplicate_key"),
        (GOOD | {"v": 2}, "unknown_version"),
        (GOOD | {"v": "1"}, "unknown_version"),
        (GOOD | {"v": True}, "unknown_version"),
        (GOOD | {"user_id": ""}, "empty_user_id"),
        (GOOD | {"user_id": 1.5}, "bad_user_id"),
        (GOOD | {"user_id": ["ann"]}, "bad_user_id"),
        (GOOD | {"item_id": "x" * 257}, "long_item_id"),
        (GOOD | {"item_id": "a\x00b"}, "control_in_item_id"),
        (GOOD | {"event_id": "a\x1fb"}, "control_in_event_id"),
        (GOOD | {"request_id": "a\u2028b"}, "control_in_request_id"),
        ({k: v for k, v in GOOD.items() if k != "user_id"}, "missing_user_id"),
        ({k: v for k, v in GOOD.items() if k != "item_id"}, "missing_item_id"),
        (GOOD | {"kind": {"a": 1}}, "bad_kind"),
        (GOOD | {"occurred_at": "yesterday"}, "bad_time"),
        (GOOD | {"occurred_at": True}, "bad_time"),
        (GOOD | {"occurred_at": 1e300}, "bad_time"),
        (GOOD | {"occurred_at": "1970-01-01T00:00:00Z"}, "too_old"),
        (GOOD | {"occurred_at": "2026-11-23T12:05:01Z"}, "future"),
        (GOOD | {"value": "much"}, "bad_value"),
        (GOOD | {"value": True}, "bad_value"),
        (GOOD | {"value": float("nan")}, "not_finite"),
        (GOOD | {"value": float("-inf")}, "not_finite"),
        (GOOD | {"value": 3.5e38}, "bad_value"),  # above the largest float32, as rows keep values
        (GOOD | {"kind": "purchase", "value": -1}, "negative_value"),
        (GOOD | {"properties": [1]}, "bad_properties"),
        (GOOD | {"properties": {f"p{n}": n for n in range(51)}}, "many_properties"),
    ],
)
def test_a_bad_message_is_refused_with_its_reason(value: object, reason: str) -> None:
    with pytest.raises(WireError) as refused:
        wire.decode_event(value if isinstance(value, bytes) else json.dumps(value).encode(), NOW)
    assert refused.value.reason == reason


def test_up_to_five_minutes_ahead_is_clamped_to_the_moment_of_acceptance() -> None:
    ahead = GOOD | {"occurred_at": (NOW + timedelta(minutes=5)).isoformat()}
    assert wire.decode_event(json.dumps(ahead).encode(), NOW).occurred_at == NOW


def test_a_derived_id_is_the_same_for_a_retry_and_differs_for_any_other_field() -> None:
    plain = {"user_id": "ann", "item_id": "i", "kind": "click", "timestamp": 1377993600}
    retry = {"uid": "ann", "item": "i", "type": "click", "occurred_at": "2013-09-01T00:00:00Z"}
    first = wire.parse_event(plain, NOW).event_id
    assert wire.parse_event(retry, NOW).event_id == first
    for other in ({"item_id": "j"}, {"value": 1}, {"session_id": "s"}, {"timestamp": 1377993601}, {"kind": "like"}):
        assert wire.parse_event(plain | other, NOW).event_id != first


def test_an_item_change_is_read_back_equal_and_its_time_is_capped() -> None:
    fields = {
        "title": "Film",
        "categories": ("Drama",),
        "available": False,
        "published_at": datetime(2020, 1, 1, tzinfo=UTC),
    }
    change = ItemChange("film-7", "patch", fields, NOW + timedelta(hours=1), NOW)
    assert wire.decode_item(wire.encode_item(change).value, NOW) == replace(change, updated_at=NOW)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"colour": "red"}, "unknown_field"), ({"title": 3}, "bad_title"), ({"available": "no"}, "bad_available"),
        ({"categories": "Drama"}, "bad_categories"), ({"attributes": [1]}, "bad_attributes"),
        ({"text": []}, "bad_text"),
    ],
)  # fmt: skip
def test_an_item_field_of_the_wrong_type_is_refused_by_its_name(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(WireError) as refused:
        check_item_fields(fields)
    assert refused.value.reason == reason


PICKS = (
    Pick("a", 0, 1.5, "faiss", Reason("for_you", (), "")),
    Pick("b", 1, 1.0, "covisit", Reason("similar_to", ("a",), "x")),
)
SLATE = Slate("r1", "ann", "rel", 17, 3, PICKS, ("features",), (), NOW, 1_795_435_199_250_000, bytes(range(16)))


def test_a_slate_is_read_back_equal_without_what_was_dropped() -> None:
    assert wire.decode_slate(wire.encode_slate(replace(SLATE, dropped=(Dropped("c", "seen"),))).value) == SLATE


def test_a_slate_from_before_the_time_of_its_counts_and_its_features_is_still_read() -> None:
    golden = (GOLDEN / "slate-v1.json").read_bytes().strip()
    older = replace(SLATE, items_as_of_us=0, features=b"")
    assert wire.decode_slate(golden) == older
    assert wire.encode_slate(older).value == golden  # what is not known is not written


def test_the_bytes_of_a_slate_are_the_newest_golden_ones() -> None:
    assert wire.encode_slate(SLATE).value == (GOLDEN / "slate-v1-features.json").read_bytes().strip()


EXPLORED = Pick("c", 2, 0.25, "explored", Reason("explored", (), "Shown to find out"), 0.0625)


def test_a_slate_that_explores_is_written_with_the_propensity_and_read_back_equal() -> None:
    slate = replace(SLATE, items=(*PICKS, EXPLORED), features=b"")
    golden = (GOLDEN / "slate-v1-explored.json").read_bytes().strip()
    assert wire.encode_slate(slate).value == golden
    assert wire.decode_slate(golden) == slate
    assert golden.count(b"propensity") == 1  # that of the others is 1, and is not written


@pytest.mark.parametrize("beyond", [0, -0.5, 1.0001, 2])
def test_a_propensity_that_is_no_chance_is_refused(beyond: float) -> None:
    found = json.loads((GOLDEN / "slate-v1-explored.json").read_bytes())
    found["items"][2]["propensity"] = beyond
    assert reason_of(wire.decode_slate, found) == "bad_propensity"


BEYOND = ("0001-01-01T00:00:00+23:00", "9999-12-31T23:59:59-23:00", 10**400, 1e300)
ITEM = {"v": 1, "item_id": "i", "operation": "put", "updated_at": "2026-11-23T11:00:00Z", "fields": {}}


@pytest.mark.parametrize("beyond", BEYOND, ids=("year 0", "year 10000", "an int of 401 digits", "a huge float"))
def test_a_time_that_no_calendar_holds_is_a_bad_one_in_every_place_that_takes_a_time(beyond: object) -> None:
    alias = {"user": "ann", "item": "i", "timestamp": beyond}
    for event in (GOOD | {"occurred_at": beyond}, alias):
        assert reason_of(wire.decode_event, event) == "bad_time"
    assert reason_of(wire.decode_item, ITEM | {"fields": {"published_at": beyond}}) == "bad_time"
    assert reason_of(wire.decode_item, ITEM | {"updated_at": beyond}) == "bad_time"


def test_a_number_that_no_float_holds_is_not_finite_and_a_nesting_has_a_limit() -> None:
    assert reason_of(wire.decode_event, GOOD | {"value": 10**400}) == "not_finite"
    assert reason_of(wire.decode_event, {"user": "ann", "item": "i", "value": 10**400}) == "not_finite"
    deep = json.dumps(GOOD)[:-1].encode() + b',"x":' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    assert reason_of(wire.decode_event, deep) == "too_deep"
    assert reason_of(wire.decode_item, json.dumps(ITEM)[:-1].encode() + deep[deep.index(b',"x"') :]) == "too_deep"


def test_a_message_that_was_accepted_before_the_log_took_it_is_judged_by_then() -> None:
    an_hour_ago = NOW - timedelta(hours=1)
    spooled = wire.encode_event(replaced(EVENT, occurred_at=an_hour_ago), accepted_at=an_hour_ago).value
    assert wire.decode_event(spooled, NOW).accepted_at == an_hour_ago
    assert reason_of(wire.decode_event, wire.encode_event(EVENT, accepted_at=an_hour_ago).value) == "future"
    ahead = wire.encode_event(EVENT, accepted_at=NOW + timedelta(days=1)).value
    assert wire.decode_event(ahead, NOW).accepted_at == NOW  # nobody is accepted later than the log says


def reason_of(decode: object, given: object) -> str:
    with pytest.raises(WireError) as refused:
        decode(given if isinstance(given, bytes) else json.dumps(given).encode(), NOW)  # type: ignore[operator]
    return refused.value.reason


names = st.sampled_from(
    [*wire.EVENT_ALIASES, *(a for aliases in wire.EVENT_ALIASES.values() for a in aliases), "v", "operation",
     "updated_at", "fields", "published_at", "expires_at", "title", "attributes", "available"]
)  # fmt: skip
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([1, *BEYOND, -(10**400), "put", "9" * 400, "2026-11-23T11:00:00Z", "-0001", "24:00"])
    | st.floats()
    | st.text(max_size=5)
    | st.datetimes(timezones=st.timezones()).map(lambda moment: moment.isoformat())
)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4))
foreign = st.builds(lambda base, given: base | given, st.sampled_from([{}, GOOD, ITEM]), st.dictionaries(names, values))


@given(st.binary() | (values | foreign).map(lambda given: json.dumps(given).encode()))
def test_whatever_comes_is_read_or_refused_and_nothing_else_is_raised(value: bytes) -> None:
    for decode in (wire.decode_event, wire.decode_item, lambda given, _now: wire.decode_slate(given)):
        try:
            decode(value, NOW)
        except WireError as error:
            assert error.reason  # noqa: PT017 (to be read is right, too)


@pytest.mark.parametrize("text", ["1700092800000", "1700092800", "1700092800.0"])
def test_an_epoch_written_as_text_is_never_read_as_a_date(text: str) -> None:
    # 1700092800000 is also 28 September 1700 in the shortest form of ISO 8601.
    assert parse_time(text, "occurred_at") == datetime(2023, 11, 16, tzinfo=UTC)
