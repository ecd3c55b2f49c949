"""One call over real HTTP: what comes back, how errors are sorted, what may leave the machine."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import httpx2
import openai
import pytest

from headrace import config
from headrace.config import Settings
from headrace.errors import ConfigError, Pause
from headrace.llm import client as clients
from headrace.llm import endpoint
from headrace.llm.client import Answer, Client, Passing, Refused
from tests.llm import provider
from tests.llm.provider import Provider

BODY = {
    "model": "gpt-4.1-mini",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 100,
    "top_k": 3,  # a field that the client does not know
}


@pytest.fixture(scope="module")
def served() -> Iterator[Provider]:
    with provider.serve() as found:
        yield found


@pytest.fixture
def p(served: Provider) -> Provider:
    served.calls.clear()
    served.judge = None
    return served


def settings(url: str | None, **llm: Any) -> Settings:
    flags = {f"llm.{name}": value for name, value in {"base_url": url, **llm}.items()}
    return config.load(flags)


def ask(url: str, **llm: Any) -> Answer:
    made = settings(url, **llm)
    client = Client(made, endpoint.check(made))
    try:
        return client.ask(BODY)
    finally:
        client.close()


def test_an_answer_with_tokens_and_limits(p: Provider) -> None:
    p.script(
        provider.headers(
            x_ratelimit_remaining_requests="0",
            x_ratelimit_reset_requests="1m2.5s",
            x_ratelimit_remaining_tokens="900",
            x_ratelimit_reset_tokens="20ms",
        )
    )
    answer = ask(p.url, api_key="secret-key")
    assert answer.text == "It is well."
    assert (answer.finish, answer.refusal, answer.request_id) == ("stop", None, "req_0")
    assert answer.input_tokens > 0
    assert answer.output_tokens > 0
    assert answer.limits == clients.Limits(0, 62.5, 900, 0.02)
    (call,) = p.calls
    assert call.headers["authorization"] == "Bearer secret-key"
    assert {**call.body, **BODY} == call.body


@pytest.mark.parametrize(
    ("step", "reason", "down", "hold", "billed"),
    [
        (provider.status(429, retry_after=0.25), "asks to wait (status 429", False, 0.25, False),
        (provider.status(503, retry_after=2), "asks to wait (status 503", True, 2.0, False),
        (provider.status(500), "fails (status 500", True, None, False),
        (provider.status(504, retry_after=2), "fails (status 504", True, 2.0, True),
        (provider.status(408), "fails (status 408", False, None, False),
        (provider.status(409), "fails (status 409", False, None, False),
        (provider.dropped(), "ended the connection", True, None, True),
    ],
)
def test_what_passes(
    p: Provider, step: Any, reason: str, down: bool, hold: float | None, billed: bool
) -> None:
    p.script(step)
    with pytest.raises(Passing) as raised:
        ask(p.url)
    assert reason in str(raised.value)
    assert (raised.value.down, raised.value.hold, raised.value.billed) == (down, hold, billed)


def test_a_time_out_may_have_been_paid(p: Provider) -> None:
    p.script(provider.slow(1.0))
    with pytest.raises(Passing, match="gave no answer within") as raised:
        ask(p.url, timeout_seconds=0.2)
    assert raised.value.billed


@contextmanager
def raw(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of an endpoint that answers one call as it likes."""

    def accept() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.recv(65536)
            serve(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        pool.submit(accept)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def test_an_answer_that_trickles_has_no_more_time_than_another() -> None:
    ended = threading.Event()

    def trickle(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not ended.wait(0.02):  # as some endpoints keep a connection alive
            connection.sendall(b"1\r\n \r\n")

    with raw(trickle) as url:
        try:
            with pytest.raises(Passing, match="gave no answer within") as raised:
                ask(url, timeout_seconds=1)
        finally:
            ended.set()
    assert raised.value.billed


def test_what_some_endpoints_answer() -> None:
    def said(body: bytes) -> Answer:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        with raw(lambda connection: connection.sendall(head % len(body) + body)) as url:
            return ask(url)

    cut = b'{"choices": [{"message": {"content": "so \\ud83d"}, "finish_reason": "length"}]}'
    assert said(cut).text == "so ?"  # half a character is no reason to lose it
    with pytest.raises(Passing, match="gave no completion: upstream is busy"):
        said(b'{"error": {"message": "upstream is busy", "code": 502}}')


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(Passing, match=f"127.0.0.1:{port} cannot be reached") as raised:
            ask(f"http://127.0.0.1:{port}/v1")
    assert not raised.value.billed


def test_a_certificate_that_nobody_knows() -> None:
    made = settings("https://models.example/v1")
    client = Client(made, endpoint.check(made))
    cause = httpx2.ConnectError(
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate"
        " (_ssl.c:1006)"
    )
    request = httpx2.Request("POST", "https://models.example/v1")
    line = (
        r"^llm: the certificate of models\.example is not trusted \(certificate verify failed: "
        r"self-signed certificate\): look at llm\.base_url, or name its authority's file in SSL"
    )
    with pytest.raises(Pause, match=line), client.errors():
        raise openai.APIConnectionError(request=request) from cause
    client.close()


@pytest.mark.parametrize("code", [400, 413, 422])
def test_what_the_request_is_to_blame_for(p: Provider, code: int) -> None:
    p.script(provider.status(code, message="too long", error="context_length_exceeded"))
    with pytest.raises(Refused, match=f"status {code}, context_length_exceeded: too long"):
        ask(p.url)


@pytest.mark.parametrize(
    ("step", "line"),
    [
        (
            provider.status(401),
            r"the key for .* is refused \(status 401, invalid_api_key\): set llm.api_key",
        ),
        (provider.status(403), r"the key for .* is refused \(status 403"),
        (
            provider.status(404),
            r"has nothing at /v1, or no model gpt-4.1-mini \(status 404, not_found\): look at llm",
        ),
        (provider.status(404, message="The model `x` does not exist"), "knows no model gpt-4.1"),
        (provider.status(400, error="model_not_found"), "knows no model gpt-4.1-mini"),
        (provider.status(400, message="x is not a valid model ID"), "knows no model gpt-4.1-mini"),
        (
            provider.status(400, message="This response_format type is unavailable now"),
            "does not take response_format as it is sent",
        ),
        (provider.status(429, error="insufficient_quota"), "has no credit left"),
        (provider.status(402), "has no credit left"),
        (
            provider.status(400, message="only 1 is supported", param="temperature"),
            "does not take temperature as it is sent .* only 1 is supported; look at",
        ),
    ],
)
def test_what_a_person_has_to_see_to(p: Provider, step: Any, line: str) -> None:
    p.script(step)
    with pytest.raises(Pause, match=line) as raised:
        ask(p.url, api_key="secret-key")
    assert raised.value.reason.startswith("llm: ")
    assert "\n" not in raised.value.reason
    assert "secret-key" not in raised.value.reason


def test_a_missing_key(p: Provider) -> None:
    p.script(provider.status(401))
    with pytest.raises(Pause, match=r"the key for .* is missing"):
        ask(p.url)


def test_something_else_answers(local: Callable[..., str]) -> None:
    with pytest.raises(Pause, match=r"answers with a text that is no JSON: look at llm\.base_url"):
        ask(local(b"200 OK", b"<html>a portal</html>", kind=b"text/html"))
    with pytest.raises(Passing, match="gave no completion"):
        ask(local(b"200 OK", b'{"choices": []}'))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360.0),
        ("20ms", 0.02),
        ("1h", 3600.0),
        ("1.5", 1.5),
        ("1m0.25s", 60.25),
        ("12h", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_durations(text: str | None, seconds: float | None) -> None:
    assert clients.duration(text) == seconds


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2", "retry-after-ms": "1250"}, 1.25),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": "1000000"}, 3600.0),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert clients.retry_after(headers) == seconds  # type: ignore[arg-type]


# Who is asked


def test_the_environment_of_the_client_does_not_matter(
    p: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "of-somebody")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://192.0.2.1/v1")
    assert endpoint.named(settings(None)).embedded
    own = endpoint.named(settings(None, api_key="mine"))
    assert (own.provider, own.base_url) == ("api.openai.com", "https://api.openai.com/v1")
    ask(p.url)
    assert p.calls[0].headers["authorization"] == "Bearer none"


def test_a_proxy_is_not_for_loopback(p: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://192.0.2.1:3128")
    ask(p.url)
    assert len(p.calls) == 1


@pytest.mark.parametrize("url", ["not an address", "ftp://here/v1", "http://", "http://[::1"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match=r"llm\.base_url: write an address"):
        endpoint.named(settings(url))


@pytest.mark.parametrize(
    "url",
    [
        "http://192.0.2.1/v1",
        "https://8.8.8.8:8443/v1",
        "http://0.0.0.0:1/v1",
        "http://[2001:db8::1]/v1",
        "http://[::ffff:192.0.2.1]/v1",
    ],
)
def test_local_only_refuses_what_is_beyond(url: str) -> None:
    with pytest.raises(ConfigError, match=r"llm\.local_only: .* beyond this machine; nothing was"):
        endpoint.check(settings(url, local_only=True))
    endpoint.check(settings(url))


def test_local_only_refuses_openai_and_allows_the_embedded_model() -> None:
    with pytest.raises(ConfigError, match=r"llm\.local_only: api\.openai\.com"):
        endpoint.check(settings(None, api_key="k", local_only=True))
    assert endpoint.check(settings(None, local_only=True)).embedded


def test_local_only_looks_where_a_name_leads(p: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    port = p.url.split(":")[2].split("/")[0]
    named = f"http://models.example:{port}/v1"
    leads = {"to": "127.0.0.1"}

    def resolve(host: Any, service: Any, *rest: Any, **more: Any) -> Any:
        return real(leads["to"] if host == "models.example" else host, service, *rest, **more)

    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    made = settings(named, local_only=True)
    client = Client(made, endpoint.check(made))
    client.ask(BODY)
    leads["to"] = "192.0.2.1"
    with pytest.raises(Pause, match=r"models\.example is 192\.0\.2\.1, beyond this machine"):
        client.ask(BODY)
    with pytest.raises(ConfigError, match="192"):
        endpoint.check(made)
    assert len(p.calls) == 1


def test_local_only_follows_no_redirect(p: Provider, local: Callable[..., str]) -> None:
    url = local(b"307 Temporary Redirect", b"", more=b"location: http://192.0.2.1/v1/chat\r\n")
    with pytest.raises(Pause, match="answers with status 307"):
        ask(url, local_only=True)


@pytest.fixture
def local() -> Iterator[Callable[..., str]]:
    """A server that answers one connection with given bytes; gives its address."""
    import threading

    sockets: list[socket.socket] = []

    def serve(
        status: bytes, body: bytes, kind: bytes = b"application/json", more: bytes = b""
    ) -> str:
        listening = socket.create_server(("127.0.0.1", 0))
        sockets.append(listening)

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                said = b""
                while b"hello" not in said:
                    said += connection.recv(65536)
                head = b"content-type: " + kind + b"\r\nconnection: close\r\n" + more
                size = b"content-length: %d\r\n\r\n" % len(body)
                connection.sendall(b"HTTP/1.1 " + status + b"\r\n" + head + size + body)

        threading.Thread(target=answer, daemon=True).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}/v1"

    yield serve
    for listening in sockets:
        listening.close()
