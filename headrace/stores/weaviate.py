"""Connections to Weaviate: the address, the timeouts, and which errors mean that it is away."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from headrace.config import Settings
from headrace.errors import ConfigError, ServerUnavailable

if TYPE_CHECKING:  # its import takes a second
    from weaviate import WeaviateClient

_GRPC_PORT = 50051
_GRPC_AWAY = (1, 4, 14)  # cancelled, deadline exceeded, unavailable
# What Weaviate says of objects that it would take at another time.
_PASSING = (
    "unavailable", "connection refused", "connection reset", "shutting down", "shut down",
    "shutdown", "read-only", "readonly", "deadline exceeded", "context canceled", "not ready",
    "no leader", "leader not found", "not enough memory", "disk usage",
)  # fmt: skip


class Where(NamedTuple):
    host: str
    port: int
    secure: bool
    grpc_port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def address(settings: Settings) -> Where:
    """The configured address, else the local server's.

    Raises ServerUnavailable where there is none, ConfigError where it cannot be read.
    """
    if settings.weaviate.url:
        parts = urlsplit(settings.weaviate.url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ConfigError("weaviate.url cannot be read: write http://127.0.0.1:8080")
        secure = parts.scheme == "https"
        grpc = settings.weaviate.grpc_port or _own_grpc_port(settings.weaviate.url) or _GRPC_PORT
        return Where(parts.hostname, port or (443 if secure else 80), secure, grpc)
    found = _running()
    if found is None:
        raise ServerUnavailable(
            "Weaviate is not running: start it with `headrace up weaviate`, or set weaviate.url"
        )
    return found


def expected(settings: Settings) -> bool:
    """Whether there is a Weaviate to work with: one is configured, or the local one runs."""
    return bool(settings.weaviate.url) or _running() is not None


def _running() -> Where | None:
    from headrace import servers

    found = servers.running().get("weaviate")
    if not found:
        return None
    parts = urlsplit(found)
    assert parts.hostname is not None and parts.port is not None
    return Where(parts.hostname, parts.port, False, found.ports.get("grpc", _GRPC_PORT))


def _own_grpc_port(url: str) -> int | None:
    """Of a local server whose address is configured as well."""
    found = _running()
    at = urlsplit(url)
    return found.grpc_port if found and (found.host, found.port) == (at.hostname, at.port) else None


def connect(settings: Settings) -> WeaviateClient:
    """A connected client; close it, or use it in a `with` statement.

    Raises ServerUnavailable (host and port, no secret) where the server does not answer.
    """
    import weaviate
    from weaviate.classes.init import AdditionalConfig, Auth, Timeout
    from weaviate.exceptions import AuthenticationFailedError, UnexpectedStatusCodeError

    where = address(settings)
    key = settings.weaviate.api_key
    try:
        client = weaviate.connect_to_custom(
            where.host, where.port, where.secure, where.host, where.grpc_port, where.secure,
            auth_credentials=Auth.api_key(key.get_secret_value()) if key else None,
            additional_config=AdditionalConfig(timeout=Timeout(init=10, query=30, insert=60)),
            skip_init_checks=True,
        )  # fmt: skip
    except (AuthenticationFailedError, UnexpectedStatusCodeError) as error:
        raise ServerUnavailable(f"Weaviate at {where} refuses: {line(error)}") from None
    except Exception as error:
        if not lost(error):
            raise
        raise ServerUnavailable(
            f"Weaviate at {where} does not answer: start it with `headrace up weaviate`, or"
            " correct weaviate.url"
        ) from None
    if client.is_ready():
        return client
    client.close()
    raise ServerUnavailable(f"Weaviate at {where} is not ready")


def lost(error: BaseException) -> bool:
    """Whether Weaviate is away or cannot take anything, so that the same may go well later."""
    import httpx
    from weaviate import exceptions as known

    if isinstance(error, ServerUnavailable | httpx.TransportError | OSError):
        return True
    if isinstance(error, known.UnexpectedStatusCodeError):
        return error.status_code >= 500 or error.status_code in (429, *_GRPC_AWAY)
    away = (
        known.WeaviateConnectionError,
        known.WeaviateTimeoutError,
        known.WeaviateGRPCUnavailableError,
        known.WeaviateStartUpError,
        known.WeaviateClosedClientError,
        known.WeaviateRetryError,
        known.EmptyResponseError,
    )
    return isinstance(error, away) or (
        isinstance(error, known.WeaviateQueryError) and passing(str(error))
    )


def known(error: BaseException) -> bool:
    """Whether Weaviate or the way to it is the cause, for whoever says it in one line."""
    return lost(error) or type(error).__module__.startswith("weaviate.")


def passing(message: str) -> bool:
    """The same of what Weaviate says about one object."""
    said = message.lower()
    return any(word in said for word in _PASSING)


def line(error: BaseException) -> str:
    """The error in one line, without the objects that it may quote."""
    return " ".join(str(error).split())[:300] or type(error).__name__
