"""reset, backup, feast: looking after the state of an instance."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.commands.edge import Json, answer, existing, settings_of

if TYPE_CHECKING:
    from services.settings import Settings

MARKS = ("bus.db", "bus.kafka", "meta.db", "online.db", "registry.db", "run.lock")
"""A folder with one of these is a home; anything else is never deleted."""
DATABASES = ("meta.db", "online.db", "registry.db", "spool.db")
DATABASES_BESIDE = ("online.db", "spool.db")
"""Those of a home whose metadata lies in PostgreSQL."""
ROWS = 2000
FOLDERS = ("offline", "archive", "releases", "runs", "encoders")
OWN = (
    *MARKS, *DATABASES, *FOLDERS, "embeddings.db", ".registry.lock", "import", "rejects", "metrics", "logs", "api.json",
    "parity.json", ".parity.json.draft", "run.log", "offsets.json", "manifest.json",
)  # fmt: skip
"""What can lie in a home."""
BESIDE = ("-wal", "-shm", "-journal")
"""Ends of the files that SQLite puts beside a database."""
TRIES = 3
TOPICS_STAY = (
    "Kafka keeps the topics {prefix}freshrank.*; the consumers have forgotten how far they were, so the next run reads"
    " again what is there. Delete the topics, or set another kafka_prefix, to begin with nothing."
)
LOG_IS_ELSEWHERE = (
    "The log is on Kafka and not in the copy. Kafka also keeps how far the consumers are: before the copy is used they"
    " must read again what it lacks, which is harmless. offsets.json in it says where each stood."
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: freshrank reset --yes")(reset)
    app.command(epilog="Example: freshrank backup /var/backups/freshrank-monday")(backup)
    app.command(
        epilog="Example: freshrank feast -- feature-views list",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(feast)


def reset(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Delete all state.

    Events, features, releases, everything under the home; also what is in Redis and PostgreSQL.
    """
    from services import wiring
    from services.domain import BadRequest
    from services.inuse import alone
    from services.settings import without_secrets
    from services.supervisor import RunLock

    settings = settings_of(context)
    home, database = settings.home, without_secrets(settings.database_url)
    existed = home.exists()
    everything = f"Everything under {home}" + (f" and every table of freshrank in {database}" if database else "")
    if existed:
        if not any((home / mark).exists() for mark in MARKS):
            raise BadRequest(f"{home} does not look like an instance of freshrank; nothing was deleted")
        refuse_strangers(home)
        if not yes and not typer.confirm(f"{everything} will be deleted. Go on?"):
            raise BadRequest("nothing was deleted")
        with RunLock(home), alone(home):
            wiring.forget_elsewhere(settings)
            if database:
                _drop_tables(settings)
            wipe(home)
    told = f"{everything} is deleted." if existed else f"There is nothing at {home}; nothing was deleted."
    if existed and settings.bus == "kafka":
        told += f" {TOPICS_STAY.format(prefix=settings.kafka_prefix)}"
    answer(as_json, {"deleted": home if existed else None}, lambda: _say(told))


def _drop_tables(settings: Settings) -> None:
    """Freshrank's and Feast's; nothing else in the database is touched."""
    from services import wiring
    from services.features.opening import drop_registry
    from services.migrations import revisions

    engine = wiring.metadata_as_it_is(settings)
    try:
        if revisions.standing(engine).revision != revisions.BASE:
            revisions.take_down(engine, revisions.BASE)
        drop_registry(engine)
    finally:
        engine.dispose()


def refuse_strangers(home: Path) -> None:
    """Raises BadRequest where a home holds what is not freshrank's: a folder of somebody's was named as the home."""
    from services.domain import BadRequest

    own = {*OWN, *(f"{name}{end}" for name in OWN if name.endswith(".db") for end in BESIDE)}
    strange = sorted(each.name for each in home.iterdir() if each.name not in own)
    if strange:
        raise BadRequest(
            f"{home} holds things that are not freshrank's ({', '.join(strange[:3])}); nothing was deleted"
        )


def wipe(home: Path) -> None:
    """Delete what a home holds; the lock file stays until the end, so nobody can start in between."""
    for each in home.iterdir():
        if each.name == "run.lock":
            continue
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()


def backup(
    context: typer.Context,
    target: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    as_json: Json = False,
) -> None:
    """Copy all state to a new folder.

    Also of a running instance; FRESHRANK_HOME=FOLDER uses the copy. Metadata in PostgreSQL becomes SQLite there.
    """
    from services.domain import BadRequest

    settings = existing(settings_of(context))
    home = settings.home
    if target.exists():
        raise BadRequest(f"{target} exists already; name a new folder")
    half = target.with_name(target.name + ".half")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    with _log_held(settings) as offsets:
        if settings.database_url:
            _copy_tables(settings, half / "meta.db")
        for name in DATABASES if not settings.database_url else DATABASES_BESIDE:
            if (home / name).exists():
                _copy_database(home / name, half / name)
        for name in FOLDERS:
            if (home / name).exists():
                _copy_folder(home / name, half / name)
        if offsets is None:
            _copy_database(home / "bus.db", half / "bus.db")
        else:
            (half / "bus.kafka").touch()
            (half / "offsets.json").write_text(json.dumps(offsets, indent=1) + "\n")
    half.rename(target)
    elsewhere = f" {LOG_IS_ELSEWHERE}" if settings.bus == "kafka" else ""
    size = sum(each.stat().st_size for each in target.rglob("*") if each.is_file())
    answer(
        as_json,
        {"home": home, "backup": target, "bytes": size},
        lambda: _say(
            f"{home} is copied to {target} ({size / 1e6:.1f} MB). FRESHRANK_HOME={target} uses it.{elsewhere}"
        ),
    )


def feast(context: typer.Context) -> None:
    """Feast's own command line.

    On this instance's feature store; its arguments follow --. It prints what Feast prints and knows no --json.
    """
    from services import wiring

    arguments, environment, folder = wiring.feast_command(settings_of(context))
    ended = subprocess.run([*arguments, *context.args], cwd=folder, env=environment, check=False)
    raise typer.Exit(ended.returncode)


@contextmanager
def _log_held(settings: Settings) -> Iterator[dict[str, int] | None]:
    """No offset in the copy is newer than the stores' copies.

    A log in the home accepts and commits nothing meanwhile. Kafka goes on: where its consumers stood before the copy
    began, by group, topic and partition.
    """
    if settings.bus == "kafka":
        yield _offsets(settings)
        return
    connection = sqlite3.connect(settings.home / "bus.db", timeout=10, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield None
    finally:
        connection.close()


def _offsets(settings: Settings) -> dict[str, int]:
    from services import wiring
    from services.lag import GROUP_TOPICS

    with wiring.open_home(settings) as home:
        return {
            f"{group} {partition.topic} {partition.number}": offset
            for group in GROUP_TOPICS
            for topic in home.view.topics(group)
            for partition, offset in home.view.committed(group, topic).items()
        }


def _copy_database(path: Path, target: Path) -> None:
    source, copy = sqlite3.connect(path, timeout=10), sqlite3.connect(target)
    try:
        source.backup(copy)
    finally:
        copy.close()
        source.close()


def _copy_tables(settings: Settings, target: Path) -> None:
    """The metadata in PostgreSQL, at one moment, as an embedded database; Feast makes its registry again."""
    from sqlalchemy import delete, insert, select

    from services import wiring
    from services.sqlite import open_database
    from services.tables import metadata

    source, copy = wiring.open_metadata(settings), open_database(target)
    try:
        snapshot = source.execution_options(isolation_level="REPEATABLE READ", stream_results=True)
        with snapshot.connect() as there, copy.begin() as here:
            for each in metadata.sorted_tables:
                here.execute(delete(each))  # what the revisions put into a new database stands in the source, too
                for rows in there.execute(select(each)).mappings().partitions(ROWS):
                    here.execute(insert(each), [dict(row) for row in rows])
    finally:
        copy.dispose()
        source.dispose()


def _copy_folder(folder: Path, target: Path) -> None:
    """A copy of a folder in which parts may be merged meanwhile: again when a manifest changed or a part went away."""
    for _ in range(TRIES):
        try:
            shutil.copytree(folder, target, dirs_exist_ok=True)
        except shutil.Error:
            continue
        if _manifests(folder) == _manifests(target):
            return
    raise OSError(f"{folder} kept changing while it was copied; try again, or stop the instance first")


def _manifests(folder: Path) -> dict[Path, bytes]:
    return {each.relative_to(folder): each.read_bytes() for each in folder.rglob("manifest.json")}


def _say(sentence: str) -> None:
    sys.stdout.write(sentence + "\n")
