"""A project of its own for each test: topics, groups and tables that meet nobody else's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import orjson
import psutil
import psycopg
import pytest
import yaml
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from headrace import config
from headrace.config import Settings
from headrace.stream import clients, topics, topology, wire
from headrace.stream.topology import Topology

CLONE = Path(__file__).resolve().parent.parent
PLATFORMS = ("reddit", "youtube")
T = TypeVar("T")


def wait_for(
    condition: Callable[[], T], timeout: float = 60, message: str | Callable[[], str] = ""
) -> T:
    """The first true value of `condition`, asked again and again; fails with `message` after the
    deadline. An AssertionError inside the condition counts as not yet."""
    deadline = time.monotonic() + timeout
    last = ""
    while True:
        try:
            if value := condition():
                return value
        except AssertionError as error:
            last = str(error)
        if time.monotonic() > deadline:
            said = message() if callable(message) else message
            pytest.fail(f"not within {timeout:g} s: {said} {last}".strip(), pytrace=True)
        time.sleep(0.05)


class World:
    """One project on the session's servers, with a working folder of its own.

    settings, topology and home are there at once; topics and tables come with `apply()`, which
    every other method calls when it needs them.
    """

    def __init__(
        self,
        home: Path,
        kafka: str,
        postgres: str,
        *,
        platforms: Sequence[str] = PLATFORMS,
        partitions: int = 2,
        flags: Mapping[str, Any] | None = None,
        change: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """`change` may alter topics.yaml's content before it is written."""
        self.home = home
        self.project = f"t{uuid.uuid4().hex[:10]}"
        content = yaml.safe_load((CLONE / "topics.yaml").read_text())
        content["defaults"]["partitions"] = partitions
        if change is not None:
            change(content)
        (home / "topics.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        folder = home / "config" / "platforms"
        folder.mkdir(parents=True)
        for name in platforms:
            shipped = CLONE / "config" / "platforms" / f"{name}.yaml"
            if shipped.exists():
                shutil.copy(shipped, folder)
            else:
                (folder / f"{name}.yaml").write_text(f"name: {name}\n")
        (home / "config" / "headrace.yaml").write_text("")
        self.settings: Settings = config.load(
            {
                "config": home / "config" / "headrace.yaml",
                "project": self.project,
                "kafka.bootstrap_servers": kafka,
                "postgres.dsn": postgres,
                "status.enabled": False,  # no test needs it beside what it looks at
                **(flags or {}),
            }
        )
        self.topology: Topology = topology.load(self.settings)
        self.processes: list[subprocess.Popen[bytes]] = []
        self._logs: dict[int, Path] = {}
        self._applied = False
        self._admin: clients.Admin | None = None
        self._producer: Producer | None = None

    # Servers

    def apply(self) -> World:
        """Make topics and tables, once."""
        if not self._applied:
            from headrace.stores import migrate

            topics.ensure(self.settings, self.topology, self.admin)
            migrate.upgrade(self.settings)
            self._applied = True
        return self

    @property
    def admin(self) -> clients.Admin:
        if self._admin is None:
            self._admin = clients.admin(self.settings)
        return self._admin

    def sql(self, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Rows of a query (or none), in a transaction of its own; the schema is on the path."""
        from headrace.stores import postgres

        self.apply()
        with postgres.connect(self.settings, autocommit=True) as connection:
            cursor = connection.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

    # Messages

    def post(
        self,
        platform: str = "reddit",
        n: int | None = None,
        *,
        ids: Sequence[str] | None = None,
        texts: Sequence[str] | None = None,
        run: str = "r1",
        **fields: Any,
    ) -> list[dict[str, Any]]:
        """Publish posts as `publish` would; returns their values.

        ids    native ids ("abc" becomes post:reddit:abc); default 0, 1, 2, …
        texts  one a post, repeated as needed
        """
        count = n if n is not None else len(ids or texts or [""])
        natives = list(ids) if ids is not None else [str(number) for number in range(count)]
        words = list(texts) if texts is not None else ["The new phone is great, I love it"]
        values = [
            {
                "id": f"post:{platform}:{native}",
                "kind": "post",
                "platform": platform,
                "native_id": native,
                "text": words[number % len(words)],
                **fields,
            }
            for number, native in enumerate(natives)
        ]
        self.publish(values, run=run)
        return values

    def delete(self, record: str, run: str = "r1") -> None:
        """Publish the deletion of "post:reddit:abc"."""
        kind, platform, _ = record.split(":", 2)
        self.publish([{"id": record, "kind": kind, "platform": platform, "deleted": True}], run=run)

    def publish(self, values: Sequence[Mapping[str, Any]], run: str = "r1") -> None:
        """Raw records to their topics, with the headers of a published row."""
        for number, value in enumerate(values):
            community = value["kind"] == "community"
            short = "raw.communities" if community else f"raw.posts.{value['platform']}"
            kind = "community" if community else "post"
            headers = {
                wire.CE_SPEC: "1.0",
                wire.CE_ID: f"test.csv:{number + 1}",
                wire.CE_SOURCE: wire.source_of(run),
                wire.CE_TYPE: f"headrace.raw.{kind}.v1",
            }
            self.send(short, value["id"], orjson.dumps(value), headers, flush=False)
        self.flush()

    def send(
        self,
        short: str,
        key: str | bytes | None,
        value: bytes | None,
        headers: Mapping[str, str | bytes] | None = None,
        *,
        flush: bool = True,
    ) -> None:
        """Any bytes to one of the project's topics."""
        self.apply()
        if self._producer is None:
            self._producer = Producer(clients.producer_conf(self.settings))
        while True:
            try:
                self._producer.produce(
                    self.topology.topic(short).name,
                    key=key,
                    value=value,
                    headers=list((headers or {}).items()),
                    on_delivery=_must_be_delivered,
                )
                break
            except BufferError:
                self._producer.poll(1)
        self._producer.poll(0)
        if flush:
            self.flush()

    def flush(self) -> None:
        if self._producer is not None:
            assert self._producer.flush(60) == 0, "not everything was delivered within 60 s"

    def read(self, short: str, count: int | None = None, timeout: float = 60) -> list[Message]:
        """Every committed message of a topic from its start to its end, in the order of each
        partition; with `count`, waits until there are at least so many."""
        self.apply()
        name = self.topology.topic(short).name
        consumer = Consumer(
            clients.consumer_conf(
                self.settings,
                f"{self.project}.test-reader",
                **{"group.protocol": "classic", "enable.partition.eof": True},
            )
        )
        partitions = self.topology.topic(short).partitions
        starts = self.admin.starts([(name, number) for number in range(partitions)])
        found: list[Message] = []
        ended: set[int] = set()
        deadline = time.monotonic() + timeout
        try:
            consumer.assign(
                [TopicPartition(topic, part, offset) for (topic, part), offset in starts.items()]
            )
            while len(ended) < partitions or (count is not None and len(found) < count):
                message = consumer.poll(1)
                if message is None:
                    if time.monotonic() > deadline:
                        pytest.fail(f"{short}: {len(found)} of {count} messages in {timeout:g} s")
                    continue
                error = message.error()
                if error is None:
                    found.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    ended.add(message.partition() or 0)
                elif not error.retriable():
                    raise KafkaException(error)
        finally:
            consumer.close()
        return found

    def values(self, short: str, count: int | None = None) -> list[Any]:
        """The decoded values of `read`."""
        return [orjson.loads(message.value() or b"null") for message in self.read(short, count)]

    # Processes

    def env(self, **over: str) -> dict[str, str]:
        """The environment of a subprocess in this world."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("HEADRACE_") or name.endswith(("_CACHE_DIR", "_DATA_DIR"))
        }
        path = os.pathsep.join(filter(None, [str(CLONE), kept.get("PYTHONPATH")]))
        own = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "HEADRACE_LOG__FORMAT": "text"}
        return kept | config.as_environment(self.settings) | own | over

    def command(
        self,
        *arguments: str | Path,
        check: bool = True,
        timeout: float = 180,
        input: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """`headrace …` in a process of its own; fails on an exit status but 0 unless told."""
        result = subprocess.run(
            [sys.executable, "-m", "headrace", *map(str, arguments)],
            input=input.encode() if isinstance(input, str) else input,
            capture_output=True,
            cwd=self.home,
            env=self.env(**(env or {})),
            timeout=timeout,
            check=False,
        )
        told = subprocess.CompletedProcess(
            result.args,
            result.returncode,
            result.stdout.decode(errors="replace"),
            result.stderr.decode(errors="replace"),
        )
        if check and told.returncode != 0:
            pytest.fail(
                f"headrace {' '.join(map(str, arguments))} ended with {told.returncode}:\n"
                f"{told.stdout[-4000:]}\n{told.stderr[-4000:]}"
            )
        return told

    def run(self, *groups: str, until_caught_up: bool = True, check: bool = True) -> Any:
        """`headrace run GROUP… --until-caught-up`; not until then, a process that goes on."""
        self.apply()
        if until_caught_up:
            return self.command("run", *groups, "--until-caught-up", check=check)
        return self.start("run", *groups)

    def start_worker(self, group: str, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        """`headrace worker GROUP`, ended with the world."""
        self.apply()
        return self.start("worker", group, *arguments, **env)

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        """Any command as a process that goes on, ended with the world."""
        path = self.home / f"{arguments[0]}-{len(self.processes)}.log"
        with path.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "headrace", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.home,
                env=self.env(**env),
                start_new_session=True,
            )
        self.processes.append(process)
        self._logs[process.pid] = path
        return process

    def log_of(self, process: subprocess.Popen[bytes]) -> str:
        """What a started process has said so far."""
        return self._logs[process.pid].read_text(errors="replace")

    def drop(self) -> None:
        """End its processes, delete its topics and tables."""
        self._kill_all()
        if self._producer is not None:
            self._producer.purge()
            self._producer.flush(5)
        if self._admin is not None:
            self._admin.close()
        if self._applied:
            with suppress(Exception):  # a test may have ended the server
                self._delete_topics()
            with suppress(Exception):
                self._drop_schema()

    def _kill_all(self) -> None:
        """SIGKILL to whatever runs in this world, frozen or not; a command's workers too, which
        are in process groups of their own and may have lost their parent."""
        ours = [process for process in psutil.process_iter() if self._is_ours(process)]
        for process in ours:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for started in self.processes:
            started.wait(30)
        psutil.wait_procs(ours, 30)

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("HEADRACE_PROJECT") == self.project
        except (psutil.Error, OSError):
            return False  # it has ended, or is somebody else's

    def _delete_topics(self) -> None:
        client = AdminClient(clients.base_conf(self.settings))
        names = [
            name
            for name in client.list_topics(timeout=10).topics
            if name.startswith(f"{self.project}.")
        ]
        if names:
            for future in client.delete_topics(names, request_timeout=30).values():
                future.result()

    def _drop_schema(self) -> None:
        dsn = self.settings.postgres.dsn
        assert dsn is not None
        with psycopg.connect(dsn.get_secret_value(), autocommit=True, connect_timeout=5) as own:
            own.execute("SET lock_timeout = '10s'")
            own.execute(f'DROP SCHEMA IF EXISTS "{self.project}" CASCADE')


def _must_be_delivered(error: KafkaError | None, message: Message) -> None:
    assert error is None, f"not delivered to {message.topic()}: {error}"


@pytest.fixture
def worlds(kafka: str, postgres: str, tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Makes worlds: `worlds(platforms=("reddit",), partitions=1, flags={…}, change=…)`."""
    made: list[World] = []

    def make(**options: Any) -> World:
        home = tmp_path / f"world{len(made)}"
        home.mkdir()
        world = World(home, kafka, postgres, **options)
        made.append(world)
        return world

    yield make
    for world in made:
        world.drop()


@pytest.fixture
def world(worlds: Callable[..., World]) -> World:
    """One world with few platforms and partitions."""
    return worlds()
