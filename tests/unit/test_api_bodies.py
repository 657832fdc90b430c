"""What a body may not say: a name twice in one object, or another item than the path."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import msgspec
import pytest
from fastapi.testclient import TestClient
from serving_world import NOW, MemoryRuntime, user

from services.api.app import create_app
from services.api.bodies import records
from services.domain import TOPIC_EVENTS, TOPIC_ITEMS
from services.settings import Settings
from services.wire import decode_item

GOOD = b'{"user_id":"a","item_id":"b"}'
TWICE = b'{"user_id":"a","item_id":"b","user_id":"c"}'
WITHIN = b'{"user_id":"a","item_id":"b","properties":{"x":"1","x":"2"}}'
JSON = "application/json"
LINES = "application/x-ndjson"


@pytest.fixture
def runtime() -> MemoryRuntime:
    return MemoryRuntime(Settings(api_events_max=100), {"ada": user("s1")})


@pytest.fixture
def client(runtime: MemoryRuntime) -> Iterator[TestClient]:
    with TestClient(create_app(runtime)) as client:
        yield client


def messages(runtime: MemoryRuntime, topic: str) -> list[bytes]:
    return [m.value for place in runtime.bus.of_topic(topic) for m in runtime.bus.logs[place] if m.value is not None]


@pytest.mark.parametrize("twice", [TWICE, WITHIN, b'{"user_id":"a","item_id":"b","\\u0075ser_id":"c"}'])
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (JSON, b"[%s,\n %s , %s]"), (JSON, b'{"of":{"a":1},"events":[%s,%s,%s]}'), (LINES, b"%s\n\n%s\n%s"),
        (LINES, b"%s\r\n%s\n%s\n"),
    ],
)  # fmt: skip
def test_an_event_that_names_something_twice_is_refused_by_its_place_and_kept_as_it_came(
    client: TestClient, runtime: MemoryRuntime, twice: bytes, content_type: str, body: bytes
) -> None:
    response = client.post("/v1/events", content=body % (GOOD, twice, GOOD), headers={"Content-Type": content_type})
    assert response.status_code == 202
    answer = response.json()
    assert (answer["accepted"], [(r["index"], r["reason"]) for r in answer["rejected"]]) == (2, [(1, "duplicate_key")])
    assert answer["rejected"][0]["detail"].endswith("stands twice in one object")
    kept = [entry.rejected for entry in runtime.quarantine.list(9)]
    assert [(each.reason, each.value) for each in kept] == [("duplicate_key", twice)]


@pytest.mark.parametrize(
    "body",
    [
        TWICE,
        b'{"events":[],"events":[%s]}' % GOOD,
        b'{"events":[%s],"of":1,"of":2}' % TWICE,
        b'{"of":{"a":1,"a":2},"events":[%s]}' % GOOD,
    ],
)
def test_a_name_twice_around_the_events_refuses_them_all(
    client: TestClient, runtime: MemoryRuntime, body: bytes
) -> None:
    response = client.post("/v1/events", content=body)
    assert (response.status_code, response.json()["type"]) == (422, "urn:freshrank:problem:nothing-accepted")
    assert [(r["index"], r["reason"]) for r in response.json()["rejected"]] == [(0, "duplicate_key")]
    assert messages(runtime, TOPIC_EVENTS) == []
    assert [entry.rejected.value for entry in runtime.quarantine.list(9)] == [body]


def test_a_line_that_is_no_json_and_one_that_names_something_twice_are_told_apart(client: TestClient) -> None:
    body = b"\n".join((b"{broken", TWICE, GOOD, b'{"user_id":"a'))
    answer = client.post("/v1/events", content=body, headers={"Content-Type": LINES}).json()
    reasons = [(each["index"], each["reason"]) for each in answer["rejected"]]
    assert reasons == [(0, "not_json"), (1, "duplicate_key"), (3, "not_json")]


@pytest.mark.parametrize("path", ["/v1/items", "/v1/items/b"])
def test_an_item_that_names_something_twice_is_refused(client: TestClient, runtime: MemoryRuntime, path: str) -> None:
    response = client.put(path, content=b'{"item_id":"b","title":"A","title":"B"}')
    assert (response.status_code, response.json()["rejected"][0]["reason"]) == (422, "duplicate_key")
    assert messages(runtime, TOPIC_ITEMS) == []


@pytest.mark.parametrize(
    ("path", "name", "body"),
    [
        ("/v1/recommendations", "user_id", b'{"user_id":"ada","user_id":"bob"}'),
        ("/v1/rank", "item_ids", b'{"user_id":"ada","item_ids":["s1"],"item_ids":["s2"]}'),
    ],
)
def test_a_question_that_names_something_twice_is_refused(
    client: TestClient, path: str, name: str, body: bytes
) -> None:
    response = client.post(path, content=body, headers={"Content-Type": JSON})
    document = response.json()
    assert (response.status_code, document["type"]) == (400, "urn:freshrank:problem:bad-body")
    assert (document["reason"], document["detail"]) == ("duplicate_key", f"'{name}' stands twice in one object")


def test_a_question_without_a_body_is_refused_as_before(client: TestClient) -> None:
    assert client.post("/v1/rank").status_code == 422


TEXTS = ('":', '"":"', "\\", '\\"', ":", '"', "\\u0022:", "\\\\u003a", "ü", "name", " : ", "{", "}", "\n")


def test_no_way_to_write_a_text_hides_a_name_given_twice_or_looks_like_one() -> None:
    chance = random.Random(7)
    for _ in range(2000):
        sound, doubled = (written(chance, twice=twice) for twice in (False, True))
        found = records(b"[%s,%s]" % (sound, doubled), JSON, "events", 9)
        assert found == [msgspec.json.decode(sound), doubled]
        assert records(b"%s\n%s" % (doubled, sound), LINES, "events", 9) == found[::-1]


def written(chance: random.Random, *, twice: bool) -> bytes:
    """An object of names and texts, each letter escaped by chance or not; maybe its first name stands twice."""
    names = chance.sample(TEXTS, 3)
    names += names[:1] if twice else []
    pairs = [f"{text(chance, name)}{chance.choice(['', ' '])}:{text(chance, chance.choice(TEXTS))}" for name in names]
    return ("{" + ",".join(pairs) + "}").encode()


def text(chance: random.Random, letters: str) -> str:
    escaped = [
        chance.choice([f"\\u{ord(each):04x}", f"\\u{ord(each):04X}", json.dumps(each)[1:-1]]) for each in letters
    ]
    return '"' + "".join(escaped) + '"'


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize("name", ["item_id", "itemId", "id"])
def test_a_body_that_names_another_item_than_its_path_is_refused(
    client: TestClient, runtime: MemoryRuntime, method: str, name: str
) -> None:
    response = client.request(method, "/v1/items/stool2", json={name: "other", "title": "A stool"})
    assert response.status_code == 422
    refused = response.json()["rejected"][0]
    assert (refused["index"], refused["reason"]) == (0, "item_id_mismatch")
    assert refused["detail"] == "the body is of item other, the path of stool2; leave one out"
    assert messages(runtime, TOPIC_ITEMS) == []


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize(("path", "given"), [("stool2", "stool2"), ("stool2", " stool2 "), ("7", 7), ("a", None)])
def test_a_body_may_name_the_item_of_its_path(
    client: TestClient, runtime: MemoryRuntime, method: str, path: str, given: object
) -> None:
    assert client.request(method, f"/v1/items/{path}", json={"item_id": given, "title": "A"}).status_code == 202
    changes = [decode_item(value, NOW) for value in messages(runtime, TOPIC_ITEMS)]
    assert [(change.item_id, dict(change.fields)) for change in changes] == [(path, {"title": "A"})]
