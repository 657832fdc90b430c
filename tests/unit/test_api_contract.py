"""What a client may rely on: ids that no message can carry are refused everywhere, answers have the shape that the
OpenAPI document declares, equal events are not taken for one, and what is not read is said."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel
from serving_world import MemoryRuntime, user

from services.api import answers, schemas
from services.api.app import create_app
from services.domain import TOPIC_EVENTS, TOPIC_ITEMS
from services.quarantine import topic_named
from services.settings import Settings
from services.wire import decode_event

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def runtime() -> MemoryRuntime:
    return MemoryRuntime(Settings(), {"ada": user("s1")})


@pytest.fixture
def client(runtime: MemoryRuntime) -> Iterator[TestClient]:
    with TestClient(create_app(runtime), raise_server_exceptions=False) as client:
        yield client


def messages(runtime: MemoryRuntime, topic: str) -> list[bytes]:
    return [m.value for place in runtime.bus.of_topic(topic) for m in runtime.bus.logs[place] if m.value is not None]


# ----------------------------------------------------------------------------------------------------- ids


@pytest.mark.parametrize("unfit", ["a\x07b", "a\u2028b", "\ud800", "x" * 257, " "])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/recommendations", {"user_id": "%s"}),
        ("/v1/recommendations", {"recent": ["s1", "%s"]}),
        ("/v1/recommendations", {"user_id": "ada", "exclude": ["%s"]}),
        ("/v1/rank", {"item_ids": ["s1", "%s"]}),
        ("/v1/rank", {"item_ids": ["s1"], "user_id": "%s"}),
        ("/v1/rank", {"item_ids": ["s1"], "exclude": ["%s"]}),
    ],
)
def test_an_id_that_no_message_can_carry_is_refused_and_no_list_recorded(
    client: TestClient, runtime: MemoryRuntime, path: str, body: dict, unfit: str
) -> None:
    sent = json.dumps(body).replace('"%s"', json.dumps(unfit)).encode()
    response = client.post(path, content=sent, headers=JSON)
    assert (response.status_code, response.json()["type"]) == (422, "urn:freshrank:problem:bad-parameter")
    assert runtime.slates.slates == []


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_an_item_under_such_an_id_is_refused_before_it_is_acknowledged(
    client: TestClient, runtime: MemoryRuntime, method: str
) -> None:
    response = client.request(method, "/v1/items/a%07b", json=None if method == "DELETE" else {"title": "x"})
    assert response.status_code == 422
    assert messages(runtime, TOPIC_ITEMS) == []


def test_what_is_left_out_goes_by_trimmed_ids(client: TestClient) -> None:
    shown_now = [each["item_id"] for each in client.get("/v1/users/ada/recommendations").json()["items"]]
    first, second = shown_now[:2]
    for left in (
        client.get("/v1/users/ada/recommendations", params={"exclude": f" {first} , {second} ,"}),
        client.post("/v1/recommendations", json={"user_id": "ada", "exclude": [f" {first}", f"{second} "]}),
    ):
        assert not {first, second} & {each["item_id"] for each in left.json()["items"]}


@pytest.mark.parametrize("updated_at", [0, "1990-01-01"])
def test_an_item_changed_before_1995_is_refused_as_the_catalogue_would(client: TestClient, updated_at: object) -> None:
    response = client.put("/v1/items", json={"item_id": "old", "title": "Old", "updated_at": updated_at})
    assert response.status_code == 422
    assert response.json()["rejected"][0]["reason"] == "too_old"


@pytest.mark.parametrize("given", [True, 1.5, ["a"], None])
def test_an_item_id_is_a_text_or_a_whole_number(client: TestClient, given: object) -> None:
    assert client.put("/v1/items", json={"item_id": given, "title": "x"}).status_code == 422
    assert client.put("/v1/items", json={"item_id": 7, "title": "x"}).status_code == 202


def test_two_names_of_one_item_must_agree(client: TestClient, runtime: MemoryRuntime) -> None:
    refused = client.put("/v1/items", json={"item_id": "a", "id": "b"}).json()["rejected"][0]
    assert (refused["reason"], refused["detail"]) == (
        "item_id_mismatch", "the body is of item b, another name of a; leave one out",
    )  # fmt: skip
    assert client.put("/v1/items", json={"item_id": "a", "id": "a"}).status_code == 202


# -------------------------------------------------------------------------------------------------- events


def test_equal_events_of_one_body_with_neither_id_nor_time_are_as_many_as_they_are(
    client: TestClient, runtime: MemoryRuntime
) -> None:
    bought = {"user_id": "ada", "item_id": "s2", "kind": "purchase"}
    answer = client.post("/v1/events", json=[bought, bought, {**bought, "item_id": "s3"}, bought]).json()
    assert (answer["accepted"], answer["retry_not_recognised"]) == (4, 4)
    ids = [decode_event(value, runtime.now()).event_id for value in messages(runtime, TOPIC_EVENTS)]
    assert len(set(ids)) == 4


def test_equal_events_with_a_time_are_a_retry(client: TestClient, runtime: MemoryRuntime) -> None:
    bought = {"user_id": "ada", "item_id": "s2", "kind": "purchase", "occurred_at": "2026-01-01T11:00:00Z"}
    assert client.post("/v1/events", json=[bought, bought]).json()["retry_not_recognised"] == 0
    ids = [decode_event(value, runtime.now()).event_id for value in messages(runtime, TOPIC_EVENTS)]
    assert len(ids) == 2
    assert len(set(ids)) == 1


def test_fields_that_say_nothing_are_named(client: TestClient) -> None:
    sent = [{"user_id": "ada", "item_id": "s2", "kindd": "purchase", "v": 1}, {"uid": "bob", "item": "s2", "shop": 3}]
    assert client.post("/v1/events", json=sent).json()["unknown_fields"] == ["kindd", "shop"]


def test_two_names_of_one_field_that_differ_are_refused(client: TestClient, runtime: MemoryRuntime) -> None:
    sent = [
        {"user_id": "ada", "userId": "bob", "item_id": "s2"},
        {"user_id": 7, "userId": "7", "item_id": "s2", "itemId": None},
    ]
    answer = client.post("/v1/events", json=sent).json()
    assert [(each["index"], each["reason"]) for each in answer["rejected"]] == [(0, "contradiction")]
    assert answer["rejected"][0]["detail"].startswith("user_id and userId are names of one field")
    assert [decode_event(value, runtime.now()).user_id for value in messages(runtime, TOPIC_EVENTS)] == ["7"]


# --------------------------------------------------------------------------------------------------- lists


def test_a_long_list_of_exclusions_does_not_end_the_list(client: TestClient) -> None:
    body = {"user_id": "ada", "limit": 2, "exclude": [f"elsewhere-{n}" for n in range(5000)]}
    pages, cursor = [], None
    for _ in range(9):
        answer = client.post("/v1/recommendations", json=body | ({"cursor": cursor} if cursor else {})).json()
        pages.append([each["item_id"] for each in answer["items"]])
        cursor = answer["next"]
        if cursor is None:
            break
    shown_ids = [item_id for page in pages for item_id in page]
    assert len(shown_ids) == len(set(shown_ids)) == 9  # all that ada has not taken


def test_related_items_leave_out_what_the_user_has_seen_unless_told_to_keep_it(client: TestClient) -> None:
    def related(**asked: str) -> set[str]:
        found = client.get("/v1/items/s2/related", params={"limit": 500, **asked}).json()
        return {each["item_id"] for each in found["items"]}

    assert related() - related(user_id="ada") == {"s1"}
    assert related(user_id="ada", seen="keep") == related()


@pytest.mark.parametrize("name", ["limit", "n", "numResults", "count", "size"])
@pytest.mark.parametrize("path", ["/v1/trending", "/v1/items/s1/related"])
def test_every_list_takes_every_name_of_its_limit(client: TestClient, path: str, name: str) -> None:
    assert len(client.get(path, params={name: 2}).json()["items"]) == 2


@pytest.mark.parametrize("path", ["/v1/trending", "/v1/items/s1/related", "/v1/users/ada/recommendations"])
def test_categories_go_by_both_names(client: TestClient, path: str) -> None:
    one, other = (client.get(path, params={name: "Space"}).json()["items"] for name in ("category", "categories"))
    assert [each["item_id"] for each in one] == [each["item_id"] for each in other]
    assert len(one) < len(client.get(path).json()["items"])


def test_a_visitor_has_no_row_and_no_time_of_one(client: TestClient) -> None:
    assert client.post("/v1/recommendations", json={"recent": ["s1"]}).json()["features_as_of"] is None


# ------------------------------------------------------------------------------------------------- shapes


def test_answers_have_the_shape_that_is_declared(client: TestClient) -> None:
    client.post("/v1/events", content=b"{broken")
    shapes: dict[str, type[BaseModel]] = {
        "/v1/users/ada/recommendations": schemas.SlateAnswer,
        "/v1/trending": schemas.TrendingAnswer,
        "/v1/items/s1": answers.ItemAnswer,
        "/v1/users/ada": answers.UserAnswer,
        "/v1/releases": answers.ReleasesAnswer,
        "/v1/runs": answers.RunsAnswer,
        "/v1/rejected": answers.RejectedAnswer,
        "/health/live": answers.LiveAnswer,
        "/health/ready": answers.ReadyAnswer,
    }
    paths = client.get("/openapi.json").json()["paths"]
    for path, model in shapes.items():
        route = path.replace("/ada", "/{user_id}").replace("/s1", "/{item_id}")
        declared = paths[route]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert declared == {"$ref": f"#/components/schemas/{model.__name__}"}, path
        answer = client.get(path).json()
        model.model_validate(answer, extra="forbid")
        optional = {name for name, field in model.model_fields.items() if not field.is_required()}
        assert answer.keys() | optional == model.model_fields.keys(), path


def test_every_refusal_is_declared_as_a_problem_document(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in json.dumps(document)
    for path, operations in document["paths"].items():
        if path.startswith(("/health", "/metrics")):
            continue
        for operation in operations.values():
            refusals = {s: each for s, each in operation["responses"].items() if s >= "400"}
            assert {"422", "503"} <= refusals.keys(), path
            assert all(list(each["content"]) == ["application/problem+json"] for each in refusals.values()), path
    assert list(document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain"]
    assert "404" in document["paths"]["/v1/items/{item_id}"]["get"]["responses"]
    assert {"400", "413"} <= document["paths"]["/v1/events"]["post"]["responses"].keys()


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"Content-Type": "application/x-www-form-urlencoded"}, "Content-Type is application/x-www-form-urlencoded"),
        ({}, "there is no Content-Type; send application/json"),
        ({**JSON, "Content-Encoding": "gzip"}, "Content-Encoding gzip is not read"),
    ],
)
def test_a_body_in_another_coat_is_refused_for_that(client: TestClient, headers: dict, said: str) -> None:
    body = b'{"user_id":"ada"}'
    packed = gzip.compress(body) if "Content-Encoding" in headers else body
    response = client.post("/v1/recommendations", content=packed, headers=headers)
    assert (response.status_code, response.json()["type"]) == (400, "urn:freshrank:problem:bad-body")
    assert said in response.json()["detail"]


@pytest.mark.parametrize("body", [b"{broken", b'{"user_id": "\xff"}', b"[" * 50_000])
def test_what_is_no_json_is_a_bad_body_on_every_route(client: TestClient, body: bytes) -> None:
    for path in ("/v1/recommendations", "/v1/rank", "/v1/events"):
        response = client.post(path, content=body, headers=JSON)
        assert (response.status_code, response.json()["type"]) == (400, "urn:freshrank:problem:bad-body"), path


def test_an_empty_body_is_called_empty(client: TestClient) -> None:
    assert client.post("/v1/events", content=b" ").json()["detail"].startswith("the body is empty")


def test_a_method_that_a_route_does_not_take_is_told_which_it_takes(client: TestClient) -> None:
    response = client.delete("/v1/trending")
    assert (response.status_code, response.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics"])
def test_a_watchdog_may_ask_with_head(client: TestClient, path: str) -> None:
    assert client.head(path).status_code == client.get(path).status_code == 200


# -------------------------------------------------------------------------------------------- the quarantine


def test_rejected_messages_go_by_the_short_name_of_their_topic_too(client: TestClient) -> None:
    client.post("/v1/events", content=b"{broken")
    for topic in ("events", "freshrank.events"):
        assert len(client.get("/v1/rejected", params={"topic": topic}).json()["rejected"]) == 1
    assert client.get("/v1/rejected", params={"topic": "items"}).json()["rejected"] == []
    assert client.get("/v1/rejected", params={"topic": "evnts"}).status_code == 400
    assert topic_named("slates") == "freshrank.slates"


def test_a_place_beyond_all_numbers_is_refused(client: TestClient) -> None:
    assert client.get("/v1/rejected", params={"after": 10**23}).status_code == 422
