"""Kafka: one KRaft node on loopback, from the published jars."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import time
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from headrace.errors import ServerUnavailable
from headrace.servers import install
from headrace.servers.kind import Tuning
from headrace.servers.ports import HOST, answers
from headrace.servers.process import Launch, spawn
from headrace.servers.say import Say

VERSION = "4.3.1"
LOG4J_VERSION = "2.25.5"

POM = f"""<?xml version="1.0" encoding="UTF-8"?>
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>headrace</groupId>
  <artifactId>kafka-server</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId>
      <artifactId>log4j-slf4j-impl</artifactId>
      <version>{LOG4J_VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""

LOG4J = """
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{yyyy-MM-dd HH:mm:ss.SSS} %p %c{1} %m%n
logger.life.name = kafka.server.KafkaRaftServer
logger.life.level = info
"""

# For the run of the controller alone: when it leads, and when it has ended a broker's session.
LOG4J_CONTROLLER = """
logger.leads.name = org.apache.kafka.controller.QuorumController
logger.leads.level = info
logger.ends.name = org.apache.kafka.controller.ReplicationControlManager
logger.ends.level = info
"""

# Why each one differs from Kafka's default stands beside it.
SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "CLIENT",
    "controller.listener.names": "CONTROLLER",
    # Topics come from topics.yaml; a misspelt name is an error.
    "auto.create.topics.enable": "false",
    # One node; few partitions, so that a start and a first join are quick.
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "8",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "8",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "8",
    # Offsets of a group that runs once a month are kept for good, transactional ids as
    # long as there is (24 days).
    "offsets.retention.minutes": "2147483647",
    "transactional.id.expiration.ms": "2147483647",
    # What a worker that is gone has left open holds readers back no longer than it must.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "2000",
    # A start goes on at a heartbeat.
    "broker.heartbeat.interval.ms": "500",
    # A killed worker's partitions move after this; groups may ask for less.
    "group.consumer.session.timeout.ms": "10000",
    "group.consumer.heartbeat.interval.ms": "2000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.min.heartbeat.interval.ms": "200",
    "group.min.session.timeout.ms": "1000",
    "group.initial.rebalance.delay.ms": "0",
    # A small machine: the default cleaner buffer alone is a quarter of our heap.
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
    "num.recovery.threads.per.data.dir": "2",
    "log.cleaner.dedupe.buffer.size": "33554432",
}

_SESSION_PATIENCE = 60.0  # seconds for the controller alone to do its work …
_SESSION_ENDS = 5.0  # … and, from when it leads, for a session to end if there is one
_SESSION_LINGER = 0.3  # from when it says so until that is on disk


class Kafka:
    name = "kafka"
    version = VERSION
    data_version = ".".join(VERSION.split(".")[:2])
    ports: tuple[str, ...] = ("client", "controller")
    patience = 180.0
    stop_signal: int = signal.SIGTERM

    def installed(self) -> bool:
        if not install.folder(f"kafka-{VERSION}").exists():
            return False
        try:
            install.java()
        except ServerUnavailable:
            return False
        return True

    def install(self, say: Say) -> None:
        java = install.java()

        def build(into: Path) -> None:
            maven = install.tool("mvn", "Kafka", "apt-get install -y maven")
            say(f"kafka: fetching {VERSION} with Maven (44 MB, about 10 s)")
            pom = into / "pom.xml"
            pom.write_text(POM, "utf-8")
            # Where Java comes from the wheel, mvn does not find it by itself.
            found = {} if shutil.which("java") else {"JAVA_HOME": str(Path(java).parent.parent)}
            install.run(
                "kafka",
                [maven, "--quiet", "--batch-mode", "--file", str(pom),
                 "dependency:copy-dependencies", "-DincludeScope=runtime",
                 f"-DoutputDirectory={into / 'libs'}"],
                found, into, say,
            )  # fmt: skip
            if not (into / "libs" / f"kafka_2.13-{VERSION}.jar").exists():
                raise ServerUnavailable("Maven ended without an error but brought no Kafka")

        install.make(f"kafka-{VERSION}", build, say)

    def prepare(self, folder: Path, ports: dict[str, int], tuning: Tuning) -> None:
        data = folder / "data"
        listeners = f"CLIENT://{HOST}:{ports['client']}"
        lines = SETTINGS | {
            "listeners": f"{listeners},CONTROLLER://{HOST}:{ports['controller']}",
            "advertised.listeners": listeners,
            # Static voters: the controller's port may change between two starts.
            "controller.quorum.voters": f"1@{HOST}:{ports['controller']}",
            "log.dirs": str(data),
        }
        text = "".join(f"{key}={value}\n" for key, value in lines.items())
        (folder / "server.properties").write_text(text, "utf-8")
        (folder / "log4j2.properties").write_text(LOG4J, "utf-8")
        if not (data / "meta.properties").exists():
            self._format(folder)
        elif not (data / ".kafka_cleanshutdown").exists():
            self._end_session(folder, lines)

    def _end_session(self, folder: Path, settings: dict[str, str]) -> None:
        """After a kill: run the controller alone until it has given up the broker that was.

        Else the broker comes back as the leader that it still is on paper, is deposed the moment
        its old session ends, and transactions that are being ended just then lose the markers of
        their partitions ("likely deleted already and hence can be skipped"): half of a commit
        stands, or a group can never read its offsets again.
        """
        left_out = ("advertised.listeners", "inter.broker.listener.name")
        own = {key: value for key, value in settings.items() if key not in left_out} | {
            "process.roles": "controller",
            "listeners": settings["listeners"].partition(",")[2],
            "broker.session.timeout.ms": "1000",
        }
        text = "".join(f"{key}={value}\n" for key, value in own.items())
        (folder / "controller.properties").write_text(text, "utf-8")
        (folder / "log4j2-controller.properties").write_text(LOG4J + LOG4J_CONTROLLER, "utf-8")
        java = self._java(folder, Tuning(heap="256m", throwaway=True), "log4j2-controller")
        log = folder / "controller.log"
        log.unlink(missing_ok=True)
        process = spawn(Launch([*java, "kafka.Kafka", "controller.properties"]), folder, log)
        try:
            gives_up = time.monotonic() + _SESSION_PATIENCE
            while process.alive() and time.monotonic() < gives_up:
                said = log.read_text("utf-8", errors="replace")
                if "Fencing broker" in said:
                    time.sleep(_SESSION_LINGER)
                    break
                if "Becoming the active controller" in said:  # without a session nothing ends
                    gives_up = min(gives_up, time.monotonic() + _SESSION_ENDS)
                time.sleep(0.05)
        finally:
            process.end(self.stop_signal, 20.0)

    def _format(self, folder: Path) -> None:
        shutil.rmtree(folder / "data", ignore_errors=True)  # half formatted: empty
        # A leading hyphen would read as an option.
        cluster = "H" + urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
        done = subprocess.run(
            [*self._java(folder, Tuning(heap="128m", throwaway=True)), "kafka.tools.StorageTool",
             "format", "--cluster-id", cluster, "--config", str(folder / "server.properties")],
            capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if done.returncode:
            words = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            raise ServerUnavailable(f"Kafka's data folder {folder} cannot be made: {words[-1]}")

    def _java(self, folder: Path, tuning: Tuning, log4j2: str = "log4j2") -> list[str]:
        options = [f"-Xmx{tuning.heap}", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError"]
        if tuning.throwaway:  # starts in 2 s instead of 3.5 s, at a lower peak
            options.append("-XX:TieredStopAtLevel=1")
        jars = install.folder(f"kafka-{VERSION}") / "libs" / "*"
        log4j = folder / f"{log4j2}.properties"
        return [
            install.java(), *options, "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={log4j.as_uri()}", "-cp", str(jars),
        ]  # fmt: skip

    def launch(self, folder: Path, ports: dict[str, int], tuning: Tuning) -> Launch:
        command = [*self._java(folder, tuning), "kafka.Kafka", str(folder / "server.properties")]
        return Launch(command)

    def value(self, ports: dict[str, int]) -> str:
        return f"{HOST}:{ports['client']}"

    def ready(self, value: str) -> bool:
        host, _, port = value.rpartition(":")
        if not answers(int(port), host):
            return False
        try:
            client = AdminClient(
                {"bootstrap.servers": value, "log_level": 0, "socket.timeout.ms": 5000},
                logger=_silent,
            )
            return bool(client.list_topics(timeout=5).brokers)
        except KafkaException:
            return False


_silent = logging.getLogger(f"{__name__}.probe")
_silent.propagate = False
_silent.addHandler(logging.NullHandler())
