"""Which encoder the texts of an instance are embedded by: the one that the live release was fitted to.

That is what the setting `text_encoder` names, or one that was tuned from it on the instance's own events: a folder
under `encoders/` of the home, named by its digest, which releases name in their manifest. So promotion and rollback of
a release are a change of encoder, too, and nothing else has to be switched.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import Engine

from models.text import EncoderMissing, TextEncoder, encoder_name, folder_digest, open_encoder
from services.catalogue.cards import card_text, hash_of_text
from services.catalogue.embeddings import CACHE_FILE, CachedEncoder, EmbeddingCache
from services.catalogue.live import write_parts
from services.domain import FreshrankError, ItemCard, ReleaseInfo, SettingsInvalid
from services.item_parts import ItemChanged, VectorPart
from services.items import ItemTable
from services.settings import Settings

if TYPE_CHECKING:
    from models.tuning import Tuned

FOLDER = "encoders"
TUNED = "-tuned"
EMBEDDED_AT_ONCE = 1024
MANIFEST = "manifest.json"
MADE_FROM = "freshrank.json"
"""A file in the folder of a tuned encoder that says what it was tuned from."""
UNCACHED = ("hashing-", "none", "tiny")
"""Encoders that are done sooner than a cache is asked."""
ALWAYS_THERE = ("auto", "cpu")
"""Devices that need no look, for which PyTorch would have to be loaded: an encoder without a model does without."""
log = structlog.get_logger()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def in_effect(setting: str, home: Path, live: ReleaseInfo | None) -> str:
    """What to open: the tuned encoder that the live release names, where it was tuned from `setting`; else that."""
    named = encoder_of(Path(live.path)) if live else ""
    folder = home / FOLDER / named
    return str(folder) if named and tuned_from(folder) == setting else setting


def encoder_of(release: Path) -> str:
    """The name of the encoder whose vectors a release takes; empty where its manifest does not say so."""
    try:
        said = json.loads((release / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(said.get("embedded_by", "")) if isinstance(said, dict) else ""


def tuned_from(folder: Path) -> str:
    """The setting that an encoder was tuned from; empty for one that was not tuned here."""
    try:
        said = json.loads((folder / MADE_FROM).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(said.get("setting", "")) if isinstance(said, dict) else ""


def keep_tuned(tuned: Tuned, base: str, setting: str, home: Path) -> Path:
    """The folder of a tuned encoder under `encoders/`, whole or not at all, named after what it was tuned from (`base`)
    and by its digest."""
    beside = home / FOLDER / ".writing"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    tuned.model.save_pretrained(beside)
    tuned.tokenizer.save_pretrained(beside)
    (beside / MADE_FROM).write_text(json.dumps({"setting": setting, "base": base}) + "\n")
    stem = base.partition("@")[0].replace("/", "-").removesuffix(TUNED)
    folder = home / FOLDER / f"{stem}{TUNED}@{folder_digest(beside)}"
    for each in (*beside.iterdir(), beside):
        _sync(each)
    if not folder.exists():
        os.replace(beside, folder)
        _sync(folder.parent)
    return folder


def forget_encoders(home: Path, kept: Collection[str]) -> None:
    """Remove the tuned encoders of other names."""
    for folder in (home / FOLDER).glob("*"):
        if folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def texts_of(cards: Iterable[ItemCard]) -> dict[str, str]:
    """The texts of the cards that have one, by item."""
    return {card.item_id: text for card in cards if (text := card_text(card))}


def complete(table: ItemTable, texts: Mapping[str, str], name: str, opened: Callable[[], TextEncoder]) -> None:
    """Embed what a table has no vector of by the encoder `name`, which is opened only if there is any."""
    missing = {item_id: text for item_id, text in texts.items() if table.vector(item_id, name) is None}
    if missing:
        for parts in embedded(missing, opened()):
            table.apply(ItemChanged(item_id, part, table.as_of) for item_id, part in parts)


def write_beside(engine: Engine, texts: Mapping[str, str], encoder: TextEncoder) -> None:
    """The vectors of these texts into the change feed, beside those of other encoders."""
    for parts in embedded(texts, encoder):
        with engine.begin() as connection:
            write_parts(connection, parts)


def embedded(texts: Mapping[str, str], encoder: TextEncoder) -> Iterator[list[tuple[str, VectorPart]]]:
    """Texts by item into parts of the change feed, some at a time."""
    item_ids = list(texts)
    for start in range(0, len(item_ids), EMBEDDED_AT_ONCE):
        some = item_ids[start : start + EMBEDDED_AT_ONCE]
        vectors = encoder.embed([texts[item_id] for item_id in some]).astype("<f2")
        pairs = zip(some, vectors, strict=True)
        yield [(i, VectorPart(encoder.name, vector.tobytes(), hash_of_text(texts[i]))) for i, vector in pairs]


def open_cached(source: str, settings: Settings, cache: EmbeddingCache, threads: int = 0) -> TextEncoder:
    """An encoder, behind the cache where that pays. Raises SettingsInvalid."""
    try:
        if settings.device not in ALWAYS_THERE:
            from models.device import pick_device

            pick_device(settings.device)
        encoder = open_encoder(source, settings.device, settings.text_batch_max, threads)
    except EncoderMissing as error:
        raise SettingsInvalid(f"text_encoder={source!r} is refused: {error}") from error
    except ValueError as error:
        raise SettingsInvalid(f"device={settings.device!r} is refused: {error}") from error
    return encoder if encoder.name.startswith(UNCACHED) else CachedEncoder(encoder, cache)


def name_of(source: str) -> str:
    """The name that `open_cached(source, ...)` will have. Raises SettingsInvalid."""
    try:
        return encoder_name(source)
    except EncoderMissing as error:
        raise SettingsInvalid(f"text_encoder={source!r} is refused: {error}") from error


def behind_cache(encoder: TextEncoder) -> TextEncoder:
    """The encoder that does the work."""
    return encoder.inner if isinstance(encoder, CachedEncoder) else encoder


def opener(settings: Settings, now: Callable[[], datetime], threads: int = 0) -> Callable[[str], TextEncoder]:
    """Opens encoders behind the cache of an instance. What it returns raises SettingsInvalid."""
    cache = home_cache(settings, now)
    return lambda source: open_cached(source, settings, cache, threads)


def home_cache(settings: Settings, now: Callable[[], datetime]) -> EmbeddingCache:
    """The cache of an instance."""
    return EmbeddingCache(settings.home / CACHE_FILE, settings.text_cache_bytes_max, now)


def user_cache(settings: Settings, now: Callable[[], datetime]) -> EmbeddingCache:
    """The cache of a person and not of an instance, for evaluation on files."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return EmbeddingCache(Path(root) / "freshrank" / CACHE_FILE, settings.text_cache_bytes_max, now)


class FollowedEncoder:
    """The encoder in effect, asked again and again; opened when it changes. A tuned one that cannot be opened is named
    once, and the one before (at the start the setting's) stays: a release does not take the vectors of another encoder
    than its own, so they do no harm."""

    def __init__(
        self,
        setting: str,
        home: Path,
        live: Callable[[], ReleaseInfo | None],
        opened: Callable[[str], TextEncoder],
    ) -> None:
        self._setting = setting
        self._home = home
        self._live = live
        self._opened = opened
        self._encoder: TextEncoder | None = None
        self._source = ""
        self._release: str | None = None
        self._refused = ""

    def __call__(self) -> TextEncoder:
        """The encoder for the texts that are embedded now. Raises SettingsInvalid where there never was one."""
        live = self._live()
        release = live.release_id if live else None
        if self._encoder is None:
            source = in_effect(self._setting, self._home, live)
            if source == self._setting or not self._change(source):
                self._encoder, self._source = self._opened(self._setting), self._setting
        if release != self._release:
            source = in_effect(self._setting, self._home, live)
            if source == self._source or self._change(source):
                self._release = release
        assert self._encoder is not None, "the encoder of the setting was opened, or that raised"
        return self._encoder

    def _change(self, source: str) -> bool:
        try:
            self._encoder = self._opened(source)
        except FreshrankError as error:
            if source != self._refused:
                log.error("encoder_refused", encoder=source, error=str(error))
            self._refused = source
            return False
        self._source = source
        log.info("encoder_in_effect", encoder=self._encoder.name)
        return True
