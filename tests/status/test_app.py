"""The status group as it runs: Faust on a real broker, killed and started again."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psutil
import pytest
from confluent_kafka import Producer

from headrace.backlog import lag
from headrace.errors import HeadraceError
from headrace.status.fold import OUTCOMES
from headrace.stream import clients
from headrace.stream.commands import choose_apps
from tests.status.events import event, sums
from tests.world import World, wait_for

PATIENCE = 120.0  # Faust takes its time to start and, after a kill, to come back


class _Hook(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked, got = self.server.asked, self.server.got  # type: ignore[attr-defined]
        asked.append(body)
        if len(asked) > 1:
            got.append(json.loads(body))
        self.send_response(500 if len(asked) == 1 else 204)  # it comes again
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hook) as server:
        server.got, server.asked = [], []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        port: int = own.getsockname()[1]
        return port


class Stage:
    """Writes events as a stage does: each in a transaction."""

    def __init__(self, world: World) -> None:
        self._topic = world.topology.topic("status").name
        conf = clients.producer_conf(world.settings, **{"transactional.id": f"{world.project}.x"})
        self._producer = Producer(conf)
        self._producer.init_transactions(30)

    def write(self, events: Sequence[dict[str, Any]], abort: bool = False) -> None:
        self._producer.begin_transaction()
        for one in events:
            self._producer.produce(self._topic, json.dumps(one).encode(), one["group"].encode())
        self._producer.flush(30)
        if abort:
            self._producer.abort_transaction(30)
        else:
            self._producer.commit_transaction(30)


def some(count: int, group: str = "text") -> list[dict[str, Any]]:
    now = int(time.time() * 1000)
    return [event(group, now - n, ok=n % 7, dead=n % 2, dropped=1) for n in range(count)]


def shown(port: int, path: str) -> Any:
    """A web view; fails a condition that waits for it where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return json.loads(answer.read())
    except (OSError, ValueError) as error:
        raise AssertionError(str(error)) from None


def history(port: int, group: str) -> dict[str, int]:
    rows = shown(port, f"/status/history?group={group}&by=hour")["history"]
    total: Counter[str] = Counter()
    for row in rows:
        total.update({name: row[name] for name in ("records", "batches", *OUTCOMES)})
    return dict(+total)


def test_it_counts_once_and_tells_once_whatever_is_killed(worlds: Callable[..., World], hook: Any):
    port = free_port()
    world = worlds(
        platforms=("reddit",),
        partitions=1,
        flags={
            "status.port": port,
            "status.look_seconds": 0.5,
            "status.overdue_limit": 5,
            "status.overdue_minutes": 0,
            "status.webhook_url": f"http://127.0.0.1:{hook.server_address[1]}/secret",
        },
    )
    world.apply()
    stage = Stage(world)
    events = some(200)
    for n in range(0, 200, 20):
        stage.write(events[n : n + 20])
    stage.write(some(50), abort=True)  # never happened
    world.post(n=20)  # nobody works: they are overdue at once

    folder = {"HEADRACE_DATA_DIR": str(world.home / "data")}
    worker = world.start("run", "status", **folder)
    said = lambda: world.log_of(worker)[-3000:]  # noqa: E731
    wait_for(
        lambda: history(port, "text") == dict(+sums(events)["text"]), PATIENCE, said
    )  # fmt: skip

    def fired(state: str) -> list[str]:
        return [one["alert"] for one in world.values("alerts") if one["state"] == state]

    wait_for(lambda: "overdue:text" in fired("firing"), PATIENCE, said)
    wait_for(lambda: "overdue:text" in [one["alert"] for one in hook.got], PATIENCE, said)
    assert "overdue:embeddings" not in fired("firing")  # its window comes later

    # Killed while events come, some of which are counted and not committed yet.
    more = some(300) + some(40, "entities")
    for n in range(0, 340, 2):  # many transactions: commits have to pass their markers
        stage.write(more[n : n + 2])
    wait_for(lambda: history(port, "text").get("batches", 0) > 200, PATIENCE, said)
    (child,) = psutil.Process(worker.pid).children()
    child.kill()
    stage.write(events[:30])  # the same once more
    everything = sums(events + more)
    for group in ("text", "entities"):
        wait_for(
            lambda group=group: history(port, group) == dict(+everything[group]), PATIENCE, said
        )
    one = shown(port, "/status/groups/text")
    assert one["counts"]["1h"]["records"] == everything["text"]["records"]
    assert one["platforms"]["reddit"]["1h"] == one["workers"]["host-0"]["1h"] == one["rates"]["1h"]
    with pytest.raises(AssertionError, match="404"):
        shown(port, "/status/groups/nobody")

    wait_for(lambda: lag.read(world.settings, ["status"])[0].lag == 0, PATIENCE, said)

    # The work is done; what has been told is not told again, and the all-clear comes.
    wait_for(lambda: shown(port, "/status/")["ready"], PATIENCE, said)
    raw = world.topology.topic("raw.posts.reddit").name
    end = world.admin.ends([(raw, 0)])[raw, 0]
    world.admin.alter_offsets(f"{world.project}.text", {(raw, 0): end})
    wait_for(lambda: "overdue:text" in fired("clear"), PATIENCE, said)
    assert fired("firing").count("overdue:text") == fired("clear").count("overdue:text") == 1
    wait_for(
        lambda: (
            [m["state"] for m in hook.got if m["alert"] == "overdue:text"] == ["firing", "clear"]
        ),
        PATIENCE,
        said,
    )
    states = {a["alert"]: a["state"] for a in shown(port, "/status/alerts")["alerts"]}
    assert states["overdue:text"] == "clear" and states["overdue:entities"] == "firing"
    assert not any("secret" in world.log_of(process) for process in world.processes)

    # The command shows it, with and without the group.
    found = json.loads(world.command("status", "--json").stdout)
    assert found["running"] and {a["alert"] for a in found["alerts"]} >= {"overdue:entities"}
    (own,) = json.loads(world.command("lag", "status", "--json").stdout)
    assert (own["group"], own["kind"], own["members"]) == ("status", "app", 1)
    worker.terminate()
    assert worker.wait(60) == 0, said()
    found = json.loads(world.command("status", "--json").stdout)
    own = next(one for one in found["groups"] if one["group"] == "text")
    assert not found["running"]
    assert own["counts"]["1h"]["records"] == everything["text"]["records"]
    assert "the status group is not running" in world.command("status").stdout


def test_the_group_comes_with_a_run_that_has_no_end(worlds: Callable[..., World]):
    world = worlds(flags={"status.enabled": True})
    topology, settings = world.topology, world.settings
    assert [app.short for app in choose_apps(settings, topology, (), False)] == ["status"]
    assert choose_apps(settings, topology, (), True) == []
    assert choose_apps(settings, topology, ("text",), False) == []
    assert [app.short for app in choose_apps(settings, topology, ("status",), False)] == ["status"]
    with pytest.raises(HeadraceError, match="has no end"):
        choose_apps(settings, topology, ("status",), True)
    assert choose_apps(worlds().settings, topology, (), False) == []
    assert "status" not in topology.groups and "status.redo" not in topology.topics
