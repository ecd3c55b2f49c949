"""The projector in topics.yaml, and when `headrace run` brings it along."""

from __future__ import annotations

import pytest

from headrace import config
from headrace.errors import ConfigError, HeadraceError
from headrace.stream.commands import choose, choose_projectors
from tests.world import World


def test_a_projector_is_a_group_without_topics(worlds):
    topology = worlds().topology
    assert list(topology.projectors) == ["search"] and "search" not in topology.groups
    assert not any(short.startswith("search.") for short in topology.topics)
    assert topology.projector(f"{topology.project}.search") is topology.projectors["search"]
    assert [p.short for p in topology.projectors_of("full")] == ["search"]
    assert topology.projectors_of("fast") == ()
    with pytest.raises(HeadraceError, match=r"there are: .*, search"):
        topology.group("serch")

    def change(content):
        content["groups"]["search"]["reads"] = ["runs"]

    with pytest.raises(ConfigError, match="a projector reads PostgreSQL"):
        worlds(change=change)


def test_run_brings_it_where_there_is_a_weaviate(world: World, tmp_path, monkeypatch):
    monkeypatch.setenv("HEADRACE_DATA_DIR", str(tmp_path))  # nothing runs there
    for name in ("URL", "GRPC_PORT"):  # of the session's
        monkeypatch.delenv(f"HEADRACE_WEAVIATE__{name}", raising=False)
    file = {"config": world.home / "config" / "headrace.yaml", "project": world.project}
    topology, settings = world.topology, config.load(file)
    chosen, lines = choose_projectors(settings, topology, ())
    assert chosen == [] and "search waits: no Weaviate runs here" in lines[0]
    there = config.load({**file, "weaviate.url": "http://127.0.0.1:1"})
    assert choose_projectors(there, topology, ()) == ([topology.projectors["search"]], [])
    off = config.load({**file, "weaviate.url": "http://127.0.0.1:1", "search.enabled": False})
    assert choose_projectors(off, topology, ()) == ([], [])
    assert choose_projectors(settings, topology, ("search", "text"))[0] != []
    assert [group.short for group in choose(topology, ("search", "text"), None, True)] == ["text"]
