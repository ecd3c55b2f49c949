"""How far personas are, out of PostgreSQL: for the worker's log and for whoever follows it.

What counts as made is what the ledger holds of the sets in force; what is committed, the outcomes
that have been stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import psycopg

from consumers.personas import asked, lines, making
from consumers.personas.lines import Standing
from consumers.personas.making import Call, Draft
from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.llm import prompts
from headrace.llm import standing as llm
from headrace.log import get
from headrace.stores import postgres
from headrace.stream.stage import Context, Record

log = get(__name__)

STAGE = "personas"
LOOK_SECONDS = 0.5
_IDLE = timedelta(minutes=2)  # without an answer: nobody can say how long it will take
_LATE = timedelta(seconds=60)  # a row may be seen so much later than it says

# Ids begin with their kind, so communities are one range of the primary key. One that the stage
# dropped (no posts), or that died, is not waited for.
_FOUND = """
WITH communities AS (
  SELECT r.id, r.title, p.name AS platform, o.outcome IS NOT NULL AS answered
  FROM records r
  JOIN dim_platform p ON p.id = r.platform_id
  LEFT JOIN outcomes o ON o.record_id = r.id AND o.stage = %(stage)s
    AND o.root_topic_id = r.topic_id AND o.root_offset = r."offset"
    AND o.outcome IN ('ok', 'drop', 'dead')
  WHERE r.id >= 'community:' AND r.id < 'community;' AND NOT r.deleted
    AND (o.outcome IS NULL OR o.outcome = 'ok')
), forced AS (
  SELECT DISTINCT ON (s.record_id) s.record_id, s.number,
         (SELECT count(*) FROM jsonb_array_elements(s.keep) one WHERE one->>'kind' = 'persona')
           AS kept
  FROM llm_sets s WHERE s.stage = %(stage)s ORDER BY s.record_id, s.number DESC
), held AS (
  SELECT c.id, a.part, a.at, a.key, coalesce(f.number, 1) AS "set",
         CASE WHEN jsonb_typeof(a.answer->'personas') = 'array'
              THEN jsonb_array_length(a.answer->'personas') ELSE 0 END AS personas
  FROM communities c
  LEFT JOIN forced f ON f.record_id = c.id
  JOIN llm_answers a ON a.record_id = c.id AND a.stage = %(stage)s
  WHERE a."set" = coalesce(f.number, 1) AND a.prompt = %(prompt)s
)
"""

_STANDING = (
    _FOUND
    + """, sets AS (
  SELECT c.id, h.calls, coalesce(h.calls, 0) AS done, least(%(count)s,
           coalesce(f.kept, 0) + coalesce(h.made, 0)) AS made,
         ceil((%(count)s - least(%(count)s, coalesce(f.kept, 0) + coalesce(h.made, 0)))
           / %(together)s::numeric) AS missing
  FROM communities c
  LEFT JOIN forced f ON f.record_id = c.id
  LEFT JOIN (SELECT id, count(*) AS calls,
                    sum(personas) FILTER (WHERE part NOT LIKE 'again%%') AS made
             FROM held GROUP BY id) h ON h.id = c.id
), pace AS (
  SELECT max(at) AS newest, percentile_cont(0.5) WITHIN GROUP (ORDER BY gap) AS gap
  FROM (SELECT at, extract(epoch FROM at - lag(at) OVER (ORDER BY at)) AS gap
        FROM (SELECT at FROM held ORDER BY at DESC LIMIT 20) latest) gaps
), spent AS (
  SELECT sum(cost) FILTER (WHERE priced) AS cost FROM llm_calls WHERE stage = %(stage)s
)
SELECT count(*), count(sets.calls), coalesce(sum(made), 0)::bigint,
       count(*) * %(count)s, coalesce(sum(done), 0)::bigint,
       coalesce(sum(done + missing), 0)::bigint,
       (SELECT cost FROM spent), (SELECT gap FROM pace), (SELECT now() - newest FROM pace),
       (SELECT count(*) FROM communities WHERE answered)
FROM sets
"""
)

_ANSWERS = (
    _FOUND
    + """
SELECT h.id, c.title, c.platform, h."set", h.part, h.personas, h.at, coalesce(f.kept, 0)
FROM held h JOIN communities c ON c.id = h.id LEFT JOIN forced f ON f.record_id = h.id
WHERE h.at > %(since)s ORDER BY h.at, h.key
"""
)

_COMMITTED = """
SELECT o.record_id, r.title, p.name, (o.result->>'set')::integer,
       jsonb_array_length(o.result->'personas'), (o.result->>'changed')::boolean, o.stored_at,
       o.root_topic_id, o.root_offset
FROM outcomes o
JOIN records r ON r.id = o.record_id
JOIN dim_platform p ON p.id = r.platform_id
WHERE o.record_id >= 'community:' AND o.record_id < 'community;' AND o.stage = %(stage)s
  AND o.outcome = 'ok' AND o.stored_at > %(since)s
ORDER BY o.stored_at, o.record_id
"""


def standing(connection: psycopg.Connection, settings: Settings) -> tuple[Standing, bool]:
    """How far it is, and whether there are communities and each has its outcome."""
    row = connection.execute(_STANDING.encode(), parameters(settings)).fetchone()
    assert row is not None
    communities, begun, personas, planned, calls, calls_planned, cost, gap, idle, answered = row
    left = None
    if gap is not None and idle < max(_IDLE, timedelta(seconds=5 * gap)):
        left = timedelta(seconds=gap) * (calls_planned - calls)
    found = Standing(communities, begun, personas, planned, calls, calls_planned, cost, left)
    return found, 0 < communities <= answered


def waits(connection: psycopg.Connection, settings: Settings) -> str | None:
    """Why nothing is asked now, as a line; None where nothing is known to be in the way."""
    found = llm.refused(connection, settings).get(STAGE)
    return f"Waits: {found.reason}" if found else None


def parameters(settings: Settings) -> dict[str, Any]:
    prompt = prompts.load("consumers.personas", "personas")
    return {
        "stage": STAGE,
        "prompt": prompt.name,
        "count": settings.personas.count,
        "together": asked.together(settings),
    }


class _Line(NamedTuple):
    text: str
    of: str | None = None  # the id of a community


class Follower:
    """What happened since it was asked last, as lines. `connection` in autocommit mode."""

    def __init__(self, connection: psycopg.Connection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self._own = parameters(settings)
        self._there: dict[tuple[str, int], int] = {}  # personas of each set
        self._numbers: dict[str, int] = {}  # of communities, as they were begun
        self._names: dict[str, str] = {}
        self._seen: dict[Any, datetime] = {}
        self._told: str | None = None  # the community that the last line was about
        self._answers()  # what was there before is counted, not told
        self._outcomes()

    def news(self) -> Iterator[str]:
        """Lines, answers before commits; each under the name of its community."""
        found = [*self._answers(), *self._outcomes()]
        if not found:
            return
        of = max(standing(self._connection, self._settings)[0].communities, len(self._numbers))
        for text, community in found:
            if community is not None and community != self._told:
                self._told = community
                number, name = self._numbers[community], self._names[community]
                yield lines.community(number, of, name)
            yield text

    def _answers(self) -> list[_Line]:
        told: list[_Line] = []
        count = self._settings.personas.count
        rows = self._rows(_ANSWERS)
        for id, title, platform, set, part, personas, at, kept in rows:
            if not self._is_new((id, set, part), at):
                continue
            self._name(id, title, platform)
            there = self._there.get((id, set), kept)
            if not part.startswith("again"):
                there = min(there + personas, count)
            self._there[(id, set)] = there
            told.append(_Line(lines.batch(part, personas, there, count), id))
        return told

    def _outcomes(self) -> list[_Line]:
        told = []
        for id, title, platform, set, personas, changed, at, topic, offset in self._rows(
            _COMMITTED
        ):
            if self._is_new((id, set, topic, offset), at):
                self._name(id, title, platform)
                told.append(
                    _Line(lines.committed(personas, "kept" if changed else "committed"), id)
                )
                told.append(_Line(str(standing(self._connection, self._settings)[0])))
        return told

    def _name(self, id: str, title: str | None, platform: str) -> None:
        self._numbers.setdefault(id, len(self._numbers) + 1)
        self._names[id] = lines.name(platform, title or id)

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        since = {"since": self._newest() - _LATE}
        return self._connection.execute(query.encode(), self._own | since).fetchall()

    def _newest(self) -> datetime:
        newest = max(self._seen.values(), default=None)
        return newest or datetime.fromisoformat("2000-01-01T00:00:00+00:00")

    def _is_new(self, what: Any, at: datetime) -> bool:
        if what in self._seen:
            return False
        self._seen[what] = at
        return True


def follow(settings: Settings, say: Callable[[str], None], stopping: Callable[[], bool]) -> None:
    """Tells what happens until every community has its outcome."""
    with postgres.connect(
        settings, readonly=True, autocommit=True, application="headrace personas"
    ) as connection:
        follower = Follower(connection, settings)
        found, complete = standing(connection, settings)
        say(str(found))
        told: str | None = None
        while not complete and not stopping():
            line = waits(connection, settings)
            if line and line != told:
                say(line)
            told = line
            time.sleep(LOOK_SECONDS)
            for line in follower.news():
                say(line)
            complete = standing(connection, settings)[1]
        for line in follower.news():
            say(line)


class Watch:
    """The same lines in a worker's log, as it works. Nothing depends on them: where PostgreSQL does
    not tell how far everything is, the worker's own count stands."""

    def __init__(self, context: Context | None) -> None:
        self._context = context
        self._begun = 0
        self._current: tuple[str, Mapping[str, Any]] | None = None
        self._numbers: dict[str, int] = {}  # of those that are begun
        self._made: str | None = None

    def batch(self) -> None:
        self._made = None

    def begins(self, record: Record, draft: Draft, held: int) -> None:
        """`held`: answers that are there already."""
        if self._context is None:
            return
        if self._current != (record.id, record.value):  # else it is tried again
            self._current = record.id, record.value
            waiting = max(self._context.waiting(), 1)
            number, of = self._begun + 1, self._begun + waiting
            self._begun += 1
            if (found := self._standing()) is not None and found.communities:
                number = min(found.begun + int(not held), found.communities)
                of = max(found.communities, number)
            number = self._numbers.setdefault(record.id, number)
            name = lines.name(record.platform, str(record.value["name"]))
            log.info("%s", lines.community(number, of, name))
        if held and not draft.whole:
            log.info("goes on after %d of %d personas", len(draft.entries), draft.plan.count)

    def answered(self, call: Call, answer: Mapping[str, Any], draft: Draft) -> None:
        count = len(making.personas(answer))
        there = min(len(draft.entries), draft.plan.count)
        log.info("%s", lines.batch(call.part, count, there, draft.plan.count))

    def made(self, personas: int, *, kept: bool) -> None:
        self._made = lines.committed(personas, "kept" if kept else "committed")

    def committed(self) -> None:
        if self._made is None or self._context is None:
            return
        log.info("%s", self._made)
        if self._current is not None:
            self._numbers.pop(self._current[0], None)
        self._made = self._current = None
        if (found := self._standing()) is not None:
            log.info("%s", found)

    def _standing(self) -> Standing | None:
        assert self._context is not None
        try:
            with postgres.connect(self._context.settings, readonly=True) as connection:
                return standing(connection, self._context.settings)[0]
        except (HeadraceError, psycopg.Error):
            return None
