"""Quix Streams with exactly-once processing; it runs in a virtual environment of its own.

python quix_app.py BOOTSTRAP SOURCE TARGET COUNT BATCH
"""

import sys

from quixstreams import Application


def main(bootstrap: str, source: str, target: str, count: int, batch: int) -> None:
    app = Application(
        broker_address=bootstrap,
        consumer_group=f"quix-{target}",
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        commit_every=batch,
        commit_interval=30.0,
        auto_create_topics=False,
        loglevel="WARNING",
    )
    incoming = app.topic(source, value_deserializer="json")
    outgoing = app.topic(target, value_serializer="json")
    app.dataframe(incoming).to_topic(outgoing)
    app.run(count=count, collect=False)


if __name__ == "__main__":
    words = sys.argv[1:]
    main(words[0], words[1], words[2], int(words[3]), int(words[4]))
