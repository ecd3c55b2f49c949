"""Settings: config/headrace.yaml ← environment (HEADRACE_KAFKA__BOOTSTRAP_SERVERS) ← flags.

An unknown key or a wrong type is a ConfigError that names the file (or variable) and the key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr


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
    session_timeout_ms: int = 10_000  # classic protocol only; KIP-848 leaves it to the broker
    transaction_timeout_ms: int = 10_000
    max_poll_interval_ms: int = 300_000
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
    kafka_heap: str = "512m"


class Processing(Section):
    mode: Literal["fast", "full", "batch"] = "full"
    batch_size: int | None = None  # records; none: each group's own, in topics.yaml
    drain_seconds: float = 30.0
    retry_seconds: float = 1.0  # first pause after a retryable error; doubles up to the next
    retry_max_seconds: float = 30.0
    coverage_level: Annotated[float, Field(gt=0, le=1)] = 0.95
    metrics_port: int | None = None  # health and Prometheus metrics of a worker; 0: a free one
    metrics_host: str = "127.0.0.1"


class Publishing(Section):
    workers: int = 2  # files at once
    transaction_records: int = 5_000
    transaction_bytes: int = 8 * 2**20
    max_message_bytes: int = 1_000_000
    max_expansion: int = 200  # a compressed file may grow so many times …
    max_expansion_free_bytes: int = 256 * 2**20  # … once it is past so many bytes
    rejects_dir: Path = Path("rejects")


class Entities(Section):
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.8


class Sentiment(Section):
    languages: tuple[str, ...] = ("en",)
    min_language_confidence: Annotated[float, Field(ge=0, le=1)] = 0.5


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
    publishing: Publishing = Publishing()
    entities: Entities = Entities()
    sentiment: Sentiment = Sentiment()
    log: Log = Log()

    def path(self, name: Literal["topics", "schemas", "platforms", "dictionaries"]) -> Path:
        """Where a file or folder of the map stands: under `home`, else as shipped."""
        raise NotImplementedError


def load(flags: dict[str, Any] | None = None) -> Settings:
    """Read the file named by HEADRACE_CONFIG (else ./config/headrace.yaml), environment, flags."""
    raise NotImplementedError
