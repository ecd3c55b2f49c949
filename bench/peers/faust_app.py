"""Faust: an agent that decodes each record and writes it on.

python -m bench.peers.faust_app BOOTSTRAP SOURCE TARGET COUNT DATADIR
"""

from __future__ import annotations

import os
import sys

import faust
import orjson


def main(bootstrap: str, source: str, target: str, count: int, datadir: str) -> None:
    app = faust.App(
        f"faust-{target}",
        broker=f"kafka://{bootstrap}",
        datadir=datadir,
        value_serializer="raw",
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        web_enabled=False,
        broker_session_timeout=10,
    )
    incoming = app.topic(source, value_type=bytes, value_serializer="raw")
    outgoing = app.topic(target, value_type=bytes, value_serializer="raw")
    done = 0

    @app.agent(incoming)
    async def pass_on(stream: faust.StreamT) -> None:  # type: ignore[type-arg]
        nonlocal done
        async for value in stream:
            orjson.loads(value)
            await outgoing.send(value=value)
            done += 1
            if done >= count:
                await app.producer.flush()
                os._exit(0)

    sys.argv = ["faust", "worker", "--loglevel", "warn", "--without-web"]
    app.main()


if __name__ == "__main__":
    words = sys.argv[1:]
    main(words[0], words[1], words[2], int(words[3]), words[4])
