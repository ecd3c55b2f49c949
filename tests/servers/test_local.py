"""Local servers: real ones, in folders of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import psutil
import psycopg
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from headrace import servers
from headrace.errors import HeadraceError, ServerUnavailable
from headrace.servers import state
from headrace.servers.guard import throwaway_folder
from headrace.servers.llm import MODEL
from headrace.servers.local import KINDS
from headrace.servers.process import Process

THROWAWAY = servers.Tuning(throwaway=True)
CLONE = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def folder() -> Iterator[Path]:
    with throwaway_folder() as path:
        yield path


@pytest.fixture(scope="module")
def postgres_folder() -> Iterator[Path]:
    """A folder in which PostgreSQL runs."""
    with throwaway_folder() as path:
        servers.up(["postgres"], data_dir=path, tuning=THROWAWAY)
        yield path


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def environment(**more: str) -> dict[str, str]:
    """Ours without configured addresses."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
    if cache := os.environ.get("HEADRACE_CACHE_DIR"):
        kept["HEADRACE_CACHE_DIR"] = cache
    return kept | more


def headrace(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "headrace", *words],
        cwd=CLONE, env=environment(**more), capture_output=True, text=True, timeout=200,
    )  # fmt: skip


def test_up_again_changes_nothing(postgres_folder: Path) -> None:
    said: list[str] = []
    before = state.read(postgres_folder)["postgres"]
    addresses = servers.up(["postgres"], data_dir=postgres_folder, say=said.append)
    assert state.read(postgres_folder)["postgres"] == before
    assert said == [f"postgres: runs already, {addresses['postgres']}"]
    assert servers.running(postgres_folder) == addresses
    with psycopg.connect(addresses["postgres"]) as connection:
        assert connection.execute("SHOW autovacuum").fetchone() == ("on",)


def test_listens_on_loopback_only(postgres_folder: Path) -> None:
    entry = state.read(postgres_folder)["postgres"]
    listening = [each for each in psutil.Process(entry.pid).net_connections() if not each.raddr]
    assert {(each.laddr.ip, each.laddr.port) for each in listening if each.laddr} == {
        ("127.0.0.1", entry.ports["client"])
    }


def test_down_and_up_keep_port_and_data(folder: Path) -> None:
    address = servers.up(["postgres"], data_dir=folder, tuning=THROWAWAY)["postgres"]
    with psycopg.connect(address) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    servers.down(data_dir=folder)
    assert servers.running(folder) == {}
    assert [each.state for each in servers.status(["postgres"], data_dir=folder)] == ["stopped"]
    assert servers.up(["postgres"], data_dir=folder, tuning=THROWAWAY)["postgres"] == address
    with psycopg.connect(address) as connection:
        assert connection.execute("SELECT n FROM kept").fetchone() == (7,)


@pytest.mark.crash
def test_killed_kafka_comes_back_with_its_messages(
    local_server: Callable[..., servers.LocalServer],
) -> None:
    server = local_server("kafka")
    address = server.address
    admin = AdminClient({"bootstrap.servers": address})
    admin.create_topics([NewTopic("t", 1, 1)])["t"].result(60)
    producer = Producer({"bootstrap.servers": address, "enable.idempotence": True})
    for number in range(100):
        producer.produce("t", str(number).encode())
    assert producer.flush(60) == 0
    server.kill()
    assert not server.process
    assert server.start() == address
    # Else transactions that were being ended when it was killed may lose their markers.
    assert "Fencing broker 1" in (server.folder / "controller.log").read_text("utf-8")
    consumer = Consumer(
        {"bootstrap.servers": address, "group.id": "g", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe(["t"])
    try:
        values: list[bytes] = []
        until(
            lambda: values.extend(m.value() for m in consumer.consume(100, 1)) or len(values) > 99
        )
        assert values == [str(number).encode() for number in range(100)]
    finally:
        consumer.close()
    broker = ConfigResource(ConfigResource.Type.BROKER, "1")
    settings = admin.describe_configs([broker])[broker].result(60)
    assert settings["offsets.retention.minutes"].value == str(2**31 - 1)
    assert settings["auto.create.topics.enable"].value == "false"


@pytest.mark.crash
def test_killed_postgres_comes_back_with_its_rows(
    local_server: Callable[..., servers.LocalServer],
) -> None:
    server = local_server("postgres")
    with psycopg.connect(server.address, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
        with pytest.raises(psycopg.OperationalError):
            server.kill()
            connection.execute("SELECT n FROM kept")
    address = server.start()
    with psycopg.connect(address) as connection:
        assert connection.execute("SELECT n FROM kept").fetchone() == (7,)


def test_two_at_once_start_one_server(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from headrace import servers; "
        "tuning = servers.Tuning(throwaway=True); "
        "print(servers.up(['postgres'], data_dir=Path(sys.argv[1]), tuning=tuning,"
        " say=lambda line: None)['postgres'])"
    )
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            cwd=CLONE, env=environment(), stdout=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    answers = {starter.communicate(timeout=120)[0].strip() for starter in starters}
    assert [starter.returncode for starter in starters] == [0, 0, 0]
    assert answers == set(servers.running(folder).values())
    postmasters = [
        each.pid
        for each in psutil.process_iter(["cmdline"])
        if str(folder / "postgres" / "data") in (each.info["cmdline"] or [])
    ]
    assert postmasters == [state.read(folder)["postgres"].pid]


def test_data_of_another_version_are_refused(folder: Path) -> None:
    (folder / "kafka").mkdir(parents=True)
    (folder / "kafka" / "VERSION").write_text("3.9\n")
    with pytest.raises(HeadraceError, match=r"holds data of kafka 3\.9, and this is 4\.3: move"):
        servers.up(["kafka"], data_dir=folder)
    assert servers.running(folder) == {}
    said = headrace("up", "kafka", "--data-dir", str(folder))
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1 and "3.9" in said.stderr


def test_a_reused_process_id_is_left_alone(folder: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=-1)
    try:
        started = psutil.Process(other.pid).create_time()
        entry = state.Entry("kafka", "local", "4.3.1", {"client": 1}, other.pid, started - 60)
        folder.mkdir(exist_ok=True)
        state.note(folder, entry)
        servers.down(data_dir=folder, kill=True)
        assert other.poll() is None
        assert servers.running(folder) == {}
        assert Process(other.pid, started).alive()  # the same id with its own time is known
    finally:
        other.kill()
        other.wait()


def test_a_configured_port_that_is_taken_is_named(postgres_folder: Path, folder: Path) -> None:
    port = state.read(postgres_folder)["postgres"].ports["client"]
    with pytest.raises(ServerUnavailable, match=rf"port {port}, configured as servers\.postgres"):
        servers.up(["postgres"], data_dir=folder, ports={"postgres": port})


def test_a_port_that_was_taken_meanwhile_is_replaced(postgres_folder: Path, folder: Path) -> None:
    port = state.read(postgres_folder)["postgres"].ports["client"]
    folder.mkdir(exist_ok=True)
    state.note(folder, state.Entry("postgres", "local", "18", {"client": port}))
    said: list[str] = []
    address = servers.up(["postgres"], data_dir=folder, tuning=THROWAWAY, say=said.append)
    assert address["postgres"].ports["client"] != port
    assert said[0] == f"postgres: port {port} is taken by another program, so it gets a new one"


def test_a_server_that_dies_at_start_is_told_with_its_reason(folder: Path) -> None:
    servers.up(["postgres"], data_dir=folder, tuning=THROWAWAY)
    servers.down(data_dir=folder)
    (folder / "postgres" / "data" / "pg_hba.conf").write_text("nonsense\n")
    with pytest.raises(ServerUnavailable, match=r"postgres did not start: .*pg_hba\.conf.*log: "):
        servers.up(["postgres"], data_dir=folder, tuning=THROWAWAY)
    assert servers.running(folder) == {}


@pytest.mark.crash
def test_throwaway_servers_do_not_survive_their_parent() -> None:
    code = (
        "import sys; from headrace import servers; "
        "from headrace.servers.guard import throwaway_folder\n"
        "with throwaway_folder() as folder:\n"
        "    servers.up(['postgres'], data_dir=folder, tuning=servers.Tuning(throwaway=True),"
        " say=lambda line: None)\n"
        "    print(folder, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=CLONE, env=environment(), stdin=-1, stdout=-1, text=True
    )
    try:
        assert parent.stdout
        folder = Path(parent.stdout.readline().strip())
        entry = state.read(folder)["postgres"]
        assert entry.pid and entry.started
        server = Process(entry.pid, entry.started)
        assert server.alive()
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    until(lambda: not server.alive())
    until(lambda: not folder.exists())


def test_commands(folder: Path) -> None:
    where = ("--data-dir", str(folder))
    up = headrace("servers", "up", "postgres", *where)
    assert up.returncode == 0 and "postgres: started, postgresql://headrace@127.0.0.1:" in up.stdout
    status = headrace("servers", "status", "--json", *where)
    assert [(each["server"], each["state"]) for each in json.loads(status.stdout)] == [
        ("kafka", "absent"),
        ("postgres", "running"),
        ("weaviate", "absent"),
        ("llm", "absent"),
    ]
    assert headrace("down", *where).stdout == "postgres: stopped\n"
    assert headrace("down", *where).stdout == "nothing runs\n"


def test_a_configured_address_is_used_and_its_secret_never_shown(postgres_folder: Path) -> None:
    address = servers.running(postgres_folder)["postgres"]
    with_password = address.replace("headrace@", "headrace:s3cret@")
    there = headrace("up", "postgres", HEADRACE_POSTGRES__DSN=with_password)
    assert there.returncode == 0 and there.stdout.startswith("postgres: configured, 127.0.0.1:")
    nowhere = with_password.replace(f":{address.ports['client']}/", ":1/")
    away = headrace("up", "postgres", HEADRACE_POSTGRES__DSN=nowhere)
    assert away.returncode == 2 and "127.0.0.1:1/headrace, which does not answer" in away.stderr
    assert "s3cret" not in there.stdout + there.stderr + away.stdout + away.stderr


def test_the_embedded_model_answers_by_a_schema(folder: Path) -> None:
    server = servers.LocalServer("llm", folder)
    address = server.start()
    try:
        schema = {
            "type": "object",
            "properties": {"mood": {"enum": ["good", "bad"]}},
            "required": ["mood"],
            "additionalProperties": False,
        }
        format = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        asked = {"messages": [{"role": "user", "content": "Well?"}], "response_format": format}
        client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
        (choice,) = client.chat.completions.create(model=MODEL, max_tokens=64, **asked).choices
        assert json.loads(choice.message.content or "")["mood"] in ("good", "bad")
        assert [model.id for model in client.models.list()] == [MODEL]
    finally:
        server.stop()


def test_weaviate_answers(weaviate: str) -> None:
    assert KINDS["weaviate"].ready(weaviate)
