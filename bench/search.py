"""The projector beside bare insert_many of the same objects, how long a search takes, and how long
after a publish its first hit comes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import orjson
from confluent_kafka import Producer

from bench.harness import WORDS, Figure, Goal
from bench.rig import CLONE, Rig, environment
from consumers.search import objects, projector
from headrace import servers
from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.models import embedding
from headrace.search import collections
from headrace.search.query import Filters, Mode, Searcher
from headrace.servers import Tuning
from headrace.servers.guard import throwaway_folder
from headrace.stores import postgres, weaviate
from headrace.stores.copying import copy
from headrace.stream import clients
from headrace.stream import topology as topologies
from headrace.stream.metrics import Metrics
from headrace.stream.watchdog import Watchdog
from headrace.stream.worker import Post

QUESTIONS = 200
FIRST_HITS = 20
FIRST_SECONDS = 120.0  # the longest to wait for one
BATCH = 1_000
_DIMENSIONS = 384

_RECORDS = """
INSERT INTO records (id, kind, platform_id, text, author_id, created_at, metrics, value, topic,
                     topic_id, partition, "offset", appended)
SELECT 'post:reddit:b' || n, 'post', 1, t.text, 1, now() - n * interval '1 minute',
       '{"likes": 3}', '{}', %(topic)s, 'x', 0, n, 0
FROM unnest(%(texts)s::text[]) WITH ORDINALITY AS t (text, n)
"""
_OUTCOMES = """
INSERT INTO outcomes (record_id, stage, outcome, result, version, rank, input_rank, root_topic_id,
                      root_partition, root_offset, root_appended, input_topic, input_partition,
                      input_offset, out_topic_id, out_partition, out_offset, out_appended, at)
SELECT r.id, s.stage, 'ok', s.result::jsonb, '1', 1, 0, r.topic_id, 0, r."offset", 0, r.topic, 0,
       r."offset", 'o', 0, r."offset", 0, now()
FROM records r, (VALUES
  ('text', '{"clean": "", "language": "en", "hashtags": ["a"]}'),
  ('sentiment', '{"label": "negative", "score": -0.5, "confidence": 0.9}'),
  ('entities', '{"entities": [{"name": "Nike"}, {"name": "Adidas"}]}')) AS s (stage, result)
"""
_VECTOR = (
    "record_id", "space", "stage", "dimensions", "vector", "version", "rank", "root_topic_id",
    "root_partition", "root_offset", "root_appended",
)  # fmt: skip


def measure(rig: Rig, count: int, rounds: int) -> tuple[list[Figure], list[Goal]]:
    """Objects a second with 384 numbers each; milliseconds a search among `count` objects."""
    ours = Figure("projector", "objects/s")
    bare = Figure("bare insert_many of the same", "objects/s")
    latency = {
        mode: (
            Figure(f"search by {mode}, p50", "ms"),
            Figure(f"search by {mode}, p99", "ms"),
        )
        for mode in ("keyword", "semantic", "hybrid")
    }
    with weaviate_flags() as flags:
        for turn in range(rounds):
            with rig.project() as base:
                settings = base.model_copy(
                    update={"weaviate": base.weaviate.model_copy(update=flags)}
                )
                _fill(settings, count)
                try:
                    # Whoever is second finds a warm server.
                    for which in (ours, bare) if turn % 2 == 0 else (bare, ours):
                        way = _projected if which is ours else _bare
                        which.readings.append(count / way(settings, count))
                    if turn == rounds - 1:
                        _ask(settings, latency)
                finally:
                    drop(settings)
        first = _first_hits(rig, flags)
    goal = Goal("the projector to bare insert_many", ours.median / bare.median, least=0.8)
    figures = [ours, bare, *(figure for pair in latency.values() for figure in pair), first]
    return figures, [goal]


@contextmanager
def weaviate_flags() -> Iterator[dict[str, Any]]:
    """Settings of the configured Weaviate, or of one for the time of the run."""
    configured = os.environ.get("HEADRACE_WEAVIATE__URL")
    if configured:
        port = os.environ.get("HEADRACE_WEAVIATE__GRPC_PORT", "50051")
        yield {"url": configured, "grpc_port": int(port)}
        return
    with throwaway_folder() as folder:
        found = servers.up(["weaviate"], data_dir=folder, tuning=Tuning(throwaway=True))
        address = found["weaviate"]
        yield {"url": str(address), "grpc_port": address.ports["grpc"]}


def _fill(settings: Settings, count: int) -> None:
    draw = random.Random(1)
    space = embedding.space_of(settings.embeddings)
    numbers = np.random.default_rng(1)
    with postgres.connect(settings) as connection:
        connection.execute("INSERT INTO dim_platform (id, name) VALUES (1, 'reddit')")
        connection.execute("INSERT INTO dim_author (id, platform_id, name) VALUES (1, 1, 'ann')")
        texts = [" ".join(draw.choices(WORDS, k=24)) for _ in range(count)]
        topic = f"{settings.project}.raw.posts.reddit"
        connection.execute(_RECORDS.encode(), {"topic": topic, "texts": texts})
        connection.execute(_OUTCOMES.encode())
        for first in range(0, count, BATCH):
            size = min(BATCH, count - first)
            vectors = numbers.standard_normal((size, _DIMENSIONS), dtype=np.float32)
            lines = [
                f"post:reddit:b{first + n + 1}\t{space}\tembeddings\t{_DIMENSIONS}"
                f"\t\\\\x{vectors[n].tobytes().hex()}\t1\t1\tx\t0\t{first + n + 1}\t0"
                for n in range(size)
            ]
            copy(connection, "vectors", _VECTOR, lines)
        connection.execute("INSERT INTO search_dirty (record_id) SELECT id FROM records")
        connection.commit()
    with postgres.connect(settings, autocommit=True) as connection:
        connection.execute("ANALYZE")


def _projected(settings: Settings, count: int) -> float:
    """The projector's loop in this process, without its start."""
    topology = topologies.load(settings)
    stop = threading.Event()
    post = Post(settings, 0, Metrics(settings, "search"), Watchdog(), stop.is_set)
    loop = projector.build(post, topology, topology.projectors["search"])
    loop._connected()
    began = time.perf_counter()
    while loop.work():
        pass
    seconds = time.perf_counter() - began
    loop.close()
    with postgres.connect(settings) as connection, weaviate.connect(settings) as client:
        (found,) = [c for some in collections.read(connection).values() for c in some]
        total = client.collections.use(found.name).aggregate.over_all().total_count
        if total != count:
            raise RuntimeError(f"{total} of {count} objects were projected")
    return seconds


def _bare(settings: Settings, count: int) -> float:
    """Objects that are ready in memory, a thousand a call, into a collection of the same kind."""
    from weaviate.classes.data import DataObject

    space = embedding.space_of(settings.embeddings)
    name = f"{settings.project[:1].upper()}{settings.project[1:]}_Bare"
    seconds = 0.0
    with postgres.connect(settings) as connection, weaviate.connect(settings) as client:
        made = collections.Collection(name, name, False, space)
        collections._create(client, settings, made)
        collection = client.collections.use(name)
        for first in range(0, count, BATCH):
            ids = [f"post:reddit:b{n + 1}" for n in range(first, min(first + BATCH, count))]
            found = objects.read(connection, ids, [space])
            ready: list[Any] = [
                DataObject(
                    properties=one.properties,
                    uuid=one.uuid,
                    vector={"default": one.vectors[space]},
                )
                for one in found.values()
            ]
            began = time.perf_counter()
            said = collection.data.insert_many(ready)
            seconds += time.perf_counter() - began
            if said.has_errors:
                raise RuntimeError(str(next(iter(said.errors.values())).message))
    return seconds


def _ask(settings: Settings, latency: dict[str, tuple[Figure, Figure]]) -> None:
    """Two or three words a question, after ten that nobody counts; the model's part included."""
    draw = random.Random(2)
    with Searcher(settings) as searcher:
        for mode in ("keyword", "semantic", "hybrid"):
            times = []
            for number in range(QUESTIONS + 10):
                words = " ".join(draw.sample(WORDS, draw.choice((2, 3))))
                chosen: Mode = mode  # type: ignore[assignment]
                began = time.perf_counter()
                searcher.search(words, chosen, Filters(sentiment="negative"))
                if number >= 10:
                    times.append(1000 * (time.perf_counter() - began))
            times.sort()
            half, most = latency[mode]
            half.readings.append(times[len(times) // 2])
            most.readings.append(times[int(len(times) * 0.99)])


def _first_hits(rig: Rig, flags: dict[str, Any]) -> Figure:
    """From a record's acknowledgement by Kafka until a search finds it, with the store and the
    projector running and nothing else to do for them."""
    found = Figure("published until found", "ms")
    with rig.project() as base:
        settings = base.model_copy(update={"weaviate": base.weaviate.model_copy(update=flags)})
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "headrace", "worker", group],
                env=environment(settings), cwd=CLONE, stderr=subprocess.DEVNULL,
            )
            for group in ("postgres", "search")
        ]  # fmt: skip
        try:
            producer = Producer(clients.producer_conf(settings, **{"linger.ms": 0}))
            for number in range(FIRST_HITS + 1):
                seconds = _until_found(settings, producer, f"hit{number}needle")
                if number:  # the first waits for the workers to start
                    found.readings.append(1000 * seconds)
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.wait(60)
            drop(settings)
    return found


def _until_found(settings: Settings, producer: Producer, word: str) -> float:
    key = f"post:reddit:{word}"
    value = {"id": key, "kind": "post", "platform": "reddit", "text": f"who finds the {word}"}
    producer.produce(f"{settings.project}.raw.posts.reddit", orjson.dumps(value), key)
    producer.flush()
    began = time.perf_counter()
    while time.perf_counter() - began < FIRST_SECONDS:
        try:
            with Searcher(settings) as searcher:
                while time.perf_counter() - began < FIRST_SECONDS:
                    if searcher.search(word, "keyword"):
                        return time.perf_counter() - began
                    time.sleep(0.005)
        except HeadraceError:  # there is no collection before the first record
            time.sleep(0.1)
    raise RuntimeError(f"{word} is not found after {FIRST_SECONDS:.0f} s")


def drop(settings: Settings) -> None:
    with weaviate.connect(settings) as client:
        for name in client.collections.list_all(simple=True):
            if name.lower().startswith(f"{settings.project}_"):
                client.collections.delete(name)
