"""What does not belong on our topics harms nobody: each piece has a clear outcome, the sums add up,
and what is good stands as if nothing else had been there."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import orjson
from confluent_kafka import KafkaError, Producer

from headrace.stream import clients
from headrace.stream.wire import Lineage, Position, Revision
from tests.whole import running
from tests.whole.corpus import TEXTS
from tests.whole.tables import outcomes_of, stored
from tests.world import World

RAW = "raw.posts.reddit"
AT = "2026-11-21T09:00:00.000Z"
Message = tuple[bytes | None, bytes | None, dict[str, Any] | list[tuple[str, Any]]]


def post(native: str, **fields: Any) -> bytes:
    value = {"id": f"post:reddit:{native}", "kind": "post", "platform": "reddit", "text": "fine"}
    return orjson.dumps(value | fields)


def no_records() -> dict[str, Message]:
    """Foreign messages on a raw topic; every group that reads them has a dead letter of each."""
    deep = b"[" * 100_000 + b"]" * 100_000
    return {
        "bytes": (b"\xff\xfe\x00", b"\x00\x01\x02\xff", {}),
        "a tombstone": (b"post:reddit:gone", None, {}),
        "nothing": (b"", b"", {}),
        "another's JSON": (b"user-17", b'{"user": 17, "action": "login"}', {"source": b"crm"}),
        "a list": (b"k", b"[1, 2, 3]", {}),
        "a number": (b"k", b"17", {}),
        "a string": (b"k", b'"post"', {}),
        "NaN": (b"post:reddit:nan", b'{"id": "post:reddit:nan", "metrics": {"score": NaN}}', {}),
        "deep": (b"post:reddit:deep", deep, {}),
        "not UTF-8": (b"post:reddit:l1", post("l1", text="caf@").replace(b"@", b"\xe9"), {}),
        "half a pair": (b"post:reddit:hp", post("hp", text="@").replace(b"@", b"\\ud83d"), {}),
        "cut off": (b"post:reddit:cut", post("cut")[:-7], {}),
        "without a key": (b"", post("keyless"), {}),  # none at all is refused by Kafka itself
        "another's key": (b"post:reddit:other", post("mine"), {}),
        "a number as text": (b"post:reddit:n", post("n", text=17), {}),
        "an endless id": (b"post:reddit:" + b"x" * 600, post("x" * 600), {}),
        "a NUL in the id": (b"post:reddit:\x00", post("\0"), {}),
        "unknown fields": (b"post:reddit:nest", post("nest", metrics={"a": {"b": 1}}), {}),
    }


def odd_records() -> dict[str, tuple[bytes, Any]]:
    """Records that are none of the usual ones, by native id: (message, headers)."""
    chance = random.Random(3)
    noise = "".join(chance.choice("abcdefghij klmnop.,!?😀של") for _ in range(300_000))
    return {
        "huge": (post("huge", text=noise), {}),
        "one-word": (post("one-word", text="x" * 1_900_000), {}),
        "brands": (post("brands", text="I drove a Toyota to Berlin. " * 70_000), {}),
        "emoji": (post("emoji", text="👩‍👩‍👧‍👦🏳️‍🌈 I love this 🎉🎉"), {}),
        "rtl": (post("rtl", text="\u202eשלום עולם, מה שלומך היום\u202c مرحبا بالعالم"), {}),
        "control": (post("control", text="a\x01b\x02c\r\n\t\x7f I love it very much"), {}),
        "copy": (post("copy", text="\\N \\. \\\\ \t\n\\.\n I love it"), {}),
        "empty": (post("empty", text=""), {}),
        "zalgo": (post("zalgo", text="I l̸̢̛o͘͠v̷e it" + "\u0301" * 5000), {}),
        "numbers": (post("numbers", metrics={"score": 1e308, "likes": -0.0, "n": 2**63}), {}),
        "headers": (post("headers"), [("ce_source", b"\xff;;\0"), ("ce_source", b""), ("x", None)]),
        "hr": (post("hr"), {"hr": b"1;2;3", "traceparent": b"\xff\0"}),
        "extra": (post("extra", extra="@", author="a" * 1000).replace(b'"@"', nested(300)), {}),
        "fields": (post("fields", published="later versions may say more"), {}),
    }


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


def unstorable() -> dict[str, bytes]:
    """What stages can read and PostgreSQL cannot hold, by native id."""
    return {
        "nul": post("nul", text="a\0b is what I love"),
        "nul-name": post("nul-name", author="a\0b"),
        "no-day": post("no-day", created_at="2026-02-31T12:00:00Z"),
        "no-year": post("no-year", created_at="0000-01-01T00:00:00Z"),
    }


def no_outcomes(world: World) -> dict[str, Message]:
    """Messages on enriched.entities that are none of a stage's; only the store reads them."""
    topic = world.topology.topic(RAW).name
    revision = Revision(world.admin.topic_ids()[topic], 0, 0, 1)
    header = Lineage(revision, "r1", 0, 1, (), Position(topic, 0, 0)).pack()
    key = b"post:reddit:good-0"
    mention = {"text": "a", "name": "A", "type": "brand", "start": 0, "end": 1, "confidence": 0.9}

    def envelope(**fields: Any) -> bytes:
        value: dict[str, Any] = {
            "id": key.decode(), "kind": "post", "platform": "reddit", "stage": "entities",
            "outcome": "ok", "version": "1", "at": AT, "result": {"entities": []},
        }  # fmt: skip
        return orjson.dumps(value | fields)

    def mentioned(**fields: Any) -> bytes:
        return envelope(result={"entities": [mention | {"method": "dictionary"} | fields]})

    own = {"hr": header}
    far = header.replace(b":0:0:1;", b":0:99999999999999999999:1;")
    return {
        "without hr": (key, envelope(), {}),
        "an empty hr": (key, envelope(), {"hr": b""}),
        "hr is nonsense": (key, envelope(), {"hr": b"\xff\xfe"}),
        "hr is too short": (key, envelope(), {"hr": header.rpartition(b";")[0]}),
        "an offset past all": (key, envelope(), {"hr": far}),
        "a NUL in hr": (key, envelope(), {"hr": header + b"\0"}),
        "bytes": (b"\x00", b"\xff\x00", own),
        "a tombstone": (key, None, own),
        "a list": (key, b"[]", own),
        "another stage's": (key, envelope(stage="text"), own),
        "no such outcome": (key, envelope(outcome="perhaps"), own),
        "ok without a result": (key, envelope(result=None), own),
        "no such day": (key, envelope(at="2026-02-31T12:00:00Z"), own),
        "a NUL": (key, mentioned(name="a\0b"), own),
        "an endless start": (key, mentioned(start=3_000_000_000, end=3_000_000_001), own),
        "another's key": (b"post:reddit:good-1", envelope(), own),
    }


def no_letters() -> dict[str, Message]:
    """Messages on text.dlt that are no dead letters."""
    error = "__connect.errors."
    place = {f"{error}topic": b"t", f"{error}partition": b"0", f"{error}offset": b"1"}
    return {
        "without headers": (b"post:reddit:x", post("x"), {}),
        "bytes": (b"\xff", b"\xfe", {}),
        "a partition in words": (b"k1", b"v", place | {f"{error}partition": b"one"}),
        "an offset past all": (b"k2", b"v", place | {f"{error}offset": b"9" * 30}),
    }


def no_redo() -> dict[str, Message]:
    """Messages on a redo topic that are no work to be done again."""
    return {
        "without hr": (b"post:reddit:good-2", post("good-2"), {}),
        "hr is nonsense": (b"post:reddit:good-2", post("good-2"), {"hr": b"nonsense"}),
        "of an unknown topic": (None, None, {"hr": b"A:0:1:2;r;0;0;;nobody.knows:0:1"}),
    }


def no_receipts() -> dict[str, Message]:
    values = (b"\xff\x00", b"[]", b'{"type": "run"}', b'{"type": "progress", "run": 7}')
    return {str(value): (b"nobody's", value, {}) for value in values}


class Sender:
    """Sends anything anywhere, and notes whose dead letters it should become."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._producer = Producer(clients.producer_conf(world.settings))
        self._refused: list[str] = []
        self.letters: Counter[tuple[str, Any, Any]] = Counter()

    def send(self, short: str, messages: Iterable[Message], *dead_in: str) -> None:
        name = self._world.topology.topic(short).name
        for key, value, headers in messages:
            pairs = list(headers.items()) if isinstance(headers, dict) else headers
            self._producer.produce(name, value, key, headers=pairs, on_delivery=self._note)
            self.letters.update((group, key, value) for group in dead_in)
        assert self._producer.flush(60) == 0
        assert self._refused == []

    def _note(self, error: KafkaError | None, message: Any) -> None:
        if error is not None:
            self._refused.append(f"{message.topic()}: {error}")


def test_nothing_foreign_does_harm(worlds: Any) -> None:
    world: World = worlds().apply()
    sender = Sender(world)
    stages = [stage.short for stage in world.topology.stages()]
    odd = {f"post:reddit:{name}": message for name, message in odd_records().items()}
    odd["post:reddit:twin"] = (post("twin"), {})
    good = world.post(ids=[f"good-{n}" for n in range(120)], texts=TEXTS, author="Ann")

    sender.send(RAW, no_records().values(), *stages, "postgres")
    sender.send(RAW, [(name.encode(), *message) for name, message in odd.items()])
    sender.send(RAW, [(b"post:reddit:twin", *odd["post:reddit:twin"])] * 2)
    refused = [(f"post:reddit:{name}".encode(), value, {}) for name, value in unstorable().items()]
    sender.send(RAW, refused, "postgres")
    sender.send("raw.communities", [(b"post:reddit:good-3", post("good-3"), {})], "postgres")
    sender.send("enriched.entities", no_outcomes(world).values(), "postgres")
    sender.send("text.dlt", no_letters().values(), "postgres")
    for group in (*stages, "postgres"):
        sender.send(f"{group}.redo", no_redo().values(), group)
    sender.send("runs", no_receipts().values(), "postgres")
    sender.send("runs", [(b"nobody's", None, {})])
    sender.send("status", [(None, b"\xff", {}), (b"text", b"{}", {})])
    good += world.post("youtube", texts=TEXTS)

    world.run()

    values = {value["id"]: value for value in good}
    values |= {name: orjson.loads(value) for name, (value, _) in odd.items()}
    assert dict(world.sql("SELECT id, text FROM posts")) == {
        name: value["text"] for name, value in values.items()
    }
    unread = {f"post:reddit:{name}" for name in unstorable()}
    found = {key: said for key, said in stored(world).items() if key[0] not in unread}
    assert found == outcomes_of(world, values)
    assert found["post:reddit:brands", "entities"][2]["entities"]  # as many as there is room for

    rows = world.sql('SELECT "group", key, value, reason FROM dead_letters')
    assert Counter((group, key, value) for group, key, value, _ in rows) == sender.letters
    assert all(reason for *_, reason in rows)
    assert running.left(world) == {}
    told = json.loads(world.command("doctor", "--json", check=False).stdout)
    assert [sums["records"] for sums in told["sums"]] == [len(values)] * len(stages)
    assert all(sums["balanced"] and not sums["pending"] for sums in told["sums"])
    assert {one["check"] for one in told["findings"] if one["level"] == "finding"} <= {"retention"}
    mistaken = world.command("progress", check=False)
    assert (mistaken.returncode, mistaken.stderr.count("\n")) == (2, 1)
    assert "nothing has been published yet" in mistaken.stderr
    assert "nothing to do" in world.run().stdout
