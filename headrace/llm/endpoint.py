"""Who is asked: the configured endpoint, OpenAI's own if there is a key, else the embedded model.

`llm.local_only` refuses whatever is beyond this machine's loopback, the addresses that a name
stands for included; the client looks again at every call.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from pydantic import SecretStr

from headrace.config import Settings
from headrace.errors import ConfigError
from headrace.log import get
from headrace.servers.llm import MODEL

log = get(__name__)

OPENAI = "https://api.openai.com/v1"


@dataclass(frozen=True)
class Endpoint:
    """Where calls go.

    provider  as the ledger names it: host (and port), or "embedded"
    base_url  None: the embedded model, whose address is known once it runs
    """

    provider: str
    model: str
    base_url: str | None
    key: SecretStr | None = None
    embedded: bool = False

    @property
    def host(self) -> str:
        return urlsplit(self.base_url or "").hostname or ""

    @property
    def official(self) -> bool:
        """Whether it is a service of OpenAI's, which wants the newer names of some fields."""
        return self.host == "api.openai.com" or self.host.endswith(".openai.azure.com")


def named(settings: Settings) -> Endpoint:
    """Whom the settings name. Nothing is started and nothing looked up.

    Raises ConfigError for an address that is none.
    """
    llm = settings.llm
    if llm.base_url is None and llm.api_key is None:
        return Endpoint("embedded", MODEL, None, embedded=True)
    base_url = (llm.base_url or OPENAI).rstrip("/")
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            "llm.base_url: write an address such as https://api.openai.com/v1 or "
            "http://127.0.0.1:8000/v1"
        )
    host = parts.hostname if port is None else f"{parts.hostname}:{port}"
    return Endpoint(host, llm.model, base_url, llm.api_key)


def check(settings: Settings) -> Endpoint:
    """Whom the settings name, if they allow it. Raises ConfigError, one line."""
    found = named(settings)
    if settings.llm.local_only and not found.embedded:
        complaint = beyond(found.host)
        if complaint:
            raise ConfigError(
                f"llm.local_only: {complaint}; nothing was sent. Set llm.base_url to an endpoint "
                "of this machine, or llm.local_only to false"
            )
    return found


def started(settings: Settings, found: Endpoint) -> Endpoint:
    """The same with an address: the embedded model is started if it does not run yet.

    Raises ServerUnavailable.
    """
    if not found.embedded:
        return found
    from headrace.servers import configured

    address = configured.ensure(settings, ("llm",), say=lambda line: log.info("%s", line))["llm"]
    return replace(found, base_url=str(address))


def beyond(host: str) -> str | None:
    """Why a host is not this machine's loopback alone; None if it is."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return f"{host} cannot be resolved"
    outside = sorted(one for one in found if not _loopback(one))
    if not outside:
        return None
    return (
        f"{host} is {outside[0]}, beyond this machine"
        if outside[0] != host
        else (f"{host} is beyond this machine")
    )


def _loopback(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return bool((mapped or found).is_loopback)
