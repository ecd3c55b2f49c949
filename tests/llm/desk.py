"""What tests of asking share: a project with a ledger and no topics, prompts, items, an asker."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

from headrace import config
from headrace.config import Settings
from headrace.llm import asking, prompts
from headrace.llm.asking import Asker, Item, Task
from headrace.stores import migrate, postgres
from headrace.stream.stage import Context

STAGE = "scores"
SCHEMA = {
    "type": "object",
    "properties": {
        "score": {"type": "integer", "minimum": 0, "maximum": 10},
        "why": {"type": "string", "maxLength": 200},
    },
    "required": ["score", "why"],
    "additionalProperties": False,
}
PACKED = prompts.made("posts", 1, "--- system\nScore posts.\n--- user\n{{ items | json }}\n")
SINGLE = prompts.made("post", 1, "--- system\nScore a post.\n--- user\n{{ text }}\n")


def packed(pack: int = 4, output_tokens: int = 40) -> Task:
    return Task(PACKED, SCHEMA, pack, output_tokens)


def single(output_tokens: int = 40) -> Task:
    return Task(SINGLE, SCHEMA, 1, output_tokens)


def items(*texts: str, start: int = 0, **fields: Any) -> list[Item]:
    """One a text, of records r0, r1, …"""
    return [
        Item(f"post:reddit:r{number}", "score", {"text": text}, **fields)
        for number, text in enumerate(texts, start)
    ]


def many(count: int, start: int = 0) -> list[Item]:
    return items(*(f"text {number}" for number in range(start, start + count)), start=start)


def settings_of(dsn: str, url: str | None, project: str = "headrace", **llm: Any) -> Settings:
    """Quick to try again, without limits unless told."""
    quick = {
        "model": "gpt-4.1-mini",
        "requests_per_minute": None,
        "retry_seconds": 0.05,
        "retry_max_seconds": 0.2,
        "timeout_seconds": 90.0,  # a busy machine takes its time
        "circuit_failures": 1000,
        "circuit_seconds": 0.5,
    }
    told = {f"llm.{name}": value for name, value in {**quick, "base_url": url, **llm}.items()}
    flags = {"project": project, "postgres.dsn": dsn, **told}
    made = config.load({key: value for key, value in flags.items() if value is not None})
    unlimited = {"requests_per_minute": llm.get("requests_per_minute")}
    return made.model_copy(update={"llm": made.llm.model_copy(update=unlimited)})


@contextmanager
def project(dsn: str) -> Iterator[str]:
    """The name of a project whose tables are there, and gone in the end."""
    name = f"t{uuid.uuid4().hex[:10]}"
    settings = settings_of(dsn, None, name)
    migrate.upgrade(settings)
    try:
        yield name
    finally:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(f'DROP SCHEMA "{name}" CASCADE')


class Desk:
    """Askers of one project at one provider."""

    def __init__(self, dsn: str, name: str, url: str | None, **llm: Any) -> None:
        self.settings = settings_of(dsn, url, name, **llm)
        self._askers: list[Asker] = []

    def asker(
        self,
        worker: str = "here-0",
        stage: str = STAGE,
        stopping: Callable[[], bool] = lambda: False,
    ) -> Asker:
        made = asking.open(Context(self.settings, stage, worker=worker, stopping=stopping))
        self._askers.append(made)
        return made

    def sql(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with postgres.connect(self.settings, autocommit=True) as connection:
            cursor = connection.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

    def calls(self) -> list[tuple[str, str, int]]:
        """(reason, state, items) of the provider's calls, in order."""
        provider = self._askers[0]._ledger.provider
        return self.sql(
            "SELECT reason, state, items FROM llm_calls WHERE provider = %s ORDER BY id", [provider]
        )

    def close(self) -> None:
        for asker in self._askers:
            asker.close()
