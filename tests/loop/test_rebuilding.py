"""Features built anew beside the live ones, over SQLite: from log and archive, crashes, swaps and a way back."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from replay_world import ReplayStory

from services.settings import Settings


class TestOnSqlite(ReplayStory):
    def settings(self, tmp_path: Path, **more: Any) -> Settings:
        return Settings(home=tmp_path / "home", **more)

    def lose_rows(self, settings: Settings) -> None:
        with sqlite3.connect(settings.home / "online.db") as rows:
            rows.execute("DELETE FROM freshrank_user_behaviour")
