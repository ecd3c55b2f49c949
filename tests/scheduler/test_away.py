"""`headrace run` where PostgreSQL is not there yet."""

from __future__ import annotations

import signal
from typing import Any

from tests.stages import groups
from tests.stream.asking import QUICK
from tests.world import wait_for


def test_what_needs_no_postgres_does_not_wait_for_it(local_server: Any, worlds: Any) -> None:
    server = local_server("postgres")
    server.stop()

    def change(content: dict[str, Any]) -> None:
        store = content["groups"]["postgres"]
        groups(words={}, shout={"when": "lag >= 3 or 7 days"})(content)
        content["groups"]["postgres"] = store

    flags = {"postgres.dsn": str(server.address), "scheduler.look_seconds": 0.2} | QUICK
    world = worlds(change=change, flags=flags, platforms=("reddit",))
    ended = world.command("run", "--until-caught-up", check=False)
    assert ended.returncode == 2, "where there is an end, nobody waits for a server"
    world._applied = True  # the topics, by that run; the tables are made by whoever comes first
    running = world.start("run")
    world.post(n=3)
    assert len(world.read("enriched.words", 3)) == 3
    assert "stores, jobs and schedules wait for it" in world.log_of(running)
    server.start()
    world.read("enriched.shout", 3)
    stored = "SELECT count(*) FROM outcomes WHERE outcome = 'ok'"
    wait_for(lambda: world.sql(stored) == [(6,)], message=lambda: world.log_of(running))
    assert world.log_of(running).count("cannot see whether a window is open") < 20
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 0
