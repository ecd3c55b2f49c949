"""`headrace publish` on a real broker: what goes out, what is said, what is recognised."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from confluent_kafka import Producer

from headrace.stream import clients, schemas, wire
from headrace.stream.clients import Admin
from producers import receipts, sources
from producers.sending import Sender, TakenOver
from producers.transfer import Job, Order, hire
from tests.producers.publishing import (
    TOPIC,
    expected,
    ids,
    jsonl,
    publish,
    receipt,
    row,
    run_of,
    said,
)
from tests.world import World


def test_a_folder_of_files_arrives_whole_with_keys_headers_and_a_receipt(world: World) -> None:
    folder = world.home / "in"
    folder.mkdir()
    jsonl(folder / "one.jsonl", [row(n) for n in range(300)])
    jsonl(folder / "two.jsonl.gz", [row(n, "b") for n in range(200)])
    (folder / "three.csv").write_text(
        "id;title;selftext;permalink\nc1;Ein;Straße;/r/x/\n", "cp1252"
    )
    (folder / "notes.txt").write_text("not for us")

    result = world.command("publish", folder)
    run = run_of(result.stdout)
    assert result.stdout.startswith(f"run {run}: publishing 3 files\n")
    assert "csv, cp1252, semicolons, header on line 1" in result.stdout
    assert f"run {run} done: 501 records published, 0 rows rejected" in result.stdout

    messages = world.read(TOPIC)
    assert ids(world) == expected(range(300)) + expected(range(200), "b") + expected([1], "c")
    validator = schemas.validator(world.settings, "raw_post.v1")
    for message in messages:
        value = orjson.loads(message.value() or b"")
        assert schemas.complaint(validator, value) is None
        assert (message.key() or b"").decode() == value["id"]
        headers = dict(message.headers() or [])
        assert headers[wire.CE_SOURCE] == wire.source_of(run).encode()
        assert headers[wire.CE_TYPE] == b"headrace.raw.post.v1"
        assert headers[wire.CE_SPEC] == b"1.0"
    by_id = {message.key(): message for message in messages}
    headers = dict(by_id[b"post:reddit:a7"].headers() or [])
    assert headers[wire.CE_ID] == b"one.jsonl:8"
    assert orjson.loads(by_id[b"post:reddit:c1"].value() or b"")["text"] == "Ein\n\nStraße"

    kept = receipt(world, run)
    assert kept["state"] == "done"
    assert kept["records"] == 501
    assert sorted(file["state"] for file in kept["files"]) == ["done"] * 3
    name = world.topology.topic(TOPIC).name
    for choose, told in ((max, "offsets"), (min, "starts")):
        by_partition: dict[str, list[int]] = {}
        for message in messages:
            by_partition.setdefault(str(message.partition()), []).append(message.offset() or 0)
        wanted = {p: choose(o) + (told == "offsets") for p, o in by_partition.items()}
        assert kept[told] == {name: wanted}


def test_a_file_is_recognised_and_goes_on_behind_a_limit(world: World) -> None:
    file = jsonl(world.home / "a.jsonl", [row(n) for n in range(50)])
    first = publish(world, "--limit", "20", file)
    assert first["files"][0]["state"] == "limited"
    assert ids(world) == expected(range(20))
    publish(world, "--limit", "20", file)
    assert ids(world) == expected(range(40))
    third = publish(world, file)
    assert (third["files"][0]["resumed_at"], third["records"]) == (40, 10)
    assert ids(world) == expected(range(50))

    copy = world.home / "copy of a.jsonl"
    copy.write_bytes(file.read_bytes())
    again = publish(world, file, copy)
    assert [one["state"] for one in again["files"]] == ["known", "known"]
    assert f"already published in run {third['run']} (50 rows)" in again["files"][0]["message"]
    assert ids(world) == expected(range(50))

    publish(world, "--again", file)
    assert ids(world) == expected(range(50)) + expected(range(50))
    publish(world, "--again", "--limit", "5", file)
    assert ids(world) == expected(range(50)) + expected(range(50)) + expected(range(5))
    # the same content in one command, under two names, goes out once
    other = jsonl(world.home / "b.jsonl", [row(n, "b") for n in range(9)])
    (world.home / "b2.jsonl").write_bytes(other.read_bytes())
    both = publish(world, other, world.home / "b2.jsonl")
    assert sorted(one["state"] for one in both["files"]) == ["done", "known"]
    assert both["records"] == 9


def test_bad_rows_never_stop_a_file_and_can_be_tried_again(world: World) -> None:
    rows = [
        row(1),
        '{"id": "a2", "title": ',
        row(3, title=""),
        row(4),
        row(5, selftext="x" * 1_200_000),
        row(6, id=None),
        row(7, selftext="nul \0 here"),
        row(4, selftext="a second revision"),
        row(8, title="‮right to left‬ 👩‍👩‍👧"),
    ]
    file = jsonl(world.home / "bad.jsonl", rows)
    result = world.command("publish", file)
    text = said(result)
    assert "5 records published, 4 rows rejected" in text
    assert "1 row rejected: title is missing" in text
    assert "1 row rejected: the record is larger than Kafka takes (1,000,000 bytes)" in text
    assert "NUL characters were taken out of 1 record" in text
    assert ids(world) == expected([1, 4, 4, 7, 8])
    (rejects,) = (world.home / "rejects").iterdir()
    kept = [orjson.loads(line) for line in rejects.read_bytes().splitlines()]
    assert [one["line"] for one in kept] == [2, 3, 5, 6]
    assert {one["file"] for one in kept} == {"bad.jsonl"}

    # mended and tried again
    kept[0] |= {"row": row(2)}
    kept[1]["row"]["title"] = "now it has one"
    rejects.write_bytes(b"".join(orjson.dumps(one) + b"\n" for one in kept))
    second = publish(world, "--rejects", rejects)
    assert (second["records"], second["rejected"]) == (2, 2)
    assert ids(world) == expected([1, 2, 3, 4, 4, 7, 8])
    left = Path(second["files"][0]["rejects_file"]).read_bytes().splitlines()
    assert [orjson.loads(line)["line"] for line in left] == [5, 6]
    assert publish(world, "--rejects", rejects)["files"][0]["state"] == "known"


def test_a_limit_of_rejects_stops_a_file_at_the_row_and_only_that_file(world: World) -> None:
    bad = jsonl(world.home / "bad.jsonl", [row(1), row(2, title=""), row(3), row(4, title="")])
    good = jsonl(world.home / "good.jsonl", [row(n, "g") for n in range(3)])
    result = world.command("publish", "--strict", bad, good, check=False)
    assert result.returncode == 1
    assert "no row may be rejected, row 2 would be: title is missing" in result.stderr
    assert "Traceback" not in said(result)
    assert ids(world) == expected([1]) + expected(range(3), "g")
    stopped = publish(world, "--max-rejects", "1", bad, status=1)["files"][0]
    assert "at most 1 row may be rejected, row 4" in stopped["message"]
    assert ids(world)["post:reddit:a3"] == 1
    whole = publish(world, bad)["files"][0]
    assert (whole["state"], whole["resumed_at"], whole["rejected"]) == ("done", 3, 1)
    kept = Path(whole["rejects_file"]).read_bytes().splitlines()
    assert [orjson.loads(line)["line"] for line in kept] == [2, 4]


def test_damaged_files_keep_what_came_before_and_stop_nobody(world: World) -> None:
    folder = world.home / "in"
    folder.mkdir()
    whole = gzip.compress(b"".join(orjson.dumps(row(n)) + b"\n" for n in range(20_000)))
    (folder / "cut.jsonl.gz").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "empty.csv").write_bytes(b"")
    (folder / "lie.parquet").write_bytes(b"PAR1 and nothing else")
    (folder / "strange.jsonl").write_text('{"nobody": "knows this"}\n')
    (folder / "bomb.jsonl.gz").write_bytes(gzip.compress(b" " * 2**26))
    jsonl(folder / "fine.jsonl", [row(n, "f") for n in range(10)])
    bomb = {"HEADRACE_PUBLISHING__MAX_EXPANSION_FREE_BYTES": str(2**20)}
    told = publish(world, "--platform", "reddit", folder, status=1, env=bomb)
    files = {Path(file["path"]).name: file for file in told["files"]}
    assert told["state"] == "failed"
    assert files["fine.jsonl"]["state"] == "done"
    for name in ("cut.jsonl.gz", "empty.csv", "lie.parquet", "strange.jsonl", "bomb.jsonl.gz"):
        assert files[name]["state"] == "failed", files[name]
        assert "unexpected" not in files[name]["message"], files[name]
    rows = files["cut.jsonl.gz"]["published"]
    assert 0 < rows < 20_000
    assert ids(world) == expected(range(rows)) + expected(range(10), "f")
    # once more: nothing twice, the same word about the damage
    publish(world, folder / "cut.jsonl.gz", status=1)
    assert ids(world) == expected(range(rows)) + expected(range(10), "f")


def test_a_second_process_that_reads_changes_nothing(world: World) -> None:
    world.apply()
    posts = [row(n, title="" if n % 10 == 3 else "T", score="many") for n in range(2_000)]
    lines = [*map(orjson.dumps, posts[:1_000]), b"{broken", *map(orjson.dumps, posts[1_000:])]
    for whole, status in ((True, 0), (False, 1)):
        told = []
        for number, ahead_bytes in enumerate(("1000000000", "1")):
            path = world.home / str(number) / "posts.jsonl.gz"
            path.parent.mkdir(exist_ok=True)
            data = gzip.compress(b"\n".join(lines), mtime=number)  # so it is another file
            path.write_bytes(data if whole else data[: len(data) * 3 // 4])
            env = {"HEADRACE_PUBLISHING__AHEAD_BYTES": ahead_bytes}
            (file,) = publish(world, path, status=status, env=env)["files"]
            for name in ("path", "fingerprint", "rejects_file", "seconds"):
                del file[name]
            told.append(file | {"message": str(file.get("message")).replace(str(path), "")})
        assert told[0] == told[1]
        assert told[0]["rejected"] > 100 < told[0]["published"]


def test_mistakes_of_the_caller_are_one_line_and_status_2(world: World) -> None:
    jsonl(world.home / "a.jsonl", [row(1)])
    for arguments, words in (
        (["nowhere.csv"], "nowhere.csv: there is no such file"),
        (["*.parquet"], "no file matches"),
        (["--platform", "myspace", "a.jsonl"], "platform myspace is not known; there are: reddit"),
        (["--mapping", "none", "--platform", "reddit", "--check", "a.jsonl"], "no mapping none"),
        (["--mapping", "none", "a.jsonl"], "no mapping none"),
        (["--strict", "--max-rejects", "3", "a.jsonl"], "--strict is --max-rejects 0"),
        ([], "name at least one file"),
    ):
        result = world.command("publish", *arguments, check=False)
        assert result.returncode == 2, said(result)
        assert words in result.stderr
        assert "Traceback" not in result.stderr


def test_check_shows_records_and_publishes_nothing(world: World) -> None:
    file = jsonl(world.home / "a.jsonl", [row(1), row(2, title=""), row(3)])
    result = world.command("publish", "--check", file)
    assert "2 would be published, 1 rejected" in result.stdout
    assert "title is missing" in result.stdout
    assert f"{world.project}.{TOPIC}" not in world.admin.topics()


def test_standard_input_is_published_and_said_not_to_be_resumable(world: World) -> None:
    data = b"".join(orjson.dumps(row(n)) + b"\n" for n in range(30))
    result = world.command("publish", "-", input=data)
    assert "standard input: 30 records published" in result.stdout
    assert "cannot be taken up again" in result.stderr
    world.command("publish", "-", input=data)
    assert ids(world) == expected(range(30)) + expected(range(30))


def test_communities_are_counted_over_all_files_with_their_posts_in_the_same_pass(
    world: World,
) -> None:
    rows = [row(n) for n in range(60)]
    one = jsonl(world.home / "1.jsonl", rows[:25])
    two = jsonl(world.home / "2.jsonl", [*rows[25:], row(99, title="")])
    told = publish(world, "--kind", "communities", "--with-posts", one, two)
    (file,) = told["files"]
    assert (file["rows"], file["published"], file["rejected"], file["communities"]) == (
        61,
        60,
        1,
        2,
    )
    assert ids(world) == expected(range(60))
    found = {value["id"]: value for value in world.values("raw.communities")}
    assert {key: value["posts"] for key, value in found.items()} == {
        "community:reddit:apple": 20,
        "community:reddit:cooking": 40,
    }
    best = found["community:reddit:apple"]["best_posts"][0]
    assert (best["id"], best["score"]) == ("post:reddit:a57", 57)
    publish(world, "--kind", "communities", one)
    assert ids(world) == expected(range(60))
    assert len(world.read("raw.communities")) == 4


def test_of_two_publishers_of_a_file_the_later_takes_over(world: World) -> None:
    world.apply()
    file = jsonl(world.home / "a.jsonl", [row(n) for n in range(100)])
    settings = world.settings.model_copy(
        update={
            "publishing": world.settings.publishing.model_copy(update={"transaction_records": 10})
        }
    )
    path = str(file)
    job = Job(0, (path,), (sources.fingerprint(path),), (sources.stamp(path),))
    earlier, later = (hire(settings, Order(run)) for run in ("run-1", "run-2"))
    outcomes = []

    def interrupt(event: object) -> None:
        """The other one runs from beginning to end once 30 rows of the first are out."""
        entry = getattr(event, "entry", None)
        if entry is not None and entry.rows == 30:
            outcomes.append(later(job, lambda _: None, lambda: False))

    first = earlier(job, interrupt, lambda: False)
    (second,) = outcomes
    assert (second.entry.state, second.entry.resumed_at, second.entry.rows) == ("done", 30, 70)
    assert first.entry.state == "superseded"
    assert first.superseded_by == "run-2"
    assert (first.entry.rows, first.entry.published) == (30, 30)
    assert first.entry.message == "run run-2 has taken over this file, this run stops behind row 30"
    assert ids(world) == expected(range(100))


def test_a_transaction_that_the_broker_ended_is_sent_again(world: World) -> None:
    """A fenced publisher that finds its own claim was not taken over: it goes on."""

    def fence() -> None:
        name = f"{world.project}.publish.progress-1"
        conf = clients.producer_conf(world.settings, **{"transactional.id": name})
        Producer(conf).init_transactions(30)

    world.apply()
    ledger = receipts.Ledger(world.settings, world.topology.topic("runs").name)
    sender = Sender(world.settings, ledger, "progress-1", "run-1")
    topic = world.topology.topic(TOPIC).name
    assert sender.open() is None
    note = receipts.Note("run-1", "a.jsonl")
    sent = 0
    for turn in range(3):
        for _ in range(5):
            sender.send(topic, b"{}", b"post:reddit:%d" % sent, [("ce_id", b"x")])
            sent += 1
        if turn == 1:  # as the broker does when a transaction takes too long: a newer epoch
            fence()
        note = replace(note, rows_done=sent)
        sender.commit(note)
    assert sum(ids(world).values()) == 15
    assert set(ids(world).values()) == {1}
    ledger.refresh()
    assert ledger.note("progress-1") == note
    # and with another's claim in place the same ends it
    ledger.claim("progress-1", receipts.Claim("run-9", "theirs"))
    fence()
    sender.send(topic, b"{}", b"post:reddit:late", [])
    with pytest.raises(TakenOver, match="run-9"):
        sender.commit(replace(note, rows_done=16))
    sender.close()
    ledger.close()
    assert "post:reddit:late" not in ids(world)


def test_starts_lie_before_rows_of_which_nothing_is_told(world: World) -> None:
    """A partition that gets its first rows in a part of a transaction without reports."""
    world.apply()
    ledger = receipts.Ledger(world.settings, world.topology.topic("runs").name)
    sender = Sender(world.settings, ledger, "progress-1", "run-1")
    topic = world.topology.topic(TOPIC).name
    sender.open()
    note = receipts.Note("run-1", "a.jsonl")
    for rows_done, numbers in ((1, range(1)), (5_001, range(5_000))):
        for number in numbers:
            sender.send(topic, b"{}", b"post:reddit:%d" % number, [])
        note = replace(note, rows_done=rows_done)
        sender.commit(note)
    sender.close()
    ledger.close()
    assert sender.starts == {topic: {0: 0, 1: 0}}


def test_a_topic_that_takes_less_than_the_settings_say_rejects_the_rows(world: World) -> None:
    world.apply()
    name = world.topology.topic(TOPIC).name
    with Admin(world.settings) as admin:
        admin.alter_configs({name: {"max.message.bytes": "20000"}})
    file = jsonl(world.home / "a.jsonl", [row(1), row(2, selftext="word " * 20_000), row(3)])
    told = publish(world, file)
    assert (told["records"], told["rejected"]) == (2, 1)
    assert ids(world) == expected([1, 3])


def test_offsets_of_a_run_are_told_though_one_key_takes_every_row(world: World) -> None:
    """The sender asks for few delivery reports; what they miss is looked up."""
    rows = [row(n) for n in range(400)] + [row(7, score=n) for n in range(6_000)]
    file = jsonl(world.home / "a.jsonl", rows)
    told = publish(world, file, env={"HEADRACE_PUBLISHING__TRANSACTION_RECORDS": "2000"})
    assert told["records"] == 6_400
    by_partition: dict[str, list[int]] = {}
    for message in world.read(TOPIC):
        by_partition.setdefault(str(message.partition()), []).append(message.offset() or 0)
    (ends,), (starts,) = told["offsets"].values(), told["starts"].values()
    assert starts == {p: min(offsets) for p, offsets in by_partition.items()}
    for partition, offsets in by_partition.items():
        assert max(offsets) < ends[partition] <= max(offsets) + 10  # markers may stand behind
