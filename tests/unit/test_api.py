# The HTTP edge over a runtime in memory: statuses, bodies, problems, aliases, waiting, and the golden OpenAPI document.
#
# Renew the golden document with: python tests/unit/test_api.py
from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fastapi.testclient import TestClient
from serving_world import NOW, MemoryRuntime, user

from services.api.app import create_app, create_routes
from services.api.cursor import cursor_of, shown_before
from services.api.problems import Problem
from services.domain import (
    TOPIC_EVENTS,
    TOPIC_ITEMS,
    Coordinate,
    ItemChange,
    Metric,
    PartHealth,
    Partition,
    ReleaseInfo,
    StageUnavailable,
)
from services.quarantine import Rejected
from services.settings import Settings
from services.training.registry import RunInfo
from services.wire import decode_event, decode_item

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "openapi.json"


@pytest.fixture
def runtime() -> MemoryRuntime:
    settings = Settings(api_body_bytes_max=100_000, api_events_max=100, api_wait_ms_max=300)
    return MemoryRuntime(settings, {"ada": user("s1", hidden=("l2",))})


@pytest.fixture
def client(runtime: MemoryRuntime):
    with TestClient(create_app(runtime)) as client:
        yield client


def published(runtime: MemoryRuntime, topic: str) -> list:
    messages = [m for partition in runtime.bus.of_topic(topic) for m in runtime.bus.logs[partition]]
    decode = decode_event if topic == TOPIC_EVENTS else decode_item
    return [decode(m.value, m.accepted_at) for m in messages]


def is_problem(response, status: int, name: str) -> bool:
    document = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, document["status"]) == (status, status), document
    assert document["type"] == f"urn:freshrank:problem:{name}", document
    return bool(document["title"]) and bool(document["detail"])


# --------------------------------------------------------------------------------------------------- lists


def test_a_list_says_what_it_rests_on_and_why_each_item_is_there(client: TestClient) -> None:
    answer = client.get("/v1/users/ada/recommendations?limit=2").json()
    assert answer["items"] == [
        {
            "item_id": "cold", "title": "Film cold", "rank": 0, "score": 1.0, "source": "faiss",
            "reason": {"kind": "for_you", "item_ids": [], "text": "Fits what you picked lately"}, "propensity": 1.0,
        },
        {
            "item_id": "s2", "title": "Film s2", "rank": 1, "score": pytest.approx(0.99619, abs=1e-4),
            "source": "faiss", "reason": {"kind": "for_you", "item_ids": [], "text": "Fits what you picked lately"},
            "propensity": 1.0,
        },
    ]  # fmt: skip
    assert (answer["user_id"], answer["release_id"], answer["degraded"]) == ("ada", "hand", [])
    assert answer["features_as_of"] == "2026-01-01T11:59:00Z"
    assert answer["items_as_of"] == 20
    assert len(answer["request_id"]) == 32
    assert "dropped" not in answer


def test_next_goes_on_without_repeats_until_there_is_no_more(client: TestClient) -> None:
    shown: list[str] = []
    cursor = ""
    for _ in range(10):
        answer = client.get("/v1/users/ada/recommendations", params={"limit": 3, "cursor": cursor}).json()
        shown += [each["item_id"] for each in answer["items"]]
        cursor = answer["next"]
        if cursor is None:
            break
    assert sorted(shown) == ["cold", "l1", "l3", "l4", "plain", "s2", "s3", "s4"]


@pytest.mark.parametrize("name", ["limit", "n", "numResults", "count", "size"])
def test_the_limit_goes_by_several_names(client: TestClient, name: str) -> None:
    assert len(client.get(f"/v1/users/ada/recommendations?{name}=3").json()["items"]) == 3
    assert is_problem(client.get(f"/v1/users/ada/recommendations?{name}=501"), 422, "bad-parameter")


def test_excluded_items_and_other_categories_stay_out_and_explain_says_who_dropped_what(client: TestClient) -> None:
    answer = client.get("/v1/users/ada/recommendations?exclude=cold,s2&category=Space&explain=true").json()
    assert [each["item_id"] for each in answer["items"]] == ["s3", "s4"]
    assert answer["dropped"] == []  # the sources had passed them over already
    ranked = client.post("/v1/rank", json={"user_id": "ada", "item_ids": ["s1", "s2"], "seen": "drop", "explain": True})
    assert ranked.json()["dropped"] == [{"item_id": "s1", "by": "seen"}]


def test_a_user_id_may_hold_any_characters(client: TestClient) -> None:
    answer = client.get("/v1/users/a%2Fb%20%C3%BC/recommendations").json()
    assert answer["user_id"] == "a/b ü"
    assert answer["features_as_of"] is None
    assert {each["source"] for each in answer["items"]} == {"trending", "new"}


def test_asked_for_by_erasure_an_item_is_a_reason_only_if_the_score_falls_without_it(client: TestClient) -> None:
    plain = client.get("/v1/users/ada/recommendations?limit=3").json()["items"]
    assert all("explanation" not in each for each in plain)
    for asked in ("reasons=erasure", "explain=true"):
        items = client.get(f"/v1/users/ada/recommendations?limit=3&{asked}").json()["items"]
        assert [each["item_id"] for each in items] == [each["item_id"] for each in plain]
        # Ada has clicked s1 alone: without it she is a stranger, whose scores are 0 for all.
        space = next(each for each in items if each["item_id"] == "s2")
        assert space["reason"]["kind"] == "because_you_clicked"
        assert space["reason"]["item_ids"] == ["s1"]
        assert space["explanation"]["drop"] == pytest.approx(space["score"])
        assert space["explanation"]["looked_at"][0]["title"] == "Film s1"
        assert space["explanation"]["at_nothing"] == 0.5
    ranked = client.post("/v1/rank", json={"user_id": "ada", "item_ids": ["s2", "s3"], "reasons": "erasure"}).json()
    assert [each["explanation"]["drop"] > 0 for each in ranked["items"]] == [True, True]


def test_a_visitor_is_known_by_recent_items(client: TestClient) -> None:
    body = {"recent": ["l1"], "limit": 3}
    answer = client.post("/v1/recommendations", json=body).json()
    assert [each["item_id"] for each in answer["items"]] == ["l2", "l3", "l4"]
    assert answer["user_id"] is None


def test_a_body_may_name_a_user_by_an_alias(client: TestClient) -> None:
    answer = client.post("/v1/recommendations", json={"userId": "ada", "numResults": 1}).json()
    assert (answer["user_id"], len(answer["items"])) == ("ada", 1)


def test_related_items_come_by_nearness(client: TestClient) -> None:
    answer = client.get("/v1/items/l1/related?limit=2").json()
    assert [each["item_id"] for each in answer["items"]] == ["l2", "l3"]
    assert answer["items"][0]["reason"] == {"kind": "similar_to", "item_ids": ["l1"], "text": "Similar to Film l1"}


def test_ranking_gives_the_whole_list_back_in_order(client: TestClient) -> None:
    answer = client.post("/v1/rank", json={"user_id": "ada", "item_ids": ["l1", "gone", "s3", "s1"]}).json()
    assert [each["item_id"] for each in answer["items"]] == ["s1", "s3", "l1", "gone"]
    assert answer["next"] is None


def test_trending_is_the_same_for_everybody_and_by_category(client: TestClient) -> None:
    everything = client.get("/v1/trending?limit=3").json()
    assert [(i["item_id"], i["score"]) for i in everything["items"]] == [("s1", 16.0), ("l1", 14.0), ("s2", 12.0)]
    love = client.get("/v1/trending?category=Love").json()
    assert [i["item_id"] for i in love["items"]] == ["l1", "l2"]


def test_a_question_may_spread_its_list_out_or_cap_a_category(client: TestClient) -> None:
    def listed(**asked) -> list[str]:
        return [item["item_id"] for item in client.get("/v1/users/ada/recommendations", params=asked).json()["items"]]

    # By score the space films lead (ada took s1); at most one of each category leaves the best of each, and `plain`.
    assert [item_id[0] for item_id in listed(limit=4)] == ["c", "s", "s", "s"]
    assert [item_id[0] for item_id in listed(limit=4, category_cap=1)] == ["c", "l", "p"]
    spread = listed(limit=4, diversity=0.9)
    assert spread[0] == listed(limit=1)[0]
    assert {item_id[0] for item_id in spread[:3]} == {"c", "l", "p"}
    body = {"user_id": "ada", "item_ids": ["s2", "s3", "l1"]}
    ranked = client.post("/v1/rank", json={**body, "diversity": 0.9}).json()["items"]
    assert [item["item_id"] for item in ranked] == ["s2", "l1", "s3"]
    assert len(client.post("/v1/rank", json={**body, "category_cap": 1}).json()["items"]) == 2
    is_problem(client.get("/v1/users/ada/recommendations?diversity=1.5"), 422, "bad-parameter")


def test_next_goes_on_without_repeats_also_where_lists_are_spread_out_and_explore() -> None:
    runtime = MemoryRuntime(Settings(explore_every=2, list_diversity=0.3), {"ada": user("s1", hidden=("l2",))})
    with TestClient(create_app(runtime)) as client:
        shown, cursor = [], None
        for _ in range(5):
            page = client.get("/v1/users/ada/recommendations", params={"limit": 2, "cursor": cursor or ""}).json()
            shown += [item["item_id"] for item in page["items"]]
            explored = [(i["rank"], i["reason"]["kind"]) for i in page["items"] if i["source"] == "explored"]
            assert explored in ([(1, "explored")], [])
            assert all(0 < item["propensity"] <= 1 for item in page["items"])
            cursor = page["next"]
            if cursor is None:
                break
    assert len(shown) == len(set(shown)) == 8  # all that ada has neither taken nor hidden
    assert sum(p.source == "explored" for slate in runtime.slates.slates for p in slate.items) == 4


def test_a_list_is_recorded_and_a_probe_is_not(client: TestClient, runtime: MemoryRuntime) -> None:
    request_id = client.get("/v1/users/ada/recommendations").json()["request_id"]
    client.get("/v1/users/ada/recommendations?record=false")
    assert [slate.request_id for slate in runtime.slates.slates] == [request_id]


def test_before_the_first_release_there_is_a_list_without_one(client: TestClient, runtime: MemoryRuntime) -> None:
    runtime.release = None
    answer = client.get("/v1/users/ada/recommendations").json()
    assert answer["release_id"] is None
    assert answer["items"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/recommendations", {"recent": ["a"], "user_id": "ada"}),
        ("/v1/recommendations", {"limit": 0}),
        ("/v1/recommendations", {"limt": 3}),
        ("/v1/rank", {"item_ids": []}),
        ("/v1/rank", {"user_id": "ada"}),
        ("/v1/rank", {"item_ids": [" "]}),
        ("/v1/recommendations", {"cursor": "bm9uc2Vuc2U"}),
        ("/v1/recommendations", {"user_id": "x" * 257}),
    ],
)
def test_a_refused_field_is_named(client: TestClient, path: str, body: dict) -> None:
    assert is_problem(client.post(path, json=body), 422, "bad-parameter")


def test_a_cursor_holds_what_was_shown_and_nonsense_is_refused() -> None:
    assert shown_before(cursor_of(["b", "a", "b"])) == {"a", "b"}
    assert cursor_of(str(n) for n in range(2000)) is None
    with pytest.raises(Problem):
        shown_before("nonsense!")


# -------------------------------------------------------------------------------------------------- events


def test_events_are_published_and_the_bad_ones_named_by_place_and_reason(
    client: TestClient, runtime: MemoryRuntime
) -> None:
    body = [
        {"user_id": "ada", "item_id": "s2", "kind": "click", "occurred_at": "2026-01-01T11:00:00Z"},
        {"user_id": "ada"},
        {"userId": "bob", "itemId": "l1", "event_type": "rating", "timestamp": 1767268800, "rating": "9"},
        {"user_id": "ada", "item_id": "s2", "occurred_at": "2027-01-01T00:00:00Z"},
        {"user_id": "ada", "item_id": "s2", "v": 9},
        {"user_id": "ada", "item_id": "s2", "properties": {"note": "x" * 70_000}},
        "what is this",
    ]
    response = client.post("/v1/events", json=body)
    assert response.status_code == 202
    answer = response.json()
    assert answer["accepted"] == 2
    assert [(each["index"], each["reason"]) for each in answer["rejected"]] == [
        (1, "missing_item_id"), (3, "future"), (4, "unknown_version"), (5, "oversized"), (6, "not_an_object"),
    ]  # fmt: skip
    events = sorted(published(runtime, TOPIC_EVENTS), key=lambda event: event.user_id)
    assert [(e.user_id, e.item_id, e.kind, e.value) for e in events] == [
        ("ada", "s2", "click", None),
        ("bob", "l1", "rating", 9.0),
    ]


def test_what_is_refused_is_kept_with_its_bytes_and_reason_and_counted(
    client: TestClient, runtime: MemoryRuntime
) -> None:
    far = {"user_id": "ada", "item_id": "s2", "occurred_at": "2027-01-01T00:00:00Z"}
    large = {"user_id": "ada", "item_id": "s2", "properties": {"note": "x" * 70_000}}
    body = [{"user_id": "ada", "item_id": "s1"}, far, {"user_id": "ada", "item_id": "s2", "v": 9}, large]
    counted = 'freshrank_events_rejected_total{reason="future",where="api"}'
    before = client.get("/metrics").text
    assert client.post("/v1/events", json=body).status_code == 202
    assert is_problem(client.post("/v1/events", content=b"{broken"), 400, "bad-body")
    assert is_problem(client.put("/v1/items", json={"title": "no id"}), 422, "nothing-accepted")
    kept = [entry.rejected for entry in runtime.quarantine.list(10)]
    assert [(each.coordinate.topic, each.reason) for each in kept] == [
        (TOPIC_EVENTS, "future"), (TOPIC_EVENTS, "unknown_version"), (TOPIC_EVENTS, "oversized"),
        (TOPIC_EVENTS, "not_json"), (TOPIC_ITEMS, "missing_item_id"),
    ]  # fmt: skip
    assert (json.loads(kept[0].value), kept[3].value) == (far, b"{broken")
    came = json.dumps(large, separators=(",", ":")).encode()
    assert (kept[2].value, kept[2].size, kept[2].is_whole) == (came[:65536], len(came), False)
    as_message = {"v": 1, "item_id": None, "operation": "put", "fields": {"title": "no id"}}
    assert json.loads(kept[4].value) == as_message  # what is missing can be set, and the rest replayed
    assert {(each.coordinate.log_id, each.coordinate.partition) for each in kept} == {("api", 0)}
    events = [each.coordinate.offset for each in kept[:4]]
    assert events == sorted(set(events))
    assert client.get("/v1/rejected").json()["count"]["future"] == 1
    assert count_in(client.get("/metrics").text, counted) == count_in(before, counted) + 1


def count_in(text: str, name: str) -> float:
    return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(name)), 0.0)


def test_one_request_fills_the_quarantine_with_so_much_only(runtime: MemoryRuntime) -> None:
    runtime.settings = Settings(api_events_max=500, api_body_bytes_max=5_000_000)
    with TestClient(create_app(runtime)) as client:
        answer = client.post("/v1/events", json=[{"user_id": "ada"}] * 300).json()
        assert (len(answer["rejected"]), runtime.quarantine.count()) == (300, {"missing_item_id": 100})
        client.post("/v1/events", json=[{"user_id": "ada", "v": 2, "properties": {"a": "x" * 60_000}}] * 30)
    assert runtime.quarantine.count()["unknown_version"] == 1_000_000 // 60_045


def test_a_quarantine_that_is_away_changes_no_answer(client: TestClient, runtime: MemoryRuntime) -> None:
    class Away:
        def add(self, rejected):
            raise StageUnavailable("database is locked")

    runtime.quarantine = Away()
    body = [{"user_id": "ada", "item_id": "s1"}, {"user_id": "ada"}]
    answer = client.post("/v1/events", json=body)
    assert (answer.status_code, answer.json()["accepted"], len(answer.json()["rejected"])) == (202, 1, 1)
    assert is_problem(client.post("/v1/events", json=body[1:]), 422, "nothing-accepted")


def test_one_event_a_named_list_and_ndjson_are_bodies_too(client: TestClient, runtime: MemoryRuntime) -> None:
    event = {"user_id": "u", "item_id": "s1"}
    assert client.post("/v1/events", json=event).json()["accepted"] == 1
    assert client.post("/v1/events", json={"events": [event, event]}).json()["accepted"] == 2
    lines = b'{"user_id":"u","item_id":"s1"}\n\n{broken\n{"user_id":"u","item_id":"s2"}\n'
    answer = client.post("/v1/events", content=lines, headers={"Content-Type": "application/x-ndjson"}).json()
    assert (answer["accepted"], [(each["index"], each["reason"]) for each in answer["rejected"]]) == (
        2,
        [(1, "not_json")],
    )
    assert [(e.rejected.reason, e.rejected.value) for e in runtime.quarantine.list(9)] == [("not_json", b"{broken")]
    assert len(published(runtime, TOPIC_EVENTS)) == 5


def test_the_answer_says_when_a_retry_is_not_recognised_and_which_kinds_nobody_declared(client: TestClient) -> None:
    body = [{"user_id": "u", "item_id": "s1"}, {"user_id": "u", "item_id": "s1", "kind": "stare", "id": "7"}]
    answer = client.post("/v1/events", json=body).json()
    assert (answer["retry_not_recognised"], answer["undeclared_kinds"]) == (1, ["stare"])


def test_a_body_of_which_nothing_is_accepted_is_a_problem_with_each_reason(
    client: TestClient, runtime: MemoryRuntime
) -> None:
    response = client.post("/v1/events", json={"user_id": "ada"})
    assert is_problem(response, 422, "nothing-accepted")
    assert response.json()["rejected"][0]["reason"] == "missing_item_id"
    assert published(runtime, TOPIC_EVENTS) == []


@pytest.mark.parametrize(
    ("content", "status", "name"),
    [(b"{not json", 400, "bad-body"), (b"17", 400, "bad-body"), (b'{"x":"' + b"a" * 100_001 + b'"}', 413, "too-large"),
     (json.dumps([{}] * 101).encode(), 413, "too-large")],
)  # fmt: skip
def test_a_body_that_cannot_be_read_as_a_whole_is_refused(
    client: TestClient, content: bytes, status: int, name: str
) -> None:
    assert is_problem(client.post("/v1/events", content=content), status, name)


@pytest.mark.parametrize("path", ["/v1/events", "/v1/recommendations"])
def test_a_body_without_a_length_is_refused_while_it_streams(client: TestClient, path: str) -> None:
    def endless():
        for _ in range(20):
            yield b" " * 10_000

    headers = {"Content-Type": "application/json"}
    assert is_problem(client.post(path, content=endless(), headers=headers), 413, "too-large")


def test_wait_answers_when_the_features_have_the_events(client: TestClient, runtime: MemoryRuntime) -> None:
    source = runtime.bus.source("features", (TOPIC_EVENTS,))

    def commit_soon() -> None:
        source.poll(100, 0)
        batch = source.poll(100, 2)
        time.sleep(0.05)
        source.commit(batch.next_offsets())

    thread = threading.Thread(target=commit_soon)
    thread.start()
    waited = client.post("/v1/events?wait=features", json={"user_id": "ada", "item_id": "s2"}).json()["waited"]
    thread.join()
    assert (waited["group"], waited["reached"]) == ("features", True)
    assert 40 < waited["milliseconds"] < 300


def test_wait_is_bounded_and_says_that_it_was_not_reached(client: TestClient) -> None:
    waited = client.post("/v1/events?wait=features", json={"user_id": "ada", "item_id": "s2"}).json()["waited"]
    assert waited["reached"] is False
    assert 300 <= waited["milliseconds"] < 1500


@pytest.mark.parametrize("refusals", [3, 10_000])
def test_a_log_that_cannot_be_asked_while_waiting_makes_no_error_of_what_was_taken(
    client: TestClient, runtime: MemoryRuntime, refusals: int
) -> None:
    class Locked:
        asked = 0

        def committed(self, group, topic):
            self.asked += 1
            if self.asked <= refusals:
                raise StageUnavailable("database is locked")
            return {Partition(TOPIC_EVENTS, partition): 9 for partition in (0, 1)}

    runtime.view = Locked()
    response = client.post("/v1/events?wait=features", json={"user_id": "ada", "item_id": "s2"})
    assert response.status_code == 202
    answer = response.json()
    assert (answer["accepted"], answer["waited"]["reached"]) == (1, refusals == 3)
    assert len(published(runtime, TOPIC_EVENTS)) == 1
    assert client.put("/v1/items?wait=catalogue", json={"item_id": "a"}).status_code == 202


def test_when_the_bus_cannot_take_events_the_answer_is_503_and_to_send_again(
    client: TestClient, runtime: MemoryRuntime
) -> None:
    class Full:
        def publish(self, messages):
            raise StageUnavailable("the disk is full")

    runtime.sink = Full()
    response = client.post("/v1/events", json={"user_id": "ada", "item_id": "s2"})
    assert is_problem(response, 503, "unavailable")
    assert response.headers["retry-after"] == "1"


# --------------------------------------------------------------------------------------------------- items


def test_items_are_put_patched_and_deleted_by_message(client: TestClient, runtime: MemoryRuntime) -> None:
    many = [{"item_id": "a", "title": "A", "categories": ["x"]}, {"title": "no id"}, {"item_id": "b", "price": 3}]
    answer = client.put("/v1/items", json=many).json()
    assert answer["accepted"] == 1
    assert [(each["index"], each["reason"]) for each in answer["rejected"]] == [
        (1, "missing_item_id"),
        (2, "unknown_field"),
    ]
    assert client.put("/v1/items/c%2Fd", json={"title": "C"}).status_code == 202
    patch = {"available": False, "updated_at": "2026-01-01T10:00:00Z"}
    assert client.patch("/v1/items/a", json=patch).status_code == 202
    assert client.delete("/v1/items/a").status_code == 202
    found = sorted(published(runtime, TOPIC_ITEMS), key=lambda change: (change.item_id, change.operation))
    assert [(c.item_id, c.operation, dict(c.fields)) for c in found] == [
        ("a", "delete", {}),
        ("a", "patch", {"available": False}),
        ("a", "put", {"title": "A", "categories": ("x",)}),
        ("c/d", "put", {"title": "C"}),
    ]
    assert found[1].updated_at.hour == 10


def test_an_item_answers_with_its_card_and_counts_and_an_unknown_one_is_404(
    client: TestClient, runtime: MemoryRuntime
) -> None:
    put = ItemChange("s1", "put", {"title": "Film s1", "categories": ("Space",)}, NOW, NOW)
    runtime.catalogue.apply([(Coordinate("l", TOPIC_ITEMS, 0, 0), put)])
    answer = client.get("/v1/items/s1").json()
    assert answer["card"]["title"] == "Film s1"
    assert (answer["title"], answer["servable"], answer["counts"]["clicks"]["24h"]) == ("Film s1", True, 8.0)
    assert answer["taken_together"][0]["item_id"] == "s3"
    assert is_problem(client.get("/v1/items/nobody"), 404, "not-found")


# --------------------------------------------------------------------------------- users and operations


def test_a_user_answers_with_history_features_and_freshness(client: TestClient) -> None:
    answer = client.get("/v1/users/ada").json()
    assert answer["known"] is True
    assert [(h["item_id"], h["title"], h["kind"]) for h in answer["history"]] == [("s1", "Film s1", "click")]
    assert answer["seconds_since_newest_event"] == 60.0
    assert [h["item_id"] for h in answer["hidden"]] == ["l2"]
    assert answer["features"]["user_positive_1h"] == pytest.approx(0.6931, abs=1e-4)  # log(1 + 1)
    assert answer["interests"] == [{"category": "Space", "share": 1.0}]
    assert client.get("/v1/users/nobody").json()["known"] is False


def test_releases_runs_and_the_quarantine_are_listed(client: TestClient, runtime: MemoryRuntime) -> None:
    metrics = (Metric("pipeline", "all", "ndcg@10", 0.12, 500),)
    runtime.registry.publish(ReleaseInfo("r1", "/r1", NOW, NOW, reason="first", metrics=metrics))
    assert client.get("/v1/releases").json()["releases"][0]["metrics"][0]["value"] == 0.12
    assert client.post("/v1/releases/r1/promote").json()["live"] == "r1"
    assert client.get("/v1/releases").json()["releases"][0]["live"] is True
    assert is_problem(client.post("/v1/releases/r2/promote"), 404, "not-found")

    runtime.past_runs = (RunInfo("run1", NOW, None, "failed", "demo", "", "no events", (), 3.5),)
    assert client.get("/v1/runs").json()["runs"][0]["message"] == "no events"

    runtime.quarantine.add([Rejected(Coordinate("l", TOPIC_EVENTS, 0, 4), "not_json", "x", b"\xff{", NOW)])
    answer = client.get("/v1/rejected").json()
    assert answer["count"] == {"not_json": 1}
    assert (answer["rejected"][0]["number"], answer["rejected"][0]["value"]) == (1, "\ufffd{")
    assert client.get("/v1/rejected?after=1").json()["rejected"] == []
    assert client.get("/v1/rejected?reason=future").json()["rejected"] == []
    assert len(client.get(f"/v1/rejected?reason=not_json&topic={TOPIC_EVENTS}").json()["rejected"]) == 1


def test_ready_follows_the_worst_part(client: TestClient, runtime: MemoryRuntime) -> None:
    assert client.get("/health/live").json() == {"status": "live"}
    ready = client.get("/health/ready")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)
    runtime.health["bus"] = PartHealth("red", "locked")
    ready = client.get("/health/ready")
    assert (ready.status_code, ready.json()["parts"]["bus"]) == (503, {"state": "red", "detail": "locked"})


def test_metrics_count_requests_by_route_and_show_the_lag(client: TestClient) -> None:
    client.get("/v1/users/metric-user/recommendations")
    client.post("/v1/events", json={"user_id": "u", "item_id": "s1"})
    text = client.get("/metrics").text
    assert 'freshrank_request_seconds_count{route="/v1/users/{user_id}/recommendations"}' in text
    assert "metric-user" not in text
    assert 'freshrank_lag_messages{group="features"} 1.0' in text
    assert 'freshrank_lag_messages{group="catalogue"} 0.0' in text


def test_an_unknown_route_and_a_wrong_method_are_problems(client: TestClient) -> None:
    assert is_problem(client.get("/v2/nothing"), 404, "not-found")
    assert is_problem(client.delete("/v1/rank"), 405, "method-not-allowed")


def test_our_own_mistake_is_a_500_that_gives_nothing_away(runtime: MemoryRuntime) -> None:
    runtime.items = None
    with TestClient(create_app(runtime), raise_server_exceptions=False) as client:
        response = client.get("/v1/trending")
    assert is_problem(response, 500, "internal")
    assert "NoneType" not in response.text


def test_the_lifespan_starts_and_stops_the_runtime(runtime: MemoryRuntime) -> None:
    with TestClient(create_app(runtime)):
        assert runtime.history == ["started"]
    assert runtime.history == ["started", "stopped"]


# -------------------------------------------------------------------------------------------------- OpenAPI


def openapi() -> str:
    document = create_routes(MemoryRuntime(Settings())).openapi()
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def test_the_openapi_document_is_the_golden_one() -> None:
    assert openapi() == GOLDEN.read_text(), "renew it with: python tests/unit/test_api.py"


def test_every_route_has_a_sentence_and_every_body_an_example() -> None:
    document = json.loads(openapi())
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            assert route.get("description"), f"{method} {path} says nothing"
    for name in ("SlateAnswer", "EventsAnswer", "EventBody", "ItemFields", "RankBody", "RecommendationsBody"):
        assert document["components"]["schemas"][name]["examples"], name


if __name__ == "__main__":
    GOLDEN.write_text(openapi())
