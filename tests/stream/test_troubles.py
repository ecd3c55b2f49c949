"""What the log says of librdkafka's own troubles."""

from __future__ import annotations

import logging

import pytest
from confluent_kafka import KafkaError

from headrace.stream.clients import Troubles


def test_an_outage_is_said_at_once_and_then_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    moments = iter((1000.0, 1001.0, 1059.0, 1060.0, 1100.0, 1100.0))
    troubles = Troubles(lambda: next(moments))
    down = KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down")
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            troubles(down)
        troubles(KafkaError(KafkaError._TRANSPORT, "everyday"))
        troubles(KafkaError(KafkaError._AUTHENTICATION, "wrong password"))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert said[0].endswith("brokers are down")
    assert said[1].endswith("brokers are down (and 2 times before)")
    assert said[2].endswith("wrong password")
