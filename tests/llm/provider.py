"""A provider on loopback that speaks OpenAI's API: llmock's server, with answers by schema.

    with provider.serve() as p:
        p.url                                   # llm.base_url
        p.answer = lambda asked: {"score": 7}   # of one item; default: made up by its schema
        p.script(provider.status(429, retry_after=0.2), provider.malformed())   # the next calls
        p.judge = lambda call: provider.status(400) if "poison" in call.text else None
        p.seconds = 0.5                         # that each answer takes
        p.limits(rpm=50, tpm=None)              # llmock's own, with its headers and 429s
        p.calls                                 # what arrived: at, body, headers, items, status
        p.verdict()                             # llmock's opinion of the client

A packed prompt has to show its items as JSON objects that begin with "n" ({"n": 1, …}): this is
how the provider knows them, and the same item gets the same answer whatever stands beside it.
Steps: status, answer, malformed, truncated, left_out, unknown, refusal, filtered, dropped, lost,
slow, held, headers; `&` puts two together (slow(1) & left_out(2)). `script(…, path="files")` and
"batches" are for the other endpoints.

Batches: `p.batch_seconds` until one is done, `p.batch(provider.expired(0.5), provider.failed())`
says how the next ones end. As a process: `python -m tests.llm.provider --seconds 1 --rpm 50`.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import logging
import random
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from llmock.ratelimit import LimitSettings
from llmock.routers import batch as batches
from llmock.scenarios import Fail, Match
from llmock.testing import LLMockServer
from llmock.verdict import Verdict, judge

CHAT = "/v1/chat/completions"
_WORDS = [
    "river",
    "meadow",
    "lantern",
    "copper",
    "violet",
    "anchor",
    "timber",
    "harvest",
    "signal",
    "granite",
    "willow",
    "ember",
    "orchard",
    "compass",
    "feather",
    "mosaic",
    "harbor",
    "saffron",
    "thunder",
    "velvet",
    "walnut",
    "zephyr",
    "cobalt",
    "dune",
]
_ITEM = re.compile(r'\{\s*"n"\s*:')
_HELD_SECONDS = 120.0

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]


@dataclass(frozen=True)
class Step:
    """What is done with one call, instead of a good answer at once."""

    status: int | None = None
    retry_after: float | None = None
    message: str | None = None
    code: str | None = None
    param: str | None = None
    content: str | None = None
    finish: str | None = None
    cut: float | None = None  # share of the good answer's text that is sent
    without: frozenset[int] = frozenset()
    more: tuple[dict[str, Any], ...] = ()
    refusal: str | None = None
    dropped: bool = False  # the connection, before the answer …
    lost: bool = False  # … or after the work was done
    seconds: float = 0.0
    until: threading.Event | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def __and__(self, other: Step) -> Step:
        plain = Step()
        said = {k: v for k, v in vars(other).items() if v != getattr(plain, k)}
        return replace(self, **said)


def status(
    code: int,
    retry_after: float | None = None,
    message: str | None = None,
    error: str | None = None,
    param: str | None = None,
) -> Step:
    """An error; `retry_after` in seconds is sent as retry-after and as retry-after-ms, and a 429
    or 503 without one asks for a second."""
    return Step(status=code, retry_after=retry_after, message=message, code=error, param=param)


def answer(content: str, finish: str = "stop") -> Step:
    """Just this text."""
    return Step(content=content, finish=finish)


def malformed(share: float = 0.6) -> Step:
    """The good answer, cut, as if it were whole."""
    return Step(cut=share)


def truncated(share: float = 0.6) -> Step:
    """The good answer, cut since there was no more room."""
    return Step(cut=share, finish="length")


def left_out(*numbers: int) -> Step:
    return Step(without=frozenset(numbers))


def unknown(item: dict[str, Any]) -> Step:
    """One item more than was asked for."""
    return Step(more=(item,))


def refusal(text: str = "I cannot help with that.") -> Step:
    return Step(refusal=text)


def filtered() -> Step:
    return Step(content="", finish="content_filter")


def dropped() -> Step:
    return Step(dropped=True)


def lost() -> Step:
    """Done, but the connection ends before the answer."""
    return Step(lost=True)


def slow(seconds: float) -> Step:
    return Step(seconds=seconds)


def held(event: threading.Event) -> Step:
    """Not answered before the event."""
    return Step(until=event)


def headers(**named: str) -> Step:
    """More headers: headers(x_ratelimit_remaining_requests="0")."""
    return Step(headers=tuple((name.replace("_", "-"), value) for name, value in named.items()))


@dataclass
class Call:
    """One call that arrived, and what became of it."""

    number: int
    at: float  # time.monotonic()
    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    status: int | None = None
    content: str | None = None
    ended: float | None = None

    @property
    def text(self) -> str:
        """All messages."""
        return "\n".join(str(message.get("content")) for message in self.body.get("messages", ()))

    @property
    def prompt(self) -> str:
        """The first user message."""
        users = [m for m in self.body.get("messages", ()) if m.get("role") == "user"]
        return str(users[0].get("content")) if users else ""

    @property
    def schema(self) -> dict[str, Any]:
        schema = (self.body.get("response_format") or {}).get("json_schema", {}).get("schema")
        return schema or {}

    @property
    def items(self) -> list[dict[str, Any]]:
        """The items of a packed prompt, as it shows them."""
        found, decoder, text = [], json.JSONDecoder(), self.prompt
        for match in _ITEM.finditer(text):
            try:
                found.append(decoder.raw_decode(text, match.start())[0])
            except ValueError:
                found.append({"n": int(re.findall(r"\d+", text[match.end() :])[0])})
        return found


@dataclass(frozen=True)
class Asked:
    """One item of a call."""

    n: int  # 0 where the prompt is for one item
    item: dict[str, Any]
    schema: dict[str, Any]
    call: Call


@dataclass(frozen=True)
class End:
    """How a batch ends: with that share of its requests done."""

    state: str = "completed"
    done: float = 1.0
    errors: float = 0.0  # share of those done that have an error in the error file
    error_status: int = 500
    code: str = "invalid_file"  # why a batch failed


def expired(done: float = 0.5) -> End:
    return End("expired", done)


def failed(code: str = "invalid_file") -> End:
    """The whole file is refused."""
    return End("failed", 0.0, code=code)


def cancelled(done: float = 0.0) -> End:
    return End("cancelled", done)


def partly(errors: float = 0.5, error_status: int = 500) -> End:
    return End(errors=errors, error_status=error_status)


@dataclass
class Provider:
    url: str = ""
    calls: list[Call] = field(default_factory=list)  # of chat completions
    others: list[Call] = field(default_factory=list)  # of files, batches, embeddings, models
    answer: Callable[[Asked], dict[str, Any]] | None = None
    judge: Callable[[Call], Step | None] | None = None
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    keep: bool = True  # false: `calls` holds no bodies, for long runs
    batch_seconds: float = 0.0
    server: LLMockServer = field(default_factory=LLMockServer)
    _scripts: dict[str, deque[Step]] = field(default_factory=dict)
    _ends: deque[End] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def script(self, *steps: Step, path: str = "chat/completions", times: int = 1) -> None:
        """What the next calls meet, one step each; later ones are answered well."""
        with self._lock:
            self._scripts.setdefault(path, deque()).extend(steps * times)

    def batch(self, *ends: End) -> None:
        self._ends.extend(ends)

    def limits(self, rpm: int | None = None, tpm: int | None = None) -> None:
        self.server.state.limiter.configure(LimitSettings(rpm=rpm, tpm=tpm))

    def verdict(self) -> Verdict:
        return judge(self.server.state.journal.records(wait=2.0))

    @property
    def items(self) -> list[dict[str, Any]]:
        """All items that were answered, in order of arrival."""
        return [item for call in self.calls if call.status == 200 for item in call.items]

    # -- what is done with a call

    def _step(self, call: Call) -> Step:
        short = call.path.removeprefix("/v1/").split("/")
        names = ("/".join(short[:2]) if short[0] == "chat" else short[0], call.path)
        with self._lock:
            for name in names:
                script = self._scripts.get(name)
                if script:
                    return script.popleft()
        judged = self.judge(call) if self.judge and call.path == CHAT else None
        return judged or Step()

    def content(self, call: Call, step: Step = Step()) -> str:
        """The answer's text by the schema that was asked for."""
        if step.content is not None:
            return step.content
        if not call.schema:
            return "It is well."
        packed = call.schema.get("properties", {}).get("items", {}).get("items", {})
        if "n" in packed.get("properties", {}):
            inner = {**packed, "properties": {**packed["properties"]}}
            del inner["properties"]["n"]
            found = [
                {"n": item["n"], **self._value(Asked(item["n"], item, inner, call))}
                for item in call.items
                if item["n"] not in step.without
            ]
            value: dict[str, Any] = {"items": [*found, *step.more]}
        else:
            value = self._value(Asked(0, {"prompt": call.prompt}, call.schema, call))
        text = json.dumps(value, ensure_ascii=False)
        return text if step.cut is None else text[: int(len(text) * step.cut)]

    def _value(self, asked: Asked) -> dict[str, Any]:
        if self.answer is not None:
            return self.answer(asked)
        content = {key: value for key, value in asked.item.items() if key != "n"}
        seed = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        made = made_up(asked.schema, random.Random(seed))
        assert isinstance(made, dict)
        return made

    def completion(self, call: Call, step: Step = Step()) -> dict[str, Any]:
        text = self.content(call, step)
        call.content = text
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if step.refusal is not None:
            message = {"role": "assistant", "content": None, "refusal": step.refusal}
        given, taken = max(1, len(call.text) // 4), max(1, len(text) // 4)
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex[:24]}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": call.body.get("model", "model"),
            "choices": [{"index": 0, "message": message, "finish_reason": step.finish or "stop"}],
            "usage": {
                "prompt_tokens": given,
                "completion_tokens": taken,
                "total_tokens": given + taken,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
        }

    # -- batches

    def listed(self, path: str) -> dict[str, Any]:
        """Files or batches, newest first, which llmock does not list."""
        found = batches._files if path.endswith("files") else batches._batches
        hidden = ("content", "provider", "kind", "ready_at", "done")
        rows = [{k: v for k, v in one.items() if k not in hidden} for one in found.values()]
        return {"object": "list", "data": rows[::-1], "has_more": False}

    def finish(self, batch: dict[str, Any]) -> None:
        """Ends a batch as it was said to end; in place of llmock's own, which always completes."""
        if batch.get("done"):
            return
        end = self._ends.popleft() if self._ends else End()
        now = int(time.time())
        lines = [
            json.loads(line)
            for line in batches._files[batch["input_file_id"]]["content"].splitlines()
            if line.strip()
        ]
        reached = lines[: int(len(lines) * end.done)]
        wrong = int(len(reached) * end.errors)
        good: list[dict[str, Any]] = []
        bad: list[dict[str, Any]] = []
        for number, line in enumerate(reached):
            call = Call(number, time.monotonic(), CHAT, line["body"], {})
            step = (self.judge(call) if self.judge else None) or Step()
            if number < wrong:
                step = Step(status=end.error_status)
            head = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": line["custom_id"]}
            if step.status is not None:
                fault = {"error": {"message": step.message or "no", "code": step.code}}
                response = {"status_code": step.status, "request_id": "r", "body": fault}
                bad.append({**head, "response": response, "error": None})
            else:
                response = {
                    "status_code": 200,
                    "request_id": uuid.uuid4().hex,
                    "body": self.completion(call, step),
                }
                good.append({**head, "response": response, "error": None})
        for line in lines[len(reached) :] if end.state in ("expired", "cancelled") else ():
            fault = {"code": f"batch_{end.state}", "message": "not done in time"}
            bad.append(
                {"id": "x", "custom_id": line["custom_id"], "response": None, "error": fault}
            )
        for key, rows in (("output_file_id", good), ("error_file_id", bad)):
            if rows:
                batch[key] = batches._store_file(
                    filename=f"{key}.jsonl",
                    purpose="batch_output",
                    content="\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
                    provider="openai",
                )["id"]
        if end.state == "failed":
            fault = {"code": end.code, "message": "the file cannot be read", "line": 1}
            batch["errors"] = {"object": "list", "data": [fault]}
        batch["request_counts"] = {
            "total": len(lines),
            "completed": len(good),
            "failed": len(bad),
        }
        batch["in_progress_at"] = batch["finalizing_at"] = now
        batch["status"], batch[f"{end.state}_at"], batch["done"] = end.state, now, True


def made_up(schema: dict[str, Any], chance: random.Random, name: str = "") -> Any:
    """A value that fits a schema, another one for each state of `chance`."""
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return chance.choice(schema["enum"])
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return made_up(options[0], chance, name)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next(one for one in kind if one != "null")
    if kind == "object" or "properties" in schema:
        inner = schema.get("properties", {})
        return {key: made_up(value, chance, key) for key, value in inner.items()}
    if kind == "array":
        least = schema.get("minItems", 1)
        most = schema.get("maxItems", max(least, 3))
        count = chance.randint(least, max(least, min(most, least + 3)))
        return [made_up(schema.get("items", {}), chance, name) for _ in range(count)]
    if kind in ("integer", "number"):
        low, high = schema.get("minimum", 0), schema.get("maximum", 10)
        return chance.randint(int(low), int(high))
    if kind == "boolean":
        return chance.random() < 0.5
    text = " ".join(chance.sample(_WORDS, 4)) + f" {chance.randrange(10**6)}"
    text = text.ljust(schema.get("minLength", 0), "x")
    return text[: schema.get("maxLength", len(text))]


class _Thin:
    """What llmock lacks, around its application: answers by schema, and what arrived when."""

    def __init__(self, app: Callable[..., Awaitable[None]], provider: Provider) -> None:
        self._app = app
        self._provider = provider

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        raw = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            raw += message.get("body", b"")
            if not message.get("more_body", False):
                break
        provider, path = self._provider, scope["path"]
        names = {k.decode().lower(): v.decode() for k, v in scope["headers"]}
        body = json.loads(raw) if raw and "json" in names.get("content-type", "") else {}
        into = provider.calls if path == CHAT else provider.others
        call = Call(len(into), time.monotonic(), path, body, names)
        into.append(call)
        step = provider._step(call)
        if step.until is not None:
            end = time.monotonic() + _HELD_SECONDS
            while not step.until.is_set() and time.monotonic() < end:
                await asyncio.sleep(0.02)
        if path == CHAT and (seconds := provider.seconds + step.seconds):
            await asyncio.sleep(seconds)
        if step.dropped:
            await _drop(send)
            return
        if step.status is not None:
            # Nothing is awaited between here and llmock's look at its queue.
            provider.server.state.scenarios.add(
                Fail(
                    step.status,
                    retry_after=step.retry_after,
                    message=step.message,
                    code=step.code,
                    match=Match(path=path),
                )
            )
        if scope["method"] == "GET" and path in ("/v1/files", "/v1/batches"):
            start, answered = _ok(provider.listed(path))
        else:
            start, answered = await self._inner(scope, raw, receive)
        call.status = start["status"]
        if path == CHAT and call.status == 200:
            answered = json.dumps(provider.completion(call, step)).encode()
        elif step.param is not None:
            value = json.loads(answered)
            value["error"]["param"] = step.param
            answered = json.dumps(value).encode()
        call.ended = time.monotonic()
        if not provider.keep:
            call.body, call.content = {}, None
        if step.lost:
            await _drop(send)
            return
        more = {**provider.headers, **dict(step.headers), "content-length": str(len(answered))}
        more.setdefault("x-request-id", f"req_{call.number}")
        kept = [(k, v) for k, v in start["headers"] if k.decode().lower() not in more]
        kept += [(k.encode(), v.encode()) for k, v in more.items()]
        await send({**start, "headers": kept})
        await send({"type": "http.response.body", "body": answered})

    async def _inner(self, scope: Scope, raw: bytes, receive: Any) -> tuple[Message, bytes]:
        start: Message = {}
        parts: list[bytes] = []
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": raw, "more_body": False}

        async def take(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
            else:
                parts.append(message.get("body", b""))

        await self._app(scope, replay, take)
        return start, b"".join(parts)


async def _drop(send: Any) -> None:
    """Ends the connection in the middle of an answer."""
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"application/json"), (b"content-length", b"1000")],
        }
    )
    await send({"type": "http.response.body", "body": b'{"id"', "more_body": True})


def _ok(value: Any) -> tuple[Message, bytes]:
    headers = [(b"content-type", b"application/json")]
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    return start, json.dumps(value).encode()


@contextmanager
def serve(port: int = 0, **settings: Any) -> Iterator[Provider]:
    """A provider in a thread of this process, with an empty memory. `settings`: its fields."""
    provider = Provider(**settings)
    server = provider.server = LLMockServer(port=port)
    server.app.add_middleware(_Thin, provider=provider)
    before = batches._finish_openai_like, batches._BATCH_DELAY
    batches._files.clear()
    batches._batches.clear()

    def refresh(batch: dict[str, Any]) -> None:
        if time.time() >= batch["ready_at"] - before[1] + provider.batch_seconds:
            provider.finish(batch)

    asked = batches._refresh
    batches._refresh = refresh
    server.start()
    # It would tell of each connection that was dropped on purpose.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    provider.url = server.base_url("openai")
    try:
        yield provider
    finally:
        batches._refresh = asked
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--rpm", type=int)
    parser.add_argument("--tpm", type=int)
    arguments = parser.parse_args()
    with serve(arguments.port, seconds=arguments.seconds, keep=False) as p:
        p.limits(arguments.rpm, arguments.tpm)
        print(p.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
