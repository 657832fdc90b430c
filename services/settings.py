"""The settings: one frozen, typed object. Defaults, then `freshrank.toml`, then environment (`FRESHRANK_...`).

Units stand last in names. `freshrank settings` prints them with their source; `docs/settings.md` is
generated from here.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from services.domain import KindRule, KindRules, SettingsInvalid
from services.mix import Mix

if TYPE_CHECKING:
    from services.bounds import Bounds

TOML_NAME = "freshrank.toml"
REDIS_SCHEMES = ("redis://", "rediss://", "unix://", "redis+cluster://", "rediss+cluster://")
LOOPBACK = ("127.0.0.1", "::1", "localhost")

DEFAULT_KINDS: dict[str, KindRule] = {
    "click": KindRule("positive", 1.0),
    "view": KindRule("positive", 0.5),
    "play": KindRule("positive", 1.0),
    "read": KindRule("positive", 1.0),
    "like": KindRule("positive", 2.0),
    "share": KindRule("positive", 2.0),
    "comment": KindRule("positive", 1.5),
    "cart": KindRule("positive", 2.0),
    "purchase": KindRule("positive", 3.0),
    "rating": KindRule("positive", 1.0, threshold=6.0),
    "hide": KindRule("negative", 1.0),
    "dislike": KindRule("negative", 1.0),
    "impression": KindRule("neutral", 0.0),
}


class Settings(BaseSettings):
    """Everything that can be set, each with a default and a sentence."""

    model_config = SettingsConfigDict(
        env_prefix="FRESHRANK_", env_nested_delimiter="__", frozen=True, extra="forbid",
        allow_inf_nan=False,
    )  # fmt: skip

    home: Path = Field(Path(".freshrank"), description="Folder that holds all state of this instance.")

    bus: Literal["embedded", "kafka"] = Field("embedded", description="The log: a file in the home, or Kafka.")
    bus_partitions: int = Field(4, ge=1, le=4096, description="Partitions of each topic of a new log.")
    bus_retention_hours: float = Field(
        24 * 14, gt=0, description="How long the log keeps what every group has read (Kafka: read or not)."
    )
    bus_session_s: float = Field(
        30.0, ge=5, description="Silence after which a consumer of the embedded log loses its partitions to others."
    )
    bus_busy_timeout_ms: int = Field(5000, ge=1, description="How long a write waits for a locked database.")

    online_store: Literal["sqlite", "redis"] = Field("sqlite", description="Where user rows are read from by servers.")
    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="redis://user:password@host:port/0, rediss:// (TLS), unix://; redis+cluster:// for a Cluster.",
    )
    redis_key_prefix: str = Field(
        "freshrank", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="Begin of every key; one per instance on a server."
    )
    redis_batch_max: int = Field(500, ge=1, description="Rows written or read in one round trip to Redis.")
    redis_connections_max: int = Field(64, ge=1, description="Connections to Redis of one process, per use.")
    redis_allow_volatile: bool = Field(
        False, description="Start also where Redis may lose rows: no appendonly file, or an eviction policy."
    )

    database_url: str = Field(
        "", description="PostgreSQL for metadata: postgresql://user:password@host/name; empty: SQLite in the home."
    )
    database_pool_max: int = Field(10, ge=1, description="Connections to PostgreSQL that a process keeps at most.")
    database_connect_wait_ms: int = Field(3000, ge=1000, description="Longest wait for a connection to PostgreSQL.")
    database_lock_wait_ms: int = Field(10_000, ge=1, description="Longest wait for a lock in PostgreSQL.")
    database_statement_wait_ms: int = Field(15_000, ge=1, description="Longest wait for a statement in PostgreSQL.")
    migrate_at_start: bool = Field(
        True, description="Bring an older database up to date at start; else only `freshrank migrate up` does."
    )

    kafka_servers: str = Field("127.0.0.1:9092", description="Brokers to begin with, host:port, comma-separated.")
    kafka_prefix: str = Field(
        "", pattern=r"^[A-Za-z0-9._-]*$", max_length=64, description="Begins the names of all topics and groups there."
    )
    kafka_security: dict[str, str] = Field(
        {}, description="TLS and SASL options of kafka-python, as security_protocol, ssl_cafile, sasl_mechanism."
    )
    kafka_replication: int = Field(1, ge=1, description="Copies of each topic that is made; 3 on a cluster.")
    kafka_compression: Literal["none", "gzip", "lz4"] = Field("lz4", description="Compression of what is published.")
    kafka_buffer_messages_max: int = Field(
        20_000, ge=1, description="Messages of one process that may wait for Kafka; more are refused at once."
    )
    kafka_deadline_ms: int = Field(
        6000, ge=1500, description="Longest wait for Kafka: a publication, a commit, a question."
    )
    kafka_session_timeout_ms: int = Field(
        10_000, ge=6000, description="Silence after which a consumer loses its partitions to others."
    )
    kafka_poll_interval_ms_max: int = Field(
        300_000, ge=10_000, description="Longest work on one batch; a consumer that takes longer loses its partitions."
    )
    kafka_instance_id: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]*$",
        max_length=100,
        description="A name of this process that survives a restart: it gets its partitions back without a rebalance.",
    )

    api_host: str = Field("127.0.0.1", description="Address of the API; loopback only until keys exist.")
    api_port: int = Field(8080, ge=0, le=65535, description="Wanted port; the next free one is taken, and said.")
    api_body_bytes_max: int = Field(8 * 1024 * 1024, ge=1024, description="Largest request body.")
    api_events_max: int = Field(5000, ge=1, description="Most events in one request.")
    api_wait_ms_max: int = Field(2000, ge=1, description="Longest wait of ?wait=features.")
    api_drain_s: float = Field(10.0, gt=0, description="How long running requests may take after SIGTERM.")

    spool_bytes_max: int = Field(
        256_000_000, ge=0, description="Disk for events accepted while the log is away; 0: none, they get a 503."
    )
    spool_after_ms: int = Field(500, ge=1, description="A log that does not answer an event by then counts as away.")

    kinds: dict[str, KindRule] = Field(DEFAULT_KINDS, description="Declared kinds: sign, weight, threshold.")

    features_batch_max: int = Field(2000, ge=1, description="Most events the features consumer takes at once.")
    history_events_max: int = Field(
        64, ge=1, le=64, description="Newest events a user's row holds; a change wants `freshrank replay`."
    )
    features_cache_users: int = Field(20_000, ge=0, description="User rows the features consumer keeps decoded.")
    poll_wait_ms: int = Field(200, ge=1, description="Longest wait of one poll; new messages end it at once.")

    quarantine_entry_bytes_max: int = Field(
        1_000_000, ge=1024, description="Bytes kept of one message that could not be read."
    )
    quarantine_bytes_max: int = Field(
        256_000_000, ge=1_000_000, description="Bytes kept of all of them; the oldest are let go first."
    )

    trends_flush_s: float = Field(
        5.0,
        gt=0,
        description="State of the trends consumer is stored this often (a quarter of the time at most goes into it),",
    )
    trends_flush_events: int = Field(50_000, ge=1, description="or after this many events.")
    covisits_items_max: int = Field(50, ge=1, description="Co-visited items kept and served per item.")
    user_events_per_day_max: int = Field(
        100, ge=0, description="Positive events of a user and day that count for trends and training; 0: all."
    )
    newcomer_weight: float = Field(
        0.05,
        ge=0,
        le=1,
        description="What a user's events of their first 7 days count, where such users are the fewer.",
    )

    listed_only: bool = Field(False, description="Show only items that have a card, none known from events alone.")
    items_poll_ms: int = Field(250, ge=10, description="How often servers look for changed items.")

    candidates_faiss_max: int = Field(150, ge=0, le=1000, description="Items near the user's vector; 0: none.")
    candidates_covisits_max: int = Field(40, ge=0, le=1000, description="Items taken with the user's newest; 0: none.")
    candidates_trending_max: int = Field(30, ge=0, le=1000, description="Items that most take now; 0: none.")
    candidates_new_max: int = Field(20, ge=0, le=1000, description="Items that came last; 0: none.")
    list_diversity: float = Field(
        0.0, ge=0, le=1, description="0: lists go by score alone, 1: by unlikeness alone; a question may say otherwise."
    )
    list_category_max: int = Field(
        0, ge=0, description="Most items of any category in a list, 0: no cap; a question may say otherwise."
    )
    explore_every: int = Field(
        0, ge=0, description="One place in so many of a recorded list shows an item to learn about it; 0: none."
    )

    text_encoder: str = Field(
        "auto",
        description="auto (MiniLM where installed, else hashing), hashing, none, a transformers folder or a hub id.",
    )
    text_batch_max: int = Field(64, ge=1, description="Texts embedded at once.")
    text_threads: int = Field(
        0, ge=0, description="Threads that embed texts beside the consumers, of low priority; 0: as many as cores."
    )
    text_cache_bytes_max: int = Field(
        500_000_000, ge=1_000_000, description="Text vectors kept on disk, so that no text is embedded twice."
    )

    device: str = Field("auto", description="auto (GPU where there is one), cpu, cuda or cuda:N.")
    effort: Literal["demo", "normal", "full"] = Field("normal", description="Arithmetic budget of a training run.")
    train_threads: int = Field(0, ge=0, description="Threads of a training run; 0: all cores but one.")
    retrain_every_hours: float = Field(24.0, ge=0, description="Period of scheduled retraining; 0 switches it off.")
    judge_share: float = Field(0.05, gt=0, lt=0.5, description="Newest share of the events that judges a release.")
    judge_days_max: float = Field(
        7.0,
        gt=0,
        description=(
            "The judged slice is at most this long; with fewer than 500 users in it, it takes up to half of the events."
        ),
    )
    seed: int = Field(1, description="Seed of training.")
    release_keep: int = Field(5, ge=2, description="Release folders kept; the live one is never removed.")

    freshness_objective_ms: int = Field(1000, ge=1, description="Age at which a live event shall be in its user's row,")
    freshness_objective_share: float = Field(0.99, gt=0, lt=1, description="for this share of them; else health says.")
    freshness_window_s: float = Field(300.0, ge=20, le=3600, description="What freshness is judged over.")
    report_every_ms: int = Field(2000, ge=100, description="How often a process tells the others how it is.")

    slate_queue_max: int = Field(10_000, ge=1, description="Slates waiting to be recorded; more are dropped.")
    slate_features_share: float = Field(
        0.05, ge=0, le=1, description="Share of the slates that record the features of their picks, for `parity`."
    )
    parity_every_hours: float = Field(6.0, ge=0, description="Period of scheduled parity checks; 0 switches them off.")
    store_deadline_ms: int = Field(200, ge=1, description="Longest wait for the feature store in a request.")
    impressions_from: Literal["slates", "clients", "none"] = Field(
        "slates", description="Where impressions are counted from; never both."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severity logged.")

    @field_validator("home", mode="before")
    @classmethod
    def _named(cls, home: object) -> object:
        if home == "":  # it would be the working folder, with whatever else lies there
            raise ValueError("name a folder, or leave it out for ./.freshrank")
        return home

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, url: str) -> str:
        if not url.startswith(REDIS_SCHEMES):
            raise ValueError(f"must begin with one of {', '.join(REDIS_SCHEMES)}")
        return url

    @field_validator("database_url")
    @classmethod
    def _postgresql(cls, url: str) -> str:
        if url and not url.startswith(("postgresql://", "postgresql+psycopg://")):
            raise ValueError("must look like postgresql://user:password@host:5432/name")
        return url

    @field_validator("explore_every")
    @classmethod
    def _some_places(cls, every: int) -> int:
        if every == 1:
            raise ValueError("must be 0 or above 1: a list where every place explores is none")
        return every

    @field_validator("api_host")
    @classmethod
    def _loopback(cls, host: str) -> str:
        if host not in LOOPBACK:
            raise ValueError(f"must be one of {', '.join(LOOPBACK)} until access keys exist")
        return host

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file()))

    def mix(self) -> Mix:
        """How lists are mixed."""
        return Mix(
            self.candidates_faiss_max, self.candidates_covisits_max, self.candidates_trending_max,
            self.candidates_new_max, self.list_diversity, self.list_category_max, self.explore_every,
        )  # fmt: skip

    def kind_rules(self) -> KindRules:
        """The declared kinds as the fold wants them; given kinds add to and replace the default ones."""
        return KindRules({**DEFAULT_KINDS, **self.kinds})

    def bounds(self) -> Bounds:
        """How much one user may move what everybody sees."""
        from services.bounds import Bounds

        return Bounds(self.user_events_per_day_max, self.newcomer_weight)


def toml_file() -> Path:
    """The settings file: FRESHRANK_CONFIG, or freshrank.toml in the working folder."""
    return Path(os.environ.get("FRESHRANK_CONFIG", TOML_NAME))


def load_settings(**overrides: object) -> Settings:
    """The settings of this process. Raises SettingsInvalid naming key, value and fix; `overrides` win over all."""
    if os.environ.get("FRESHRANK_CONFIG") and not toml_file().is_file():
        raise SettingsInvalid(f"FRESHRANK_CONFIG={os.environ['FRESHRANK_CONFIG']!r} is refused: there is no such file")
    try:
        settings = Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        raise SettingsInvalid("; ".join(_sentence(each) for each in error.errors())) from None
    except SettingsError as error:  # it names the field alone: the text may be a password without its quotes
        raise SettingsInvalid(f'{error}: it must be JSON, as {{"name": "value"}}') from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsInvalid(f"{toml_file()} cannot be read: {error}") from None
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith("FRESHRANK_")
        and name not in NOT_SETTINGS
        and name.removeprefix("FRESHRANK_").split("__")[0].lower() not in Settings.model_fields
    )
    if unknown:
        raise SettingsInvalid(f"unknown settings in the environment: {', '.join(unknown)}; see `freshrank settings`")
    return settings.model_copy(update={"home": settings.home.expanduser().resolve()})


NOT_SETTINGS = frozenset({"FRESHRANK_CONFIG", "FRESHRANK_REQUIRE_LIVE"})


def setting_sources(settings: Settings) -> dict[str, str]:
    """Where each setting's value came from: environment, the file, or default."""
    in_file: dict[str, object] = tomllib.loads(toml_file().read_text()) if toml_file().exists() else {}
    ours = [name.removeprefix("FRESHRANK_") for name in os.environ if name.startswith("FRESHRANK_")]
    environment = {name.split("__")[0].lower() for name in ours}
    return {
        name: "environment" if name in environment else str(toml_file()) if name in in_file else "default"
        for name in type(settings).model_fields
    }


def _sentence(error: object) -> str:
    assert isinstance(error, dict)
    name = ".".join(str(part) for part in error["loc"]) or "settings"
    if error["type"] == "extra_forbidden":
        return f"{name} is no setting; see `freshrank settings`"
    return f"{name}={without_secrets(error.get('input'), name)!r} is refused: {error['msg']}"


SECRETS = ("password", "secret", "token")


def without_secrets(value: object, name: str = "") -> object:
    """A value as it may be shown: passwords, and those in addresses, are left out, also in one that is no address."""
    if isinstance(value, dict):
        return {key: without_secrets(each, str(key)) for key, each in value.items()}
    if not isinstance(value, str):
        return value
    if any(word in name for word in SECRETS):
        return "***"
    return re.sub(r"(//[^:/@\s]*:).*@|(password=)[^&\s]*", _hide, value)


def _hide(found: re.Match[str]) -> str:
    return f"{found[1]}***@" if found[1] else f"{found[2]}***"
