"""A project of the bench's own on real servers: one Kafka, one PostgreSQL, a folder, settings."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from psycopg import sql

from headrace import config, servers
from headrace.config import Settings
from headrace.servers import Tuning
from headrace.servers.guard import throwaway_folder
from headrace.stores import migrate, postgres
from headrace.stream import clients, topics

HERE = Path(__file__).parent
CLONE = HERE.parent


@dataclass(frozen=True, slots=True)
class Rig:
    """The servers that every contender of a run shares."""

    bootstrap: str
    dsn: str
    folder: Path

    @contextmanager
    def project(self, batch: int | None = None, trivial: bool = False) -> Iterator[Settings]:
        """A fresh project; `trivial` has one stage, `passing`, that only passes records on."""
        name = f"bench_{uuid.uuid4().hex[:8]}"
        home = self.folder / name
        home.mkdir()
        flags: dict[str, object] = {
            "project": name,
            "home": str(home),
            "kafka.bootstrap_servers": self.bootstrap,
            "postgres.dsn": self.dsn,
            "processing.batch_size": batch,
        }
        if trivial:
            _trivial_map(home)
        settings = config.load(flags)
        topics.ensure(settings)
        migrate.upgrade(settings)
        try:
            yield settings
        finally:
            with clients.admin(settings) as admin:
                admin.delete([topic for topic in admin.topics() if topic.startswith(f"{name}.")])
            with postgres.connect(settings, autocommit=True) as connection:
                connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))
            shutil.rmtree(home, ignore_errors=True)


@contextmanager
def rig() -> Iterator[Rig]:
    """Servers for the time of the run, or the configured ones."""
    kafka = os.environ.get("HEADRACE_KAFKA__BOOTSTRAP_SERVERS")
    postgres = os.environ.get("HEADRACE_POSTGRES__DSN")
    with throwaway_folder() as data, tempfile.TemporaryDirectory(prefix="headrace-bench-") as work:
        if kafka and postgres:
            yield Rig(kafka, postgres, Path(work))
            return
        addresses = servers.up(data_dir=data, tuning=Tuning(throwaway=True))
        yield Rig(str(addresses["kafka"]), str(addresses["postgres"]), Path(work))


def environment(settings: Settings) -> dict[str, str]:
    """For a child process: the settings, and the bench's own modules to import."""
    return {
        **os.environ,
        **config.as_environment(settings),
        "PYTHONPATH": os.pathsep.join([str(CLONE), os.environ.get("PYTHONPATH", "")]),
    }


def _trivial_map(home: Path) -> None:
    """One platform, one stage, nothing else."""
    whole = yaml.safe_load((CLONE / "topics.yaml").read_text())
    keep = ("raw.posts.{platform}", "status", "runs", "{group}.redo", "{stage}.dlt")
    whole["topics"] = {name: whole["topics"][name] for name in keep} | {
        "enriched.passing": {
            "description": "The number of characters.",
            "key": "record id",
            "schema": "enriched_passing.v1",
            "cleanup": "delete",
            "retention": "1 day",
            "timestamps": "append",
        }
    }
    whole["groups"] = {
        "passing": {
            "description": "Counts characters.",
            "kind": "stage",
            "module": "bench.passing",
            "reads": ["raw.posts.{platform}"],
            "writes": "enriched.passing",
            "version": "1",
            "rank": 1,
            "facet": "passing",
        }
    }
    whole["modes"] = {"fast": ["passing"], "full": "all", "batch": []}
    (home / "topics.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    shutil.copytree(CLONE / "schemas", home / "schemas")
    shutil.copy(HERE / "enriched_passing.v1.json", home / "schemas")
    platforms = home / "config" / "platforms"
    platforms.mkdir(parents=True)
    shutil.copy(CLONE / "config" / "platforms" / "reddit.yaml", platforms)
