"""What people decide, by several of them at once, and all of it over again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from headrace import decisions
from headrace.errors import HeadraceError
from tests.stores.conftest import Database
from tests.stores.graphs import decision
from tests.world import World

SUBJECT = "persona:reddit:technology:1-01"


def test_editors_at_once_lose_nothing(world: World) -> None:
    settings = world.apply().settings

    def edit(number: int) -> None:
        def changed(before: Any) -> Any:
            return {**(before or {}), f"field{number}": number}

        decisions.change(settings, SUBJECT, "edit", changed, by="ann")

    with ThreadPoolExecutor(4) as people:
        list(people.map(edit, range(4)))
    (stands,) = decisions.standing(settings).values()
    assert stands.value == {f"field{number}": number for number in range(4)}
    several = [f"{SUBJECT}{number}" for number in range(3)]
    decisions.decide(settings, several, "hide", True)
    assert decisions.change(settings, SUBJECT, "edit", lambda _: None) is None
    assert decisions.standing(settings).keys() == {(one, "hide") for one in several}
    with pytest.raises(HeadraceError, match="no decision"):
        decisions.decide(settings, [*several, ""], "lock", True)
    assert decisions.standing(settings).keys() == {(one, "hide") for one in several}


def test_the_topic_read_again_comes_to_the_same(database: Database) -> None:
    said = [
        decision(database, SUBJECT, "edit", {"name": "Ann"}, offset=1),
        decision(database, SUBJECT, "lock", True, offset=2),
        decision(database, SUBJECT, "edit", {"name": "Bea"}, offset=3),
        decision(database, SUBJECT, "lock", None, offset=4),
        decision(database, "persona:reddit:a:1-02", "hide", True, offset=5),
        database.message("decisions", "persona:reddit:a:1-02/hide", None, (), 6),
    ]
    query = 'SELECT subject, action, value, "offset", row_version FROM decisions ORDER BY 1, 2'
    database.write(said)
    once = database.sql(query)
    assert [row[:4] for row in once] == [
        ("persona:reddit:a:1-02", "hide", None, 6),
        (SUBJECT, "edit", {"name": "Bea"}, 3),
        (SUBJECT, "lock", None, 4),
    ]
    for message in said:
        database.write([message])
    assert database.sql(query) == once
    # What the cleaner has left of it: the newest of each key, and of a deletion perhaps nothing.
    database.empty()
    database.write([said[2], said[3]])
    assert [row[:4] for row in database.sql(query)] == [row[:4] for row in once[1:]]
