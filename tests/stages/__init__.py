"""Stages for tests, and the topics.yaml that has them."""

from __future__ import annotations

from typing import Any


def groups(**chosen: dict[str, Any]) -> Any:
    """For `worlds(change=…)`: topics.yaml with these groups alone. Each is a stage that reads raw
    posts and writes enriched.<name>, unless it says otherwise."""

    def change(content: dict[str, Any]) -> None:
        content["groups"] = {}
        for name, given in chosen.items():
            content["topics"][f"enriched.{name}"] = {
                "description": f"What {name} says.",
                "key": "record id",
                "cleanup": "delete",
                "retention": "30 days",
            }
            content["groups"][name] = {
                "description": "For tests.",
                "kind": "stage",
                "module": "tests.stages.words",
                "reads": ["raw.posts.{platform}"],
                "writes": f"enriched.{name}",
                "version": "1",
                "rank": 1,
            } | given
        content["modes"] = {"fast": list(chosen), "full": "all", "batch": []}

    return change
