"""Every message has one answer: what stages see, what they write, what becomes of bad input."""

from collections import Counter

import orjson
import pytest

from headrace.stream.wire import Lineage, Position, Revision
from tests.stages import groups

RAW = "raw.posts.reddit"


def header(message, name="hr"):
    return dict(message.headers() or []).get(name)


def text_of(message, name):
    return header(message, f"__connect.errors.{name}").decode()


def letter_place(message):
    return f"{text_of(message, 'partition')}:{text_of(message, 'offset')}"


def raw(native, **fields):
    value = {"id": f"post:reddit:{native}", "kind": "post", "platform": "reddit", "text": "a b"}
    return orjson.dumps(value | fields)


@pytest.fixture
def world(worlds):
    return worlds(
        change=groups(
            words={"dead_letters": {"count": 100, "share": 1.0}, "rank": 3},
            shout={"reads": ["enriched.words"], "version": "2", "rank": 2},
        )
    )


def test_every_message_is_answered_once(world):
    """Good, guilty and foreign messages in one batch, a stage behind it, and both redo topics."""
    texts = {
        "0": "one two", "1": "!raise", "2": "!dead", "3": "!drop", "4": "!defer", "5": "!object",
        "6": "!list", "7": "!large", "8": "three", "9": "😀 \u202eשלום\u202c\n\t\\\"",
    }  # fmt: skip
    world.post(ids=list(texts), texts=list(texts.values()), run="r7")
    world.delete("post:reddit:8")
    ce = {"ce_source": "/runs/r7", "traceparent": "00-abc"}
    world.send(RAW, "post:reddit:traced", raw("traced"), ce)
    bad = {
        "broken JSON": (b"post:reddit:b1", b'{"id": "post:reddit:b1", '),
        "not UTF-8": (b"post:reddit:b2", b'{"id": "post:reddit:b2", "text": "\xe9t\xe9"}'),
        "a list": (b"post:reddit:b3", b"[1, 2]"),
        "a foreign message": (b"user-17", b'{"user": 17, "action": "login"}'),
        "no text": (b"post:reddit:b5", raw("b5", text=None)),
        "another's key": (b"post:reddit:b6", raw("other")),
        "no value": (b"post:reddit:b8", None),
        "bytes": (b"\xff\xfe", b"\x00\x01\x02"),
        "lone surrogate": (b"post:reddit:b9", b'{"id": "post:reddit:b9", "text": "\\ud800"}'),
    }
    for key, value in bad.values():
        world.send(RAW, key, value)
    world.send("enriched.words", "post:reddit:x", b'{"id": "post:reddit:x"}')  # from nobody's group

    world.run("--only", "words", "shout")

    raws = {m.key(): m for m in world.read(RAW)}
    outcomes = world.read("enriched.words")
    own = [m for m in outcomes if header(m) is not None]
    by_id = {orjson.loads(m.value())["id"]: orjson.loads(m.value()) for m in own}
    kinds = Counter(orjson.loads(m.value())["outcome"] for m in own)
    assert kinds == {"ok": 4, "dead": 5, "drop": 1, "deferred": 1, "deleted": 1}
    assert by_id["post:reddit:0"]["result"] == {"words": 2, "text": "one two"}
    assert by_id["post:reddit:9"]["result"]["text"] == texts["9"]
    assert by_id["post:reddit:8"]["outcome"] == "deleted"  # after its ok, in the same batch
    assert by_id["post:reddit:1"]["reason"] == "ValueError: cannot read post:reddit:1"
    assert by_id["post:reddit:3"]["reason"] == "language: ms"
    assert by_id["post:reddit:7"]["reason"].startswith("InvalidResult: ")
    assert all(value["version"] == "1+test" for value in by_id.values())

    letters = world.read("words.dlt")
    assert len(letters) == len(bad) + 5
    by_key = {(m.key(), m.value()): m for m in letters}
    for name, message in bad.items():
        letter = by_key[message]  # the original bytes
        was = Lineage.unpack(header(letter))  # it may be one when it is done again
        assert str(was.input) == f"{world.project}.{RAW}:{letter_place(letter)}", name
        assert text_of(letter, "connector.name") == "words"
        assert text_of(letter, "topic") == f"{world.project}.{RAW}"
        assert text_of(letter, "exception.message"), name
    guilty = next(m for m in letters if m.key() == b"post:reddit:1")
    assert text_of(guilty, "exception.class.name") == "ValueError"
    assert header(guilty, "ce_source") == b"/runs/r7"
    first = raws[b"post:reddit:1"]
    assert int(text_of(guilty, "offset")) == first.offset()

    # The lineage: from the raw message through both stages.
    topic_id = world.admin.topic_ids()[f"{world.project}.{RAW}"]
    message = next(m for m in own if m.key() == b"post:reddit:0")
    source = raws[b"post:reddit:0"]
    place = Position(f"{world.project}.{RAW}", source.partition(), source.offset())
    revision = Revision(topic_id, place.partition, place.offset, source.timestamp()[1])
    assert Lineage.unpack(header(message)) == Lineage(revision, "r7", 0, 3, (), place)
    shouted = {m.key(): m for m in world.read("enriched.shout")}
    behind = Lineage.unpack(header(shouted[b"post:reddit:0"]))
    place = Position(message.topic(), message.partition(), message.offset())
    assert behind == Lineage(revision, "r7", 3, 2, (), place)
    assert header(shouted[b"post:reddit:traced"], "traceparent") == b"00-abc"
    values = {key: orjson.loads(m.value()) for key, m in shouted.items()}
    assert values[b"post:reddit:1"]["outcome"] == "drop"
    assert values[b"post:reddit:3"]["reason"] == "upstream"
    assert values[b"post:reddit:4"]["outcome"] == "deferred"
    assert values[b"post:reddit:8"]["outcome"] == "deleted"
    assert [m.key() for m in world.read("shout.dlt")] == [b"post:reddit:x"]

    events = [v for v in world.values("status") if v["group"] == "words"]
    total = Counter()
    for event in events:
        total.update({name: event[name] for name in ("records", "ok", "dropped", "dead")})
    assert total == {"records": 21, "ok": 4, "dropped": 1, "dead": 14}
    reached = {(i["topic"], i["partition"]): i["to"] for e in events for i in e["inputs"]}
    assert reached == {k: v for k, v in world.admin.ends(reached).items() if v}


def test_redo_keeps_where_a_record_came_from(world):
    world.post(ids=["1"], texts=["!dead"], run="r1")
    world.run("--only", "words", "shout")
    letter = world.read("words.dlt")[0]
    was = Lineage.unpack(header(letter))
    redo = Lineage(was.revision, was.run, was.input_rank, 0, (), was.input).pack()
    world.send("words.redo", letter.key(), raw("1", text="mended now"), {"hr": redo})
    world.send("words.redo", letter.key(), raw("1"))
    unknown = redo.replace(world.project.encode(), b"elsewhere")
    world.send("words.redo", letter.key(), raw("1"), {"hr": unknown})
    world.send("words.redo", letter.key(), raw("1"), {"hr": b"nonsense"})
    world.send("words.redo", None, raw("1"), {"hr": redo})
    outcome = world.read("enriched.words")[0]
    again = Position(outcome.topic(), outcome.partition(), outcome.offset())
    redo = Lineage(was.revision, was.run, 3, 0, (), again).pack()
    fine = orjson.loads(outcome.value()) | {"outcome": "ok", "result": {"text": "loud"}}
    world.send("shout.redo", letter.key(), orjson.dumps(fine), {"hr": redo})

    world.run("--only", "words", "shout")

    redone = world.read("enriched.words")[-1]
    assert orjson.loads(redone.value())["result"]["text"] == "mended now"
    assert Lineage.unpack(header(redone)) == was
    reasons = [text_of(m, "exception.message") for m in world.read("words.dlt")[1:]]
    assert len(reasons) == 4
    shouted = world.read("enriched.shout")
    loud = next(
        m for m in shouted if orjson.loads(m.value()).get("result", {}).get("text") == "loud"
    )
    assert Lineage.unpack(header(loud)) == Lineage(was.revision, "r1", 3, 2, (), again)


def test_what_is_too_large_for_the_dead_letters_is_left_out(worlds):
    words = groups(words={})

    def change(content):
        words(content)
        for topic in ("{stage}.dlt", "enriched.words"):
            content["topics"][topic]["max_message_bytes"] = 50_000

    world = worlds(change=change)
    world.send(RAW, "post:reddit:large", b"[" + b"7," * 100_000)
    world.post(n=20, texts=["x" * 40_000])  # together more than a batch may be
    world.run("--only", "words")
    (letter,) = world.read("words.dlt")
    assert letter.key() == b"post:reddit:large"
    assert letter.value() is None
    assert "200018 bytes are left out" in text_of(letter, "exception.message")
    assert len(world.read("enriched.words")) == 20


def test_a_stage_that_answers_wrongly_is_named(world):
    """Too few outcomes, or none: only the record at fault is dead."""
    world.post(n=50, texts=["fine"])
    world.post(ids=["few", "none"], texts=["!few", "!none"])
    world.run("--only", "words")
    outcomes = Counter(value["outcome"] for value in world.values("enriched.words"))
    assert outcomes == {"ok": 50, "dead": 2}
    reasons = {m.key(): text_of(m, "exception.message") for m in world.read("words.dlt")}
    assert "tests.stages.words gave 0 outcomes for 1 records" in reasons[b"post:reddit:few"]
    assert "instead of an Outcome" in reasons[b"post:reddit:none"]
