"""A stage upgraded under its readers: they see the old result or the new one, whole."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

from headrace.stores import postgres
from tests.redo.conftest import Redo
from tests.stream.asking import readers
from tests.world import wait_for

RECORDS = 3_000

# Records; those without a result; those whose parts are of different versions.
LOOK = """
SELECT count(*), count(*) FILTER (WHERE s.record_id IS NULL),
       count(*) FILTER (WHERE s.version NOT LIKE '%+' || (s.result->>'model')
                           OR m.names IS DISTINCT FROM ARRAY[s.result->>'model' || '0',
                                                             s.result->>'model' || '1']
                           OR m.versions <> ARRAY[s.version])
FROM records r
LEFT JOIN served s ON s.record_id = r.id AND s.facet = 'words'
LEFT JOIN (SELECT record_id, array_agg(name ORDER BY name) AS names,
                  array_agg(DISTINCT version) AS versions
           FROM entity_mentions GROUP BY 1) m ON m.record_id = r.id
"""


class Reader(threading.Thread):
    """Looks at all records again and again."""

    def __init__(self, redo: Redo) -> None:
        super().__init__(daemon=True)
        self._redo = redo
        self.ended = threading.Event()
        self.seen: list[tuple[int, ...]] = []
        self.fault: BaseException | None = None

    def run(self) -> None:
        try:
            with postgres.connect(
                self._redo.world.settings, readonly=True, autocommit=True
            ) as connection:
                while not self.ended.wait(0.02):
                    self.seen += connection.execute(LOOK.encode()).fetchall()
        except BaseException as error:
            self.fault = error


def test_readers_see_one_whole_version(redos: Callable[..., Redo]) -> None:
    redo = redos()
    world = redo.world
    world.post(n=RECORDS, texts=["good words"])
    redo.caught_up()
    nothing = world.command("upgrade", "words", "--yes")
    assert "nothing is older than version 1" in nothing.stdout

    old = world.start_worker("words")
    wait_for(lambda: readers(world), message=lambda: world.log_of(old))
    options = {"mended": str(redo.mended), "model": "b"}
    redo.rewrite(version="2", rank=2, options=options)
    early = world.command("upgrade", "words", "--yes", check=False)
    assert early.returncode == 2
    assert "restart words with its new version first" in early.stderr
    assert "its workers run 1+a (rank 1)" in early.stderr
    old.terminate()
    old.wait(60)

    planned = world.command("upgrade", "words", "--dry-run")
    assert f"{RECORDS:,} records to version 2 (rank 2), about" in planned.stdout
    unsure = world.command("upgrade", "words", "--dry-run", "--confidence-below", "0.5", "--json")
    assert json.loads(unsure.stdout)["found"] == RECORDS // 2
    unasked = world.command("upgrade", "words", check=False)
    assert (unasked.returncode, "say --yes" in unasked.stderr) == (2, True)

    world.start_worker("postgres")
    world.start_worker("words")
    wait_for(lambda: readers(world) and readers(world, "postgres"))
    reader = Reader(redo)
    reader.start()
    try:
        done = world.command("upgrade", "words", "--yes", "--wait", "--json")
    finally:
        reader.ended.set()
        reader.join(60)
    assert json.loads(done.stdout)["queued"] == RECORDS
    assert reader.fault is None
    assert len(reader.seen) > 3
    assert set(reader.seen) == {(RECORDS, 0, 0)}
    versions = "SELECT version, rank, count(*) FROM served GROUP BY 1, 2"
    assert world.sql(versions) == [("2+b", 2, RECORDS)]
    assert "nothing is older" in world.command("upgrade", "words", "--yes").stdout
