"""Settings: config/headrace.yaml ← environment (HEADRACE_KAFKA__BOOTSTRAP_SERVERS) ← flags.

The processing mode has one more layer between the first two, the platforms' own YAML files
(headrace.platforms): `default_mode` ← a platform's `processing.mode` ← `mode`.

An unknown key or a wrong type is a ConfigError that names the file (or variable) and the key.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from headrace import yamlfile
from headrace.errors import ConfigError
from headrace.yamlfile import Document, dotted, explain, known_location

Mode = Literal["fast", "full", "batch"]


Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Kafka(Section):
    bootstrap_servers: str | None = None  # none: the local servers' own address
    group_protocol: Literal["consumer", "classic"] = "consumer"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: str | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_ca_location: Path | None = None
    ssl_certificate_location: Path | None = None
    ssl_key_location: Path | None = None
    ssl_key_password: SecretStr | None = None
    session_timeout_ms: Positive = 10_000  # classic protocol only; KIP-848 leaves it to the broker
    transaction_timeout_ms: Positive = 10_000
    max_poll_interval_ms: Positive = 300_000
    replication_factor: int = 1
    client: dict[str, str | int | float | bool] = Field(default_factory=dict)  # passed through


class Postgres(Section):
    dsn: SecretStr | None = None  # postgresql://…; none: the local server's own
    sslmode: str | None = None
    lock_timeout: str = "10s"
    statement_timeout: str = "120s"
    reader_role: str = "headrace_reader"
    reader_password: SecretStr | None = None


class Weaviate(Section):
    url: str | None = None
    grpc_port: int | None = None
    api_key: SecretStr | None = None


class Servers(Section):
    kafka_port: int = 0  # 0: a free one, kept from then on
    postgres_port: int = 0
    weaviate_port: int = 0
    llm_port: int = 0  # of the embedded model
    kafka_heap: str = "512m"


class Processing(Section):
    default_mode: Mode = "full"  # of a platform whose YAML names none
    mode: Mode | None = None  # for every platform, whatever its YAML says (`run --mode`)
    batch_size: Positive | None = None  # records; none: each group's own, in topics.yaml
    drain_seconds: Seconds = 30.0
    retry_seconds: Seconds = 1.0  # first pause after a retryable error; doubles up to the next
    retry_max_seconds: Seconds = 30.0
    coverage_level: Annotated[float, Field(gt=0, le=1)] = 0.95
    metrics_port: int | None = None  # health and Prometheus metrics of a worker; 0: a free one
    metrics_host: str = "127.0.0.1"


class Scheduler(Section):
    zone: str = "UTC"  # whose clock the schedules go by, such as Europe/Berlin
    look_seconds: Seconds = 5.0  # between two looks of the scheduler, and of workers that wait
    patience: str = "6 hours"  # a window waits so long for those of the groups that it reads from
    margin: str = "1 day"  # to work in, that topics keep what they hold beyond the longest rest

    @field_validator("zone")
    @classmethod
    def _is_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f'"{value}" is no time zone; write it like Europe/Berlin') from None
        return value

    @field_validator("patience", "margin")
    @classmethod
    def _is_duration(cls, value: str) -> str:
        from headrace import schedule  # here: a command that starts has no use for it

        schedule.duration_ms(value)
        return value

    @property
    def patience_ms(self) -> int:
        from headrace import schedule

        return schedule.duration_ms(self.patience)

    @property
    def margin_ms(self) -> int:
        from headrace import schedule

        return schedule.duration_ms(self.margin)


class Publishing(Section):
    workers: Positive = 2  # files at once
    ahead_bytes: Positive = 8 * 2**20  # a file as large, if alone, is read by a second process
    transaction_records: Positive = 5_000
    transaction_bytes: Positive = 8 * 2**20
    max_message_bytes: Positive = 1_000_000
    max_expansion: Positive = 200  # a compressed file may grow so many times …
    max_expansion_free_bytes: int = 256 * 2**20  # … once it is past so many bytes
    rejects_dir: Path = Path("rejects")


class Entities(Section):
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.8


class Sentiment(Section):
    languages: tuple[str, ...] = ("en",)
    min_language_confidence: Annotated[float, Field(ge=0, le=1)] = 0.5


class Embeddings(Section):
    provider: Literal["minilm", "fastembed", "openai"] = "minilm"
    model: str | None = None  # of fastembed or the endpoint, which have no default
    dimensions: Annotated[int, Field(ge=1)] | None = None  # of the endpoint's vectors
    shorten: bool = False  # ask the endpoint for that many (models that can)
    base_url: str | None = None  # of an endpoint that speaks OpenAI's API; none: OpenAI's own
    api_key: SecretStr | None = None
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    request_texts: Annotated[int, Field(ge=1)] = 128  # in one request
    threads: Annotated[int, Field(ge=1)] = 1  # of a local model, in each worker
    max_characters: Annotated[int, Field(ge=1)] = 4_000  # of a text that are read


class Search(Section):
    enabled: bool = True  # false: nothing is marked for Weaviate
    collections: dict[str, str] = Field(  # names by kind of record, after the project's
        default_factory=lambda: {
            "default": "{platform}Post",
            "community": "{platform}Community",
            "persona": "{platform}Persona",
        }
    )
    settle_seconds: Annotated[float, Field(gt=0)] = 120.0  # then what was written is compared
    semantic_share: Annotated[float, Field(ge=0, le=1)] = 0.6  # of a hybrid search's score


class Redo(Section):
    chunk: Annotated[int, Field(ge=1, le=10_000)] = 1_000  # records chosen and queued at a time
    canary: Positive = 10  # dead letters that go first …
    canary_survive: Annotated[float, Field(ge=0, le=1)] = 0.9  # … and the share that must live


class Price(Section):
    """USD per million tokens."""

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]
    cached_input: Annotated[float, Field(ge=0)] | None = None  # none: as input


Transport = Literal["direct", "batch", "auto"]
Share = Annotated[float, Field(gt=0, le=1)]


class LLM(Section):
    base_url: str | None = None  # of an endpoint that speaks OpenAI's API; none: OpenAI's own …
    api_key: SecretStr | None = None  # … if there is a key, else the embedded model
    model: str = "gpt-4.1-mini"
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None  # none: the model's own
    request: dict[str, Any] = Field(
        default_factory=dict
    )  # more fields of a request, passed through
    local_only: bool = False  # true: nothing is sent beyond this machine
    redact: bool = False  # e-mail addresses, phone numbers and @names are masked before sending …
    redact_names: tuple[str, ...] = ()  # … and these names
    timeout_seconds: Seconds = 120.0
    concurrency: Positive = 4  # calls in flight in a worker
    tries: Positive = 6  # of a call that fails in a way that passes
    retry_seconds: Seconds = 1.0  # first pause; doubles, with jitter, up to the next
    retry_max_seconds: Seconds = 60.0
    circuit_failures: Positive = 5  # in a row, over all workers, until nobody calls …
    circuit_seconds: Seconds = 30.0  # … for so long
    requests_per_minute: Annotated[int, Field(ge=0)] = 50  # of all workers together; 0: no limit
    tokens_per_minute: Positive | None = None
    shares: dict[str, Share] = Field(default_factory=dict)  # of both, that a group may use
    prices: dict[str, Price] = Field(  # by model, or what its name begins with
        default_factory=lambda: {
            "gpt-4.1": Price(input=2.0, output=8.0, cached_input=0.5),
            "gpt-4.1-mini": Price(input=0.4, output=1.6, cached_input=0.1),
            "gpt-4.1-nano": Price(input=0.1, output=0.4, cached_input=0.025),
            "gpt-4o": Price(input=2.5, output=10.0, cached_input=1.25),
            "gpt-4o-mini": Price(input=0.15, output=0.6, cached_input=0.075),
        }
    )
    daily_budget: Annotated[float, Field(ge=0)] | None = None  # USD a day, by scheduler.zone
    max_cost: Annotated[float, Field(ge=0)] | None = None  # USD of this session (`--max-cost`)
    session: str | None = None  # whose costs count together; `headrace run` names its own
    transport: dict[str, Transport] = Field(default_factory=dict)  # by group; else direct
    auto_from: Positive = 1_000  # `auto`: batches are used where so many messages wait
    batch_requests: Annotated[int, Field(ge=1, le=50_000)] = 50_000  # in one file
    batch_bytes: Annotated[int, Field(ge=1, le=200_000_000)] = 200_000_000
    batch_age_seconds: Seconds = 300.0  # a file is sent when its oldest request has waited so long
    batch_window: str = "24h"  # within which the provider answers
    batch_rounds: Positive = 3  # of a request that came back without an answer; then it goes direct
    batch_poll_seconds: Seconds = 30.0
    batch_price: Share = 0.5  # of a direct call's

    @field_validator("base_url", "api_key", mode="before")
    @classmethod
    def _is_bare(cls, value: Any) -> Any:
        """What is pasted often brings a line break along; blank is not set."""
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        return text.strip() or None if isinstance(text, str) else value

    @field_validator("api_key")
    @classmethod
    def _is_one_word(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not all("!" <= sign <= "~" for sign in value.get_secret_value()):
            raise ValueError("holds a blank or a character that no key has: copy it once more")
        return value

    @property
    def configured(self) -> bool:
        """Whether there is another model than the embedded one."""
        return self.base_url is not None or self.api_key is not None


class Personas(Section):
    count: Positive = 50  # of each community
    together: Positive = 10  # in one call
    similarity: Annotated[float, Field(gt=0, le=1)] = (
        0.9  # more alike: the later is asked for again
    )
    again: Annotated[int, Field(ge=0)] = 3  # calls for those, at most
    posts: Positive = 10  # best posts that are shown to the model


class Dimension(Section):
    description: Annotated[str, Field(min_length=1)]
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0


class Scores(Section):
    dimensions: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")], Dimension] = Field(
        min_length=1,
        default_factory=lambda: {
            "relevance": Dimension(description="Does it matter to the people it is written for?"),
            "urgency": Dimension(description="Does it have to be acted on soon?"),
            "novelty": Dimension(description="Does it say something that is not said every day?"),
            "usefulness": Dimension(description="Can somebody do something with it?"),
        },
    )
    together: Positive = 20  # posts in one call
    max_characters: Positive = 1_500  # of a post that are shown to the model


class Jobs(Section):
    statement_timeout: str = "2h"  # of each query of a job


class Metrics(Section):
    top: Positive = 20  # entities and communities that are named, per platform and over all
    languages: Positive = 50
    days: Positive = 92  # records by day: the latest days that have any
    weeks: Positive = 104


class Gates(Section):
    required: tuple[str, ...] = ("text",)  # fields of every record, besides its platform's own
    required_share: Annotated[float, Field(ge=0, le=1)] = 0.99
    entity_confidence: Annotated[float, Field(ge=0, le=1)] = 0.8  # the mean is above it
    sentiment_coverage: Annotated[float, Field(ge=0, le=1)] = 0.95  # is above it
    metrics_hours: Annotated[float, Field(gt=0)] = 26.0  # figures older than that are not current
    settle_minutes: Annotated[float, Field(ge=0)] = 60.0  # an outcome waits so long for its record


class Snapshots(Section):
    dir: Path = Path("snapshots")  # of every project a folder in it


class Status(Section):
    enabled: bool = True  # false: `headrace run` leaves the status group out
    host: str = "127.0.0.1"  # of its web views
    port: Annotated[int, Field(ge=1, le=65_535)] = 6066
    look_seconds: Seconds = 15.0  # between two looks at lag and alerts
    minutes_kept_hours: Annotated[float, Field(ge=3)] = 24.0  # history by minute
    hours_kept_days: Annotated[float, Field(ge=1)] = 30.0  # history by hour
    cooldown_minutes: Annotated[float, Field(ge=0)] = 60.0  # until the same alert is sent again
    overdue_limit: Annotated[int, Field(ge=0)] = 10_000  # messages that may be overdue
    overdue_minutes: Annotated[float, Field(ge=0)] = 15.0  # after its time that work is overdue
    stalled_minutes: Annotated[float, Field(gt=0)] = 10.0  # with work and without a commit
    dead_share: Annotated[float, Field(ge=0, le=1)] = 0.05  # of the records of a group …
    dead_minutes: Annotated[float, Field(gt=0, le=60)] = 60.0  # … over so long …
    dead_of_at_least: Positive = 200  # … if there were so many
    retention_share: Annotated[float, Field(gt=0, le=1)] = 0.8  # of its retention an unread one had
    webhook_url: SecretStr | None = None  # gets each alert as a POST of JSON
    mail_to: tuple[str, ...] = ()
    mail_from: str = "headrace@localhost"
    smtp_host: str = "127.0.0.1"
    smtp_port: int = 25
    smtp_security: Literal["none", "starttls", "tls"] = "none"
    smtp_username: str | None = None
    smtp_password: SecretStr | None = None
    tries: Positive = 12  # to tell an alert on a channel, with growing pauses


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json"] = "auto"  # auto: text on a terminal, else JSON lines


class Settings(Section):
    """All settings. `home` is the folder that relative paths start from."""

    project: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")] = "headrace"
    home: Path = Path()
    topics: Path = Path("topics.yaml")
    schemas: Path = Path("schemas")
    platforms: Path = Path("config/platforms")
    dictionaries: Path = Path("config/dictionaries")
    kafka: Kafka = Kafka()
    postgres: Postgres = Postgres()
    weaviate: Weaviate = Weaviate()
    servers: Servers = Servers()
    processing: Processing = Processing()
    scheduler: Scheduler = Scheduler()
    publishing: Publishing = Publishing()
    entities: Entities = Entities()
    sentiment: Sentiment = Sentiment()
    embeddings: Embeddings = Embeddings()
    search: Search = Search()
    snapshots: Snapshots = Snapshots()
    redo: Redo = Redo()
    llm: LLM = LLM()
    personas: Personas = Personas()
    scores: Scores = Scores()
    jobs: Jobs = Jobs()
    metrics: Metrics = Metrics()
    gates: Gates = Gates()
    status: Status = Status()
    log: Log = Log()

    def path(self, name: Literal["topics", "schemas", "platforms", "dictionaries"]) -> Path:
        """Where a file or folder of the map stands: under `home`, else as shipped."""
        named: Path = getattr(self, name)
        own = self.under(named)
        if own.exists():
            return own
        if named == Settings.model_fields[name].default:
            found = shipped(named)
            if found is not None:
                return found
        raise ConfigError(f"{name}: {own} does not exist; correct the setting {name} or create it")

    def under(self, path: Path) -> Path:
        """`path` as meant in the settings: relative ones start from `home`."""
        return (self.home / path.expanduser()).absolute()


_PACKAGE = Path(__file__).resolve().parent
_PREFIX = "HEADRACE_"
_FILE_VARIABLE = "HEADRACE_CONFIG"


def shipped(path: Path) -> Path | None:
    """What comes with Headrace under this relative path: an installation's, else the clone's."""
    for candidate in (_PACKAGE / "shipped" / path, _PACKAGE.parent / path):
        if candidate.exists():
            return candidate.resolve()
    return None


def load(flags: Mapping[str, Any] | None = None) -> Settings:
    """The settings in force: the file named by HEADRACE_CONFIG (else ./config/headrace.yaml, which
    need not exist), overridden by environment variables, overridden by flags.

    flags    nested ({"kafka": {"bootstrap_servers": …}}) or dotted ({"kafka.bootstrap_servers":
             …}); a value of None means not given. "config" names another file.
    Raises ConfigError naming the file and key, the variable, or the flag.
    """
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    path, required = _config_file(given.pop("config", None))
    document = Document(path, None, {})
    home = Path.cwd()
    if path.is_file():
        document = yamlfile.read(path)
        folder = path.absolute().parent
        home = folder.parent if folder.name == "config" else folder
    elif required and str(path) != os.devnull:
        raise ConfigError(f"{path}: there is no such configuration file")
    if document.value is not None and not isinstance(document.value, dict):
        raise document.error((), "should be keys and values, such as `project: name`")

    values: dict[str, Any] = _without_none(document.value or {})
    origins: dict[tuple[str, ...], str] = {}
    for variable, location in _variables():
        _put(values, location, _parse(variable, location), origins, variable)
    for location, value in _flatten(given):
        _put(values, location, value, origins, f"flag {dotted(location)}")
    named_home = values.get("home")
    if named_home is None or isinstance(named_home, str | Path):
        values["home"] = (home / Path(named_home or "").expanduser()).absolute()
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        found = known_location(values, first["loc"])
        origin = _origin(origins, tuple(str(part) for part in found))
        told = first["type"] == "value_error" or not _is_secret(found)  # in words of our own
        message = explain(first, Settings) if told else "is not usable"
        if origin is None:
            raise document.error(found, message) from None
        raise ConfigError(f"{origin} ({dotted(found)}): {message}") from None


def as_environment(settings: Settings) -> dict[str, str]:
    """Variables from which `load` makes the very same settings in a child process, whatever its
    folder. Secrets are included: pass them on, never log them."""
    variables = {_FILE_VARIABLE: os.devnull}
    for location, value in leaves(settings):
        if value is None:
            continue
        if isinstance(value, SecretStr):
            text = value.get_secret_value()
        elif isinstance(value, str | Path):
            text = str(value)
        elif isinstance(value, bool):
            text = str(value).lower()
        elif isinstance(value, dict | tuple):
            text = json.dumps(value, default=lambda inner: inner.model_dump(mode="json"))
        else:
            text = repr(value)
        if text:
            variables[_PREFIX + "__".join(location).upper()] = text
    return variables


def leaves(section: Section, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every setting as (location, value), in the order of this file."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from leaves(value, (*at, name))
        else:
            yield (*at, name), value


def secrets(settings: Settings) -> list[str]:
    """The secret values in force, for masking; those among `kafka.client` too."""
    own = [
        value.get_secret_value() for _, value in leaves(settings) if isinstance(value, SecretStr)
    ]
    return own + [str(value) for key, value in settings.kafka.client.items() if is_secret(key)]


def is_secret(key: str) -> bool:
    """Whether a client property's name says that its value is secret."""
    return any(word in key for word in ("password", "secret", "jaas", "key.pem"))


def _config_file(flag: str | Path | None) -> tuple[Path, bool]:
    named = flag or os.environ.get(_FILE_VARIABLE)
    if named:
        return Path(named).expanduser(), True
    return Path("config") / "headrace.yaml", False


def _variables() -> Iterator[tuple[str, tuple[str, ...]]]:
    """The environment's settings. One without `__` that is no top-level key is not ours."""
    for variable in sorted(os.environ):
        if not variable.startswith(_PREFIX) or not os.environ[variable]:
            continue  # empty is not set, as `docker compose` passes it
        location = tuple(variable.removeprefix(_PREFIX).lower().split("__"))
        if len(location) > 1 or location[0] in Settings.model_fields:
            yield variable, location


def _parse(variable: str, location: tuple[str, ...]) -> Any:
    """Lists and mappings are JSON; everything else is left for the model to convert."""
    text = os.environ[variable]
    if text[:1] in "[{" and isinstance(_default(location), dict | tuple):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _default(location: Sequence[str | int]) -> Any:
    value: Any = Settings()
    for key in location:
        value = getattr(value, str(key), None)
    return value


def _put(
    values: dict[str, Any],
    location: tuple[str, ...],
    value: Any,
    origins: dict[tuple[str, ...], str],
    origin: str,
) -> None:
    for depth, key in enumerate(location[:-1], 1):
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{origin}: {dotted(location[:depth])} is a value, not a section")
        values = inner
    values[location[-1]] = value
    origins[location] = origin


def _origin(origins: Mapping[tuple[str, ...], str], location: tuple[str, ...]) -> str | None:
    """The variable or flag that set a location, something around it or something in it; None: the
    file."""
    around = (location[:end] for end in range(len(location), 0, -1))
    inside = (key for key in origins if key[: len(location)] == location)
    return next((origins[key] for key in (*around, *inside) if key in origins), None)


def _without_none(value: Any) -> Any:
    """A key without a value (its lines commented out, say) is not given."""
    if isinstance(value, Mapping):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return value


def _flatten(
    value: Mapping[str, Any], at: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, inner in value.items():
        location = (*at, *key.split(".")) if not at else (*at, key)
        if isinstance(inner, Mapping):
            yield from _flatten(inner, location)
        elif inner is not None:
            yield location, inner


def _is_secret(location: Sequence[str | int]) -> bool:
    model: Any = Settings
    for key in location:
        field = getattr(model, "model_fields", {}).get(key)
        if field is None:
            return False
        model = field.annotation
    return "SecretStr" in str(model)
