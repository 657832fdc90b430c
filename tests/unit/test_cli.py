"""The command line: every command has help with an example, starts without anything heavy, and ends a mistake with
one sentence and a code. Called in-process; as a process where what is imported is the point."""

from __future__ import annotations

import base64
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from model_world import tiny_release
from typer.main import get_command
from typer.testing import CliRunner

from services.archive.rejected import SqlQuarantine
from services.bus.embedded import EmbeddedBus
from services.cli import app, main
from services.commands.edge import age, table
from services.commands.look import markdown_page, print_slate, why_empty
from services.domain import Coordinate, Outgoing, Pick, Reason, ReleaseInfo, Slate
from services.memory import MemoryBus
from services.quarantine import Rejected
from services.settings import Settings, load_settings
from services.sqlite import open_database
from services.supervisor import RunLock
from services.wiring import open_home

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    "demo", "import", "run", "consume", "serve", "retrain", "tune-text", "parity", "evaluate", "recommend", "user",
    "settings", "status", "reset", "backup", "feast", "migrate", "rejected", "replay",
)  # fmt: skip
HEAVY = ("feast", "torch", "faiss", "transformers", "pandas", "duckdb", "sqlalchemy", "fastapi", "numpy")


@dataclass(frozen=True, slots=True)
class Told:
    returncode: int
    stdout: str
    stderr: str


Freshrank = Callable[..., Told]


@pytest.fixture
def freshrank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Freshrank:
    """The entry point, called in this process in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FRESHRANK_CONFIG", raising=False)

    def call(home: Path, *arguments: str) -> Told:
        monkeypatch.setenv("FRESHRANK_HOME", str(home))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        printed = capsys.readouterr()
        return Told(int(ended.value.code or 0), printed.out, printed.err)

    return call


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "instance"


@pytest.fixture
def filled(home: Path, tmp_path: Path, freshrank: Freshrank) -> Path:
    """A home with three events and one item in its log, and one line that cannot be read."""
    clicks = tmp_path / "clicks.csv"
    clicks.write_text("customer,item,when\nu1,i1,2026-01-01\nu1,i2,2026-01-02\nu2,i1,2026-01-03\nu3,,2026-01-03\n")
    items = tmp_path / "items.jsonl"
    items.write_text('{"item_id": "i1", "title": "First"}\n')
    told = freshrank(
        home, "import", str(clicks), "--items", str(items), "--map", "user_id=customer", "--map", "occurred_at=when",
        "--no-wait", "--json",
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    fields = json.loads(told.stdout)
    assert (fields["events"], fields["items"], sum(fields["rejected"].values())) == (3, 1, 1)
    assert Path(fields["rejects_path"]).read_text().count("\n") == 1
    return home


def test_there_is_a_command_for_every_task_and_no_other() -> None:
    assert tuple(get_command(app).commands) == COMMANDS  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    told = CliRunner().invoke(app, [command, "--help"])
    assert told.exit_code == 0
    assert f"Example: freshrank {command}" in told.output


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "feast"])
def test_every_command_that_answers_answers_in_json_too(command: str) -> None:
    assert "--json" in CliRunner().invoke(app, [command, "--help"]).output


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom typer.testing import CliRunner\nfrom services.cli import app\n"
        "CliRunner().invoke(app, ['demo', '--help'])\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert told.stdout.strip() == ""


def test_the_version_is_that_of_the_package() -> None:
    told = CliRunner().invoke(app, ["--version"])
    assert told.exit_code == 0
    assert told.output.startswith("freshrank 0.")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("status",), "there is no instance at"),
        (("consume", "cooks"), "there is no consumer 'cooks'; there are features, trends, archive, catalogue"),
        (("evaluate", "--protocol", "magic"), "there is no protocol 'magic'"),
        (("evaluate", "--blocks", "hstu"), "--blocks goes with --events FILE, which is not given"),
        (
            ("evaluate", "--events", "e", "--items", "i", "--out", "o", "--blocks", "lstm"),
            "--blocks is ligr, sasrec or hstu, not 'lstm'",
        ),
        (
            ("evaluate", "--events", "e", "--items", "i", "--out", "o", "--size", "huge"),
            "--size is small, base or large, not 'huge'",
        ),
        (("retrain", "--effort", "heroic"), "effort='heroic' is refused"),
        (("import",), "name at least one file"),
        (("import", "nowhere.csv"), "there is no file nowhere.csv"),
        (
            ("import", "Online-Retail"),
            "there is no file Online-Retail; that data set is brought in by --recipe online-retail",
        ),
        (("import", "--recipe", "magic"), "there is no recipe 'magic'"),
        (("backup", "copy"), "there is no instance at"),
        (("user", ""), "user_id must have 1 to 256 characters"),
        (("user", " "), "user_id must have 1 to 256 characters"),
        (("recommend", ""), "user_id must have 1 to 256 characters"),
    ],
    ids=lambda each: "-".join(each) if isinstance(each, tuple) else "",
)
def test_a_mistake_ends_with_one_sentence_and_code_2(
    home: Path, arguments: Sequence[str], sentence: str, freshrank: Freshrank
) -> None:
    told = freshrank(home, *arguments)
    assert told.returncode == 2
    assert told.stderr.startswith(f"freshrank: {sentence}")
    assert told.stderr.count("\n") == 1
    assert told.stdout == ""


def test_a_bad_setting_is_named_with_its_value(home: Path, tmp_path: Path, freshrank: Freshrank) -> None:
    (tmp_path / "freshrank.toml").write_text("api_port = 'x'\n")
    told = freshrank(home, "status")
    assert told.returncode == 2
    assert told.stderr.startswith("freshrank: api_port='x' is refused")


def test_status_counts_what_is_not_taken_in_yet(filled: Path, freshrank: Freshrank) -> None:
    fields = json.loads(freshrank(filled, "status", "--json").stdout)
    assert fields["lag"] == {"features": 3, "trends": 3, "archive": 4, "catalogue": 1}
    assert (fields["running"], fields["api"], fields["release"]) == (None, None, None)


LOOKS = (("status",), ("rejected",), ("user", "ann"), ("recommend", "ann"), ("evaluate",), ("backup", "copy"))


@pytest.mark.parametrize("command", LOOKS, ids=lambda command: command[0])
@pytest.mark.parametrize("is_there", [False, True], ids=("no folder", "a folder"))
def test_looking_at_no_instance_says_so_and_makes_none(
    home: Path, command: Sequence[str], is_there: bool, freshrank: Freshrank
) -> None:
    if is_there:
        home.mkdir()
    told = freshrank(home, *command)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith(f"freshrank: there is no instance at {home}; ")
    assert told.stderr.count("\n") == 1
    assert [each.name for each in home.parent.rglob("*")] == (["instance"] if is_there else [])


def test_a_list_without_a_release_and_an_empty_one_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    pick = Pick("i1", 0, 0.5, "trending", Reason("trending", (), "many take it"))
    slate = Slate("r", "ann", None, 0, 0, (pick,), (), (), at)
    print_slate(slate, {"i1": "First"}, "")
    assert "For ann: no release yet: trending and new items" in capsys.readouterr().out
    print_slate(replace(slate, release_id="r9"), {"i1": "First"}, "")
    assert "For ann by release r9" in capsys.readouterr().out
    print_slate(replace(slate, items=()), {}, "Nothing has come in yet.")
    assert capsys.readouterr().out == "There is nothing to show to ann. Nothing has come in yet.\n"


def test_a_live_release_that_is_damaged_is_said_to_be_refused_not_missing(filled: Path, freshrank: Freshrank) -> None:
    assert freshrank(filled, "consume", "trends", "catalogue", "--until-caught-up").returncode == 0
    assert "no release yet" in freshrank(filled, "recommend", "stranger").stdout
    tiny_release("r1").save(filled / "releases" / "r1")
    weights = filled / "releases" / "r1" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    at = datetime.now(UTC)
    with open_home(load_settings(home=filled)) as home:
        home.registry.publish(ReleaseInfo("r1", str(weights.parent), at, at))
        home.registry.promote("r1")
    told = freshrank(filled, "recommend", "stranger")
    assert told.returncode == 0
    assert "For stranger: release r1 was refused (why stands on stderr): trending and" in " ".join(told.stdout.split())
    assert "weights.safetensors" in told.stderr


def test_an_empty_list_has_its_cause_and_what_to_do() -> None:
    bus = MemoryBus(1, lambda: datetime(2026, 1, 1, tzinfo=UTC))
    assert "`freshrank import FILE`" in why_empty(bus.view())
    bus.publish([Outgoing("freshrank.events", "ann", b"{}")])
    assert "`freshrank consume features trends --until-caught-up`" in why_empty(bus.view())
    for group in ("features", "trends"):
        source = bus.source(group, ("freshrank.events",))
        source.poll(10, 0)
        source.commit(source.poll(10, 0).next_offsets())
    assert "Every item known was taken" in why_empty(bus.view())


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.25, "0.2 s"),
        (61, "1 min 1 s"),
        (3600, "1 h 0 min"),
        (90_000, "1 d 1 h"),
        (86_400 * 4000 + 7200, "4000 d 2 h"),
    ],
)
def test_an_age_is_said_in_the_units_that_matter(seconds: float, said: str) -> None:
    assert age(seconds) == said


@pytest.mark.parametrize("command", ["serve", "run"])
def test_one_line_of_json_says_where_it_answers_and_which_process_to_stop(home: Path, command: str) -> None:
    environment = os.environ | {"FRESHRANK_HOME": str(home), "FRESHRANK_TEXT_ENCODER": "hashing"}
    called = (sys.executable, "-m", "services.cli", command, "--port", "0", "--json")
    with subprocess.Popen(
        called, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            with urllib.request.urlopen(f"{told['url']}/health/live") as answer:
                assert answer.status == 200
        finally:
            process.terminate()
            rest, _ = process.communicate(timeout=60)
    assert (told["pid"], told["home"], rest) == (process.pid, str(home), "")


def import_and_interrupt(home: Path, events: Path, seen: str, number: int) -> Told:
    """An import in a process of its own, interrupted once a file like `seen` is in its home."""
    command = (sys.executable, "-m", "services.cli", "import", str(events), "--json")
    environment = os.environ | {"FRESHRANK_HOME": str(home), "FRESHRANK_TEXT_ENCODER": "hashing"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        until = time.monotonic() + 60
        while not any(home.glob(seen)) and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(number)
        printed, told = process.communicate(timeout=60)
    return Told(process.returncode, printed, told)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=("Ctrl-C", "SIGTERM"))
def test_an_import_interrupted_while_it_reads_ends_with_one_sentence(
    home: Path, tmp_path: Path, number: int, freshrank: Freshrank
) -> None:
    events = tmp_path / "many.csv"
    events.write_text("user_id,item_id,occurred_at\n" + "u,i,2026-01-01\n" * 300_000)
    told = import_and_interrupt(home, events, "import/import-*/rows.duckdb", number)
    assert (told.returncode, told.stdout) == (130, "")
    assert told.stderr == "freshrank: interrupted while reading many.csv; the same import again brings in the rest\n"
    assert list((home / "import").iterdir()) == []
    assert json.loads(freshrank(home, "status", "--json").stdout)["accepted"]["freshrank.events"] == 0


def test_an_import_interrupted_while_it_is_taken_in_ends_with_one_sentence_and_can_go_on(
    home: Path, tmp_path: Path, freshrank: Freshrank
) -> None:
    events = tmp_path / "few.csv"
    events.write_text("user_id,item_id,occurred_at\nu,i,2026-01-01\n")
    told = import_and_interrupt(home, events, "registry.db", signal.SIGINT)
    assert (told.returncode, told.stdout) == (130, ""), told.stderr
    assert told.stderr.startswith("freshrank: interrupted: 1 events and 0 items are in the log")
    assert told.stderr.count("\n") == 1
    told = freshrank(home, "consume", "features", "--until-caught-up", "--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(freshrank(home, "status", "--json").stdout)["lag"]["features"] == 0


def test_rejected_says_where_each_message_stood(filled: Path, freshrank: Freshrank) -> None:
    engine = open_database(filled / "meta.db", 1000)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    SqlQuarantine(engine).add(
        [
            Rejected(Coordinate("l1", "freshrank.events", 3, 7), "not_json", "x", b"{", at),
            Rejected(Coordinate("api", "freshrank.events", 0, 17), "future", "x", b"{}", at),
        ]
    )
    engine.dispose()
    fields = json.loads(freshrank(filled, "rejected", "--json").stdout)
    assert fields["counts"] == {"future": 1, "not_json": 1}
    places = [each["place"] for each in fields["rejected"]]
    assert places == ["freshrank.events/3@7", "freshrank.events, refused by the API"]


ESCAPING = b'{"user_id":"ann","item_id":"\x1b[2J\xff"}'
TIMELESS = b'{"user_id":"ann","event_id":"e9","item_id":"","occurred_at":"2026-01-01T00:00:00Z"}'


@pytest.fixture
def with_rejected(filled: Path) -> Path:
    """Three entries: bytes that a terminal would obey, an event without an item, a late item."""
    engine = open_database(filled / "meta.db", 1000)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    SqlQuarantine(engine).add(
        [
            Rejected(Coordinate("l1", "freshrank.events", 3, 7), "not_utf8", "x", ESCAPING, at, "ann"),
            Rejected(Coordinate("l1", "freshrank.events", 3, 8), "empty_item_id", "x", TIMELESS, at, "ann"),
            Rejected(Coordinate("l1", "freshrank.items", 0, 1), "not_json", "x", b"{", at + timedelta(days=1), "i"),
        ]
    )
    engine.dispose()
    return filled


def numbers(told: Told) -> list[int]:
    assert told.returncode == 0, told.stderr
    return [each["number"] for each in json.loads(told.stdout)["rejected"]]


def test_rejected_lists_by_reason_topic_and_time(with_rejected: Path, freshrank: Freshrank) -> None:
    home = with_rejected
    first, second, third = numbers(freshrank(home, "rejected", "--json"))
    assert numbers(freshrank(home, "rejected", "list", "--json")) == [first, second, third]
    assert numbers(freshrank(home, "rejected", "list", "--reason", "empty_item_id", "--json")) == [second]
    assert numbers(freshrank(home, "rejected", "list", "--topic", "items", "--json")) == [third]
    assert numbers(freshrank(home, "rejected", "list", "--since", "2026-01-02", "--json")) == [third]
    assert numbers(freshrank(home, "rejected", "list", "--until", "2026-01-02", "--limit", "1", "--json")) == [first]
    for bad in (("--topic", "nothing"), ("--since", "soon")):
        told = freshrank(home, "rejected", "list", *bad)
        assert (told.returncode, told.stderr.count("\n")) == (2, 1)


def test_rejected_shows_bytes_so_that_a_terminal_only_shows_them(with_rejected: Path, freshrank: Freshrank) -> None:
    number = numbers(freshrank(with_rejected, "rejected", "--json"))[0]
    for command in (("rejected",), ("rejected", "show", str(number))):
        told = freshrank(with_rejected, *command)
        assert told.returncode == 0, told.stderr
        assert "\x1b[2J" not in told.stdout
        assert told.stdout.replace("\n", "").isprintable()
    assert "\\x1b[2J\\xff" in told.stdout
    fields = json.loads(freshrank(with_rejected, "rejected", "show", str(number), "--json").stdout)
    assert base64.b64decode(fields["base64"]) == ESCAPING
    assert (fields["reason"], fields["place"], fields["key"]) == ("not_utf8", "freshrank.events/3@7", "ann")
    told = freshrank(with_rejected, "rejected", "show", "99")
    assert (told.returncode, told.stderr) == (
        2, "freshrank: there is no entry 99; `freshrank rejected list` shows what there is\n",
    )  # fmt: skip


def test_rejected_replays_once_what_was_set_given_or_edited(
    with_rejected: Path, freshrank: Freshrank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = with_rejected
    first, second, third = (str(number) for number in numbers(freshrank(home, "rejected", "--json")))
    told = freshrank(home, "rejected", "replay", second)
    assert (told.returncode, "it still cannot be read: empty_item_id" in told.stderr) == (2, True)
    told = freshrank(home, "rejected", "replay", second, "--set", "item_id=i1", "--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["replay_of"] == "l1/freshrank.events/3@8"
    assert "was replayed at" in freshrank(home, "rejected", "replay", second, "--set", "item_id=i1").stderr
    mended = tmp_path / "mended.json"
    mended.write_bytes(b'{"user_id":"ann","event_id":"e8","item_id":"i2","occurred_at":"2025-12-31T00:00:00Z"}\n')
    assert freshrank(home, "rejected", "replay", first, "--value-file", str(mended)).returncode == 0
    monkeypatch.setenv("EDITOR", "false")
    assert "nothing was replayed" in freshrank(home, "rejected", "replay", third, "--edit").stderr
    item = '{"v":1,"item_id":"i9","operation":"put","fields":{"title":"Ninth"}}'
    editor = tmp_path / "editor"
    editor.write_text(f"#!/bin/sh\ngrep -qx '{{' \"$1\" && echo '{item}' > \"$1\"\n")
    editor.chmod(0o755)
    monkeypatch.setenv("EDITOR", str(editor))
    told = freshrank(home, "rejected", "replay", third, "--edit")
    assert told.returncode == 0, told.stderr
    assert numbers(freshrank(home, "rejected", "list", "--open", "--json")) == []
    told = freshrank(home, "consume", "features", "archive", "catalogue", "--until-caught-up", "--json")
    assert told.returncode == 0, told.stderr
    history = json.loads(freshrank(home, "user", "ann", "--json").stdout)["history"]
    assert [each["item_id"] for each in history] == ["i1", "i2"]
    counts = json.loads(freshrank(home, "rejected", "--json").stdout)["counts"]
    assert sum(counts.values()) == 3  # the replayed ones were read


def test_a_damaged_log_ends_with_one_sentence_and_code_1(filled: Path, freshrank: Freshrank) -> None:
    for each in filled.glob("bus.db*"):
        each.unlink()
    (filled / "bus.db").write_bytes(b"this is no database" * 100)
    told = freshrank(filled, "status")
    assert told.returncode == 1
    assert told.stderr.startswith("freshrank: ")
    assert told.stderr.count("\n") == 1


def test_settings_name_the_source_of_each_value(home: Path, tmp_path: Path, freshrank: Freshrank) -> None:
    (tmp_path / "freshrank.toml").write_text("seed = 7\n")
    fields = json.loads(freshrank(home, "settings", "--json").stdout)
    assert (fields["seed"]["value"], fields["seed"]["from"]) == (7, "freshrank.toml")
    assert (fields["home"]["value"], fields["home"]["from"]) == (str(home), "environment")
    assert fields["effort"]["from"] == "default"


def test_the_page_of_the_settings_is_as_the_code_has_them() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == markdown_page(Settings)


def test_reset_deletes_a_home_and_only_a_home(filled: Path, tmp_path: Path, freshrank: Freshrank) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    told = freshrank(precious, "reset", "--yes")
    assert told.returncode == 2
    assert "does not look like an instance" in told.stderr
    assert (precious / "thesis.txt").exists()
    (filled / "thesis.txt").write_text("years of work")
    told = freshrank(filled, "reset", "--yes")
    assert told.returncode == 2
    assert "holds things that are not freshrank's (thesis.txt); nothing was deleted" in told.stderr
    (filled / "thesis.txt").unlink()
    told = freshrank(filled, "reset", "--yes")
    assert (told.returncode, told.stdout) == (0, f"Everything under {filled} is deleted.\n")
    assert [each.name for each in filled.iterdir()] == ["run.lock"]
    assert freshrank(filled, "status").stderr.startswith("freshrank: there is no instance at")
    told = freshrank(tmp_path / "nowhere", "reset", "--yes")
    assert told.stdout == f"There is nothing at {tmp_path / 'nowhere'}; nothing was deleted.\n"


@pytest.mark.parametrize("command", ["run", "serve", "demo"])
@pytest.mark.parametrize("port", ["-5", "70000"])
def test_a_port_that_is_none_is_refused(command: str, port: str, tmp_path: Path, freshrank: Freshrank) -> None:
    told = freshrank(tmp_path / "home", command, "--port", port)
    assert told.returncode == 2
    assert "Invalid value for '--port'" in told.stderr


def test_reset_and_run_are_refused_while_somebody_runs_on_the_home(filled: Path, freshrank: Freshrank) -> None:
    with RunLock(filled):
        for command in (("reset", "--yes"), ("run",)):
            told = freshrank(filled, *command)
            assert told.returncode == 2
            assert f"in use by process {os.getpid()}" in told.stderr
    assert (filled / "bus.db").exists()


def test_a_backup_is_a_home_of_its_own_with_everything_in_it(
    filled: Path, tmp_path: Path, freshrank: Freshrank
) -> None:
    target = tmp_path / "copy"
    told = freshrank(filled, "backup", str(target), "--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(freshrank(target, "status", "--json").stdout)["lag"]["archive"] == 4
    assert freshrank(filled, "backup", str(target)).returncode == 2


def test_a_backup_holds_the_events_that_still_wait_for_the_log(
    filled: Path, tmp_path: Path, freshrank: Freshrank
) -> None:
    message = Outgoing("freshrank.events", "ann", b"{}")
    spool = EmbeddedBus(filled / "spool.db", 1, 1000, 0, now=lambda: datetime.now(UTC)).open()
    spool.sink().publish([message])
    spool.close()
    assert freshrank(filled, "backup", str(tmp_path / "copy")).returncode == 0
    copied = EmbeddedBus(tmp_path / "copy" / "spool.db", 1, 1000, 0, now=lambda: datetime.now(UTC)).open()
    assert sum(copied.view().ends("freshrank.events").values()) == 1
    copied.close()


def test_a_backup_leaves_the_log_usable(filled: Path, tmp_path: Path, freshrank: Freshrank) -> None:
    assert freshrank(filled, "backup", str(tmp_path / "copy")).returncode == 0
    connection = sqlite3.connect(filled / "bus.db", timeout=0, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    connection.close()


def test_a_table_that_is_not_written_to_a_terminal_is_as_wide_as_a_page(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    table("", ("what", "value"), [("x" * 100, "whole")])
    told = capsys.readouterr().out
    assert "x" * 100 in told
    assert "whole" in told
