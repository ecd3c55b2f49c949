"""`python -m bench.chaos --minutes 5`: kill -9 at random while records come, change and go.

Projector, store, Weaviate and PostgreSQL are killed, one or two at a time, in no order. When it is
over and everything is caught up, `doctor` must find nothing, and what PostgreSQL and Weaviate hold
must be what was published: each text, and each vector, number by number. Exit status 1 if not.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click
import numpy as np
import orjson
import psutil
import psycopg
from confluent_kafka import Producer
from pydantic import SecretStr

from bench.harness import WORDS
from bench.real import Checks, command
from bench.rig import CLONE, environment, rig
from headrace.backlog import lag
from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.models import embedding
from headrace.search import collections, marks
from headrace.servers import LocalServer, Tuning
from headrace.servers.guard import throwaway_folder
from headrace.stores import migrate, postgres, weaviate
from headrace.stream import clients

GROUPS = ("text", "embeddings")
TICK = 0.2  # seconds
KNOWN = 4_000  # records among which some are changed or deleted
CATCH_UP_SECONDS = 1_200.0


class Writer:
    """Publishes new records, new revisions and deletions, and remembers what should stand."""

    def __init__(self, settings: Settings, rate: int, draw: random.Random) -> None:
        self.texts: dict[str, str | None] = {}  # by id; None: deleted
        self.sent: Counter[str] = Counter()
        self._topic = f"{settings.project}.raw.posts.reddit"
        self._producer = Producer(clients.producer_conf(settings))
        self._each = max(1, round(rate * TICK))
        self._draw = draw
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._producer.flush()

    def _write(self) -> None:
        while not self._stop.wait(TICK):
            for _ in range(self._each):
                chance = self._draw.random()
                known = self._draw.randrange(max(1, min(len(self.texts), KNOWN)))
                if chance < 0.6 or not self.texts:
                    self._say("new", f"post:reddit:c{len(self.texts)}")
                elif chance < 0.9:
                    self._say("revised", f"post:reddit:c{known}")
                else:
                    self._say("deleted", f"post:reddit:c{known}")
            self._producer.poll(0)

    def _say(self, what: str, key: str) -> None:
        value = {"id": key, "kind": "post", "platform": "reddit"}
        if what == "deleted":
            self.texts[key] = None
            said: dict[str, object] = {**value, "deleted": True}
        else:
            words = " ".join(self._draw.choices(WORDS, k=self._draw.randint(3, 8)))
            self.texts[key] = f"{words} {self.sent.total()}"
            said = {**value, "text": self.texts[key]}
        self.sent[what] += 1
        self._producer.produce(self._topic, orjson.dumps(said), key)


@click.command()
@click.option("--minutes", default=5.0, show_default=True, help="Of killing.")
@click.option("--rate", default=40, show_default=True, help="Messages a second.")
@click.option("--seed", default=1, show_default=True)
def main(minutes: float, rate: int, seed: int) -> None:
    """Kill at random for minutes, then look whether anything is lost or apart."""
    draw = random.Random(seed)
    checks = Checks()
    killed: Counter[str] = Counter()
    with (
        rig() as on,
        on.project() as base,
        servers(base) as (settings, local),
        running(settings) as runner,
    ):
        ends = time.monotonic() + 60 * minutes
        with Writer(settings, rate, random.Random(seed + 1)) as writer:
            while time.monotonic() < ends:
                time.sleep(draw.uniform(1.0, 6.0))
                victims = draw.sample(("projector", "store", *local), draw.choice((1, 1, 2)))
                for name in victims:
                    if name in local:
                        local[name].kill()
                        killed[name] += 1
                    else:
                        group = "search" if name == "projector" else "postgres"
                        killed[name] += kill_worker(runner, group)
                time.sleep(draw.uniform(0.0, 1.5))
                for name in victims:
                    if name in local:
                        local[name].start()
        said = ", ".join(f"{name} {times}" for name, times in sorted(killed.items()))
        print(f"killed in {minutes:g} minutes: {said}")
        said = ", ".join(f"{count:,} {what}" for what, count in writer.sent.items())
        print(f"published: {said}; {len(writer.texts):,} records", flush=True)
        seconds = caught_up(settings)
        print(f"caught up and compared once more after {seconds:.0f} s", flush=True)
        told = json.loads(command(settings, "doctor", "--json").stdout)
        for finding in told["findings"]:
            print(f"      {finding['level']}: {finding['check']}: {finding['what']}")
        checks.say(told["clean"], "doctor finds nothing")
        equal(checks, settings, writer.texts)
    sys.exit(1 if checks.failed else 0)


@contextmanager
def servers(base: Settings) -> Iterator[tuple[Settings, dict[str, LocalServer]]]:
    """A Weaviate and a PostgreSQL that may be killed, and settings that name them."""
    with throwaway_folder() as folder:
        local = {
            name: LocalServer(name, folder, tuning=Tuning(throwaway=True))
            for name in ("weaviate", "postgres")
        }
        for server in local.values():
            server.start()
        at = local["weaviate"].address
        settings = base.model_copy(
            update={
                "postgres": base.postgres.model_copy(
                    update={"dsn": SecretStr(str(local["postgres"].address))}
                ),
                "weaviate": base.weaviate.model_copy(
                    update={"url": str(at), "grpc_port": at.ports["grpc"]}
                ),
                "processing": base.processing.model_copy(update={"retry_max_seconds": 2.0}),
            }
        )
        migrate.upgrade(settings)
        try:
            yield settings, local
        finally:
            for server in local.values():
                server.kill()


@contextmanager
def running(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """The groups, under the supervisor that starts killed workers again."""
    with tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False) as log:
        print(f"log: {log.name}", flush=True)
        runner = subprocess.Popen(
            [sys.executable, "-m", "headrace", "run", *GROUPS, "search"],
            env=environment(settings), cwd=CLONE, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            while runner.poll() is None and not workers(runner, "search"):
                time.sleep(0.1)  # its start needs the servers
            yield runner
        finally:
            runner.terminate()
            runner.wait(120)


def workers(runner: subprocess.Popen[bytes], group: str) -> list[int]:
    """The pids of a group's workers."""
    found = []
    for child in psutil.Process(runner.pid).children():
        with suppress(psutil.NoSuchProcess):
            line = child.cmdline()
            if "worker" in line and line[line.index("worker") + 1] == group:
                found.append(child.pid)
    return found


def kill_worker(runner: subprocess.Popen[bytes], group: str) -> int:
    """kill -9 to a group's worker; how many there were."""
    if runner.poll() is not None:
        raise RuntimeError(f"`headrace run` ended with {runner.returncode}, see its log")
    killed = 0
    for pid in workers(runner, group):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed += 1
    return killed


def caught_up(settings: Settings) -> float:
    """Seconds until nothing waits, and what was written has been compared once more."""
    began = time.monotonic()
    while time.monotonic() - began < CATCH_UP_SECONDS:
        with suppress(HeadraceError, psycopg.Error):
            groups = lag.read(settings, [*GROUPS, "postgres"])
            if all(group.caught_up for group in groups) and marks.left(settings) == 0:
                with postgres.connect(settings, readonly=True) as connection:
                    row = connection.execute("SELECT count(*) FROM search_written").fetchone()
                if row == (0,) and marks.left(settings) == 0:
                    return time.monotonic() - began
        time.sleep(1)
    raise RuntimeError(f"not caught up after {CATCH_UP_SECONDS:.0f} s")


def equal(checks: Checks, settings: Settings, texts: dict[str, str | None]) -> None:
    """What was published, what PostgreSQL has and what Weaviate shows."""
    space = embedding.space_of(settings.embeddings)
    with postgres.connect(settings, readonly=True) as connection:
        stored = {
            name: None if deleted else text
            for name, deleted, text in connection.execute("SELECT id, deleted, text FROM records")
        }
        vectors = {
            name: bytes(vector)
            for name, vector in connection.execute(
                "SELECT record_id, vector FROM vectors WHERE space = %s", [space]
            )
        }
        known = collections.read(connection)
    checks.say(stored == texts, f"PostgreSQL has the newest of {len(stored):,} records")
    live = {name: text for name, text in stored.items() if text is not None}
    checks.say(vectors.keys() == live.keys(), f"{len(vectors):,} of {len(live):,} have a vector")
    shown: dict[str, str] = {}
    same = 0
    with weaviate.connect(settings) as client:
        (serving,) = [found[0].name for found in known.values()]
        for item in client.collections.use(serving).iterator(include_vector=True):
            name = str(item.properties["record_id"])
            shown[name] = str(item.properties["text"])
            numbers = np.asarray(item.vector.get("default", ()), "<f4")
            same += numbers.tobytes() == vectors.get(name)
    for name in sorted(shown.keys() ^ live.keys())[:5]:
        print(f"      {name}: published {texts.get(name)!r}, shown {shown.get(name)!r}")
    checks.say(shown == live, f"Weaviate shows {len(shown):,} of {len(live):,} texts")
    checks.say(same == len(live), f"{same:,} of {len(live):,} vectors are equal in both")


if __name__ == "__main__":
    main()
