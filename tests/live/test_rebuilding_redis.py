"""Features built anew beside the live ones, over Redis: the same story as over SQLite."""

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
