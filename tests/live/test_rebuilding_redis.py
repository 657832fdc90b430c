"""Features built anew beside the live ones: the same story as over SQLite, over Redis, and over Kafka, Redis and
PostgreSQL together (whose log forgets by time alone, so the parts of the story that make a log forget are left out)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis
from replay_world import ReplayStory

from services.settings import Settings


class TestOnRedis(ReplayStory):
    @pytest.fixture(autouse=True)
    def _server(self, redis_url: str) -> None:
        self.redis_url = redis_url

    def settings(self, tmp_path: Path, **more: Any) -> Settings:
        return Settings(home=tmp_path / "home", online_store="redis", redis_url=self.redis_url, **more)

    def lose_rows(self, settings: Settings) -> None:
        with redis.Redis.from_url(settings.redis_url) as server:
            server.flushdb()


@pytest.mark.slow
class TestOnServers:
    @pytest.fixture(autouse=True)
    def _servers(self, kafka_servers: str, topic_prefix: str, redis_url: str, database_url: str) -> None:
        self.given = {
            "bus": "kafka", "kafka_servers": kafka_servers, "kafka_prefix": topic_prefix, "online_store": "redis",
            "redis_url": redis_url, "database_url": database_url,
        }  # fmt: skip

    def settings(self, tmp_path: Path, **more: Any) -> Settings:
        return Settings(home=tmp_path / "home", **self.given, **more)

    lose_rows = TestOnRedis.lose_rows
    test_log = ReplayStory.test_rows_built_from_the_log_are_the_live_ones_field_by_field
    test_swap = ReplayStory.test_a_swap_under_traffic_loses_no_event_and_running_processes_come_over
    test_back = ReplayStory.test_there_is_a_way_back_which_first_takes_in_what_came_meanwhile
    test_in_place = ReplayStory.test_lost_live_rows_are_built_anew_in_place_beside_a_running_consumer
