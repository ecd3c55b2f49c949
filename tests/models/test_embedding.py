"""Vectors: whose neighbours do not matter, and endpoints that fail in every way."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.config import LLM, Embeddings, Settings
from headrace.errors import ConfigError, HeadraceError
from headrace.models import embedding
from headrace.models.embedding import MINILM, Endpoint, MiniLM
from headrace.stream.stage import Pause, Retry

WORDS = "the price of this phone is too high but I love it naïve 😀 très #ok 12 @someone"


@cache
def minilm() -> MiniLM:
    return MiniLM()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(
        st.lists(st.sampled_from(WORDS.split()), min_size=1, max_size=40).map(" ".join), max_size=12
    ),
    st.randoms(use_true_random=False),
)
def test_a_vector_does_not_depend_on_its_neighbours(
    texts: list[str], chance: random.Random
) -> None:
    texts = ["word " * 400, *texts]  # longer than the model reads
    alone = np.vstack([minilm().embed([text]) for text in texts])
    order = list(range(len(texts)))
    chance.shuffle(order)
    together = minilm().embed([texts[number] for number in order])
    assert together.dtype == np.float32 and together.shape == (len(texts), 384)
    assert together.tobytes() == alone[order].tobytes(), "to the bit"


def test_meaning_is_near() -> None:
    near, like, far = minilm().embed(
        ["My flight was cancelled", "The airline called off our plane", "I bake bread on Sundays"]
    )
    assert near @ like > 0.5 > near @ far
    assert abs(float(near @ near) - 1) < 1e-5
    assert minilm().embed([]).shape == (0, 384)
    assert minilm().embed(["\0 \ud800".encode(errors="replace").decode()]).shape == (1, 384)


def test_a_vector_travels_to_the_bit() -> None:
    (vector,) = minilm().embed(["some words"])
    text = embedding.encoded(vector)
    assert embedding.decoded(text, 384).tobytes() == vector.tobytes()
    with pytest.raises(ValueError, match="does not hold 3 numbers"):
        embedding.decoded(text, 3)


def test_the_weights_are_those_that_were_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    package, file, _ = embedding._MINILM_WEIGHTS
    monkeypatch.setattr(embedding, "_MINILM_WEIGHTS", (package, file, "0" * 64))
    with pytest.raises(HeadraceError, match=r"model\.onnx is not the model that this version"):
        MiniLM()
    monkeypatch.setattr(embedding, "_MINILM_WEIGHTS", ("no_such_package", file, ""))
    with pytest.raises(HeadraceError, match="package no_such_package with"):
        MiniLM()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "other"}, "embeddings.model: minilm is"),
        ({"dimensions": 5}, "embeddings.dimensions: minilm is"),
        ({"provider": "openai", "dimensions": 5}, "embeddings.model: .* needs a model"),
        ({"provider": "openai", "model": "m"}, "embeddings.dimensions: say how many"),
        ({"provider": "openai", "model": "m", "dimensions": 5}, "embeddings.api_key"),
        ({"provider": "fastembed", "model": "m"}, "fastembed is not installed|has no m"),
    ],
)
def test_settings_that_cannot_be_are_named(
    given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=message):
        embedding.load(Embeddings(**given), LLM())


def test_a_space_is_known_without_its_model() -> None:
    assert embedding.space_of(Settings().embeddings) == f"{MINILM}-384"
    own = Embeddings(provider="openai", model="m", dimensions=7)
    assert embedding.space_of(own) == "m-7"


class FakeFastEmbed:
    """As much of fastembed as is used. The real one downloads its models."""

    __version__ = "9"

    class TextEmbedding:
        def __init__(self, model_name: str, threads: int) -> None:
            if model_name == "tiny/broken":
                raise ValueError("cannot download")

        @staticmethod
        def list_supported_models() -> list[dict[str, Any]]:
            return [{"model": "tiny/one", "dim": 2}, {"model": "tiny/broken", "dim": 2}]

        def embed(self, texts: list[str], batch_size: int) -> Iterator[Any]:
            assert batch_size == 1, "it pads what it takes together"
            return (np.array([len(text), 1.0]) for text in texts)


def test_fastembed_gives_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_fastembed", lambda: FakeFastEmbed)
    model = embedding.load(Embeddings(provider="fastembed", model="tiny/one"), LLM())
    assert (model.name, model.dimensions, model.version) == ("tiny/one", 2, "fastembed-9")
    assert model.embed(["", "abc"])[0].tolist() == [0, 1]
    with pytest.raises(HeadraceError, match="fastembed cannot load tiny/broken"):
        embedding.load(Embeddings(provider="fastembed", model="tiny/broken"), LLM())
    with pytest.raises(ConfigError, match="fastembed has no else; there are: tiny/one"):
        embedding.space_of(Embeddings(provider="fastembed", model="else"))


# -- an endpoint

Answer = tuple[int, dict[str, Any], dict[str, str]]


class Server:
    """An endpoint on loopback; `answer` says what the next request gets."""

    def __init__(self) -> None:
        outer = self
        self.requests: list[dict[str, Any]] = []
        self.answer: Callable[[dict[str, Any]], Answer] = vectors_of

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(asked)
                status, body, headers = outer.answer(asked)
                content = json.dumps(body).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def vectors_of(asked: dict[str, Any]) -> Answer:
    """Texts as (length, 1), in an order of the endpoint's own."""
    rows = [
        {"object": "embedding", "index": number, "embedding": [float(len(text)), 1.0]}
        for number, text in enumerate(asked["input"])
    ]
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    return 200, {"object": "list", "model": "m", "data": rows[::-1], "usage": usage}, {}


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


def endpoint(server: Server, llm: LLM | None = None, **given: Any) -> Endpoint:
    own = {"provider": "openai", "model": "m", "dimensions": 2, "base_url": server.url}
    return Endpoint(Embeddings(**(own | given)), llm or LLM())


def test_what_may_leave_the_machine(server: Server) -> None:
    masking = LLM(local_only=True, redact=True, redact_names=("Ada",))
    endpoint(server, masking).embed(["Ada", "ada@example.org"])
    assert [asked["input"] for asked in server.requests] == [["[name 1]", "[email 1]"]]
    with pytest.raises(ConfigError, match=r"llm\.local_only: 192.* beyond .*; nothing was sent"):
        endpoint(server, masking, base_url="http://192.0.2.1/v1")


def test_an_endpoint_gives_each_text_its_own_vector(server: Server) -> None:
    model = endpoint(server, request_texts=2, shorten=True)
    found = model.embed(["aaa", "", "a", "aaa"])
    lengths = np.array([[3, 1], [0, 1], [1, 1], [3, 1]], dtype=np.float32)
    assert np.allclose(found, lengths / np.linalg.norm(lengths, axis=1, keepdims=True))
    assert [asked["input"] for asked in server.requests] == [["", "a"], ["aaa"]]
    assert server.requests[0]["dimensions"] == 2
    assert model.embed([]).shape == (0, 2)


def test_what_an_endpoint_answered_is_not_asked_again(server: Server) -> None:
    model = endpoint(server, request_texts=1)

    def second_fails(asked: dict[str, Any]) -> Answer:
        if asked["input"] == ["bb"]:
            return 503, {"error": {"message": "busy"}}, {}
        return vectors_of(asked)

    server.answer = second_fails
    with pytest.raises(Retry):
        model.embed(["a", "bb"])
    server.answer = vectors_of
    assert len(model.embed(["a", "bb"])) == 2
    assert [asked["input"] for asked in server.requests] == [["a"], ["bb"], ["bb"]]


@pytest.mark.parametrize(
    ("status", "body", "headers", "error", "said"),
    [
        (429, {"code": "rate_limit_exceeded"}, {"retry-after": "7"}, Retry, "asks for a pause"),
        (429, {"code": "insufficient_quota"}, {}, Pause, "quota is used up"),
        (500, {}, {}, Retry, "500"),
        (503, {}, {"retry-after": "soon"}, Retry, "503"),
        (408, {}, {}, Retry, "status 408"),
        (401, {"message": "key sk-secret is wrong"}, {}, Pause, "refuses with status 401"),
        (404, {}, {}, Pause, "refuses with status 404"),
        (400, {"message": "the text is too long"}, {}, ValueError, "refuses with status 400"),
    ],
)
def test_a_failing_endpoint_is_a_retry_a_pause_or_the_texts_fault(
    server: Server,
    status: int,
    body: dict[str, Any],
    headers: dict[str, str],
    error: type[Exception],
    said: str,
) -> None:
    server.answer = lambda asked: (status, {"error": body}, headers)
    with pytest.raises(error, match=said) as caught:
        endpoint(server).embed(["a"])
    assert "secret" not in str(caught.value)
    if isinstance(caught.value, Retry):
        assert caught.value.after == (7 if headers.get("retry-after") == "7" else 5)
    assert len(server.requests) == 1, "the worker tries again, not the client"


def test_vectors_of_another_length_are_a_pause(server: Server) -> None:
    with pytest.raises(Pause, match=r"m gives 2 numbers and .* says 3"):
        endpoint(server, dimensions=3).embed(["a"])


@pytest.mark.parametrize("body", ["<html>", {"object": "list", "data": []}, {"data": [{}, {}]}])
def test_an_answer_without_vectors_is_no_texts_fault(server: Server, body: Any) -> None:
    server.answer = lambda asked: (200, body, {})
    with pytest.raises(Retry):
        endpoint(server).embed(["a"])


def test_an_endpoint_that_is_gone_or_silent_is_a_retry(server: Server) -> None:
    gone = Embeddings(provider="openai", model="m", dimensions=2, base_url="http://127.0.0.1:1/v1")
    with pytest.raises(Retry):
        Endpoint(gone, LLM()).embed(["a"])
    silence = threading.Event()

    def silent(asked: dict[str, Any]) -> Answer:
        silence.wait(60)
        return vectors_of(asked)

    server.answer = silent
    try:
        with pytest.raises(Retry):
            endpoint(server, timeout_seconds=0.2).embed(["a"])
    finally:
        silence.set()
