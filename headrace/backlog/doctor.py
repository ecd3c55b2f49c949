"""What is wrong, and what to do about each finding.

A *finding* is wrong until somebody acts; a *note* is worth knowing and nothing is broken by it.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import psycopg
from confluent_kafka import KafkaException

from headrace import platforms as platform_files
from headrace.backlog import database, reach, receipts
from headrace.backlog.lag import Reader
from headrace.backlog.model import GroupLag
from headrace.backlog.report import span
from headrace.config import Settings
from headrace.errors import ConfigError, HeadraceError
from headrace.llm import standing
from headrace.schedule import duration_text
from headrace.scheduling import report as schedules
from headrace.search import collections, compare, marks
from headrace.snapshots import checking
from headrace.stores import postgres, weaviate
from headrace.stream import clients, topics
from headrace.stream.clients import Admin
from headrace.stream.topology import Group, Topology

PATIENCE_SECONDS = 10.0  # for a mirror to follow a store that works meanwhile
_MINUTE = 60_000
_SHOWN = 5  # names of missing topics

Offsets = dict[tuple[str, int], int]


@dataclass(frozen=True, slots=True)
class Finding:
    check: str  # servers, topics, retention, schedules, lag, offsets, records, redo, runs, search …
    what: str
    do: str
    level: Literal["finding", "note"] = "finding"

    def __str__(self) -> str:
        mark = "!" if self.level == "finding" else "·"
        return f"{mark} {self.check}: {self.what}\n    → {self.do}"


@dataclass(frozen=True, slots=True)
class Sums:
    """Invariant 1 for one stage: the records that reach it, and what has become of them."""

    stage: str
    records: int
    ok: int
    dropped: int
    dead: int
    pending: int
    deferred: int  # part of pending
    left_out: int  # part of pending: on topics that the stage does not read now

    @property
    def balanced(self) -> bool:
        return self.ok + self.dropped + self.dead + self.pending == self.records

    def __str__(self) -> str:
        parts = f"{self.ok:,} ok + {self.dropped:,} dropped + {self.dead:,} dead"
        sign = "=" if self.balanced else "≠"
        return f"{self.stage}: {parts} + {self.pending:,} pending {sign} {self.records:,} records"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    findings: tuple[Finding, ...]
    sums: tuple[Sums, ...] = ()

    @property
    def clean(self) -> bool:
        return not any(finding.level == "finding" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        return {
            "clean": self.clean,
            "findings": [asdict(finding) for finding in self.findings],
            "sums": [asdict(s) | {"balanced": s.balanced} for s in self.sums],
        }


def examine(settings: Settings) -> Diagnosis:
    """Look at everything. What cannot be reached is a finding, never an error.

    Raises ConfigError where the settings themselves or topics.yaml cannot be read.
    """
    found: list[Finding] = list(_weaviate(settings))
    sums: list[Sums] = []
    platform_files.load(settings)
    with ExitStack() as stack:
        lags: dict[str, GroupLag] = {}
        reader: Reader | None = None
        try:
            reach.kafka(settings)
            reader = stack.enter_context(Reader(settings))
            admin = stack.enter_context(clients.admin(settings))
            found += _topics(settings, admin, reader.topology)
            found += _retention(settings, admin, reader.topology)
            lags = {lag.group: lag for lag in reader.read()}
            found += _lag(lags.values())
            found += _runs(settings)
            found += _snapshots(settings, admin, reader.topology)
        except (HeadraceError, KafkaException) as error:
            found.append(_unreachable("Kafka", error))
        try:
            with database.reading(settings) as connection:
                sums += _sums(connection, reader.topology if reader else None, lags)
                found += _unaccounted(sums, lags, reader.topology if reader else None)
                found += _dead(connection)
                found += _forgetting(connection)
                found += _unsent(connection)
                found += _graph(connection)
                found += _asking(connection, settings)
        except (HeadraceError, psycopg.Error) as error:
            found.append(_unreachable("PostgreSQL", error))
        else:
            try:
                if reader is not None and lags:
                    found += _offsets(settings, reader)
                    found += _schedules(settings)
            except (HeadraceError, KafkaException, psycopg.Error) as error:
                found.append(_unreachable("a server", error))
            found += _search(settings)
    return Diagnosis(tuple(found), tuple(sums))


def _unreachable(server: str, error: Exception) -> Finding:
    said = " ".join(str(error).split())
    if "headrace migrate" in said:
        return Finding("servers", said, "run `headrace migrate`")
    do = "start the local servers with `headrace up`, or correct the address in the settings"
    return Finding("servers", said if server in said else f"{server}: {said}", do)


def _weaviate(settings: Settings) -> Iterator[Finding]:
    """Asked only where it is configured: nothing waits for it otherwise."""
    url = settings.weaviate.url
    if not url:
        return
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/v1/.well-known/ready", timeout=10):
            return
    except (OSError, ValueError) as error:
        yield Finding(
            "servers",
            f"Weaviate does not answer at {url}: {error}",
            "start it with `headrace up weaviate`, or correct weaviate.url",
        )


def _topics(settings: Settings, admin: Admin, wanted: Topology) -> Iterator[Finding]:
    try:
        plan = topics.plan(settings, admin, wanted)
    except ConfigError as error:  # a topic would be emptied before its readers come to it
        do = "correct topics.yaml (or the schedule), then `headrace topics apply`"
        yield Finding("retention", str(error), do)
        return
    if plan.create:
        shown = ", ".join(topic.name for topic in plan.create[:_SHOWN])
        more = len(plan.create) - _SHOWN
        shown += f" and {more} more" if more > 0 else ""
        yield Finding("topics", f"missing: {shown}", "`headrace topics apply` creates them")
    by_topic: dict[str, list[str]] = {}
    for change in plan.alter:
        by_topic.setdefault(change.topic, []).append(str(change).removeprefix(f"{change.topic}: "))
    for name, changes in by_topic.items():
        what = f"{name} differs from topics.yaml: {', '.join(changes)}"
        yield Finding("topics", what, "`headrace topics apply` makes it so")
    for change in plan.refused:
        yield Finding("topics", str(change), "correct topics.yaml to what the broker has")
    for name in plan.unknown:
        yield Finding(
            "topics", f"{name} is not in topics.yaml", "delete it if nobody needs it", level="note"
        )


def _retention(settings: Settings, admin: Admin, wanted: Topology) -> Iterator[Finding]:
    """What the broker forgets of groups that rest, beside what they need."""
    platforms = platform_files.load(settings)
    rests = [
        (when.longest_ms, f"{group} runs {when.text}")
        for group in wanted.groups.values()
        for when in wanted.schedules(group, platforms).values()
        if not when.always
    ]
    kept = [
        (topic.retention_ms, f"{topic.short} is kept {duration_text(topic.retention_ms)}")
        for group in wanted.groups.values()
        for topic in group.reads
        if topic.retention_ms > 0
    ]
    broker = admin.broker_configs()
    yield from broker_findings(broker, rests, kept)


def broker_findings(
    broker: Mapping[str, str],
    rests: Sequence[tuple[int | None, str]],
    kept: Sequence[tuple[int, str]],
) -> Iterator[Finding]:
    """Pure. `rests` are how long groups may rest (None: no bound), `kept` how long what they read
    is kept, in milliseconds, each with its reason.

    Offsets must outlast both: a group that was away for less must not begin again.
    """
    offsets = int(broker.get("offsets.retention.minutes", 10_080)) * _MINUTE
    forever = int(broker.get("offsets.retention.minutes", 0)) >= 2**31 - 1
    needs = [(2**62 if rest is None else rest, why) for rest, why in rests] + list(kept)
    if needs and not forever:
        need, why = max(needs)
        if offsets < need:
            yield Finding(
                "retention",
                f"the broker forgets the offsets of an empty group after {duration_text(offsets)},"
                f" but {why}: a group that was away longer would begin again",
                "set offsets.retention.minutes=2147483647 on the broker",
            )
    ids = int(broker.get("transactional.id.expiration.ms", 604_800_000))
    longest = max((2**62 if rest is None else rest for rest, _ in rests), default=0)
    if ids < min(longest, 2**31 - 1):
        why = max((2**62 if rest is None else rest, why) for rest, why in rests)[1]
        yield Finding(
            "retention",
            f"the broker forgets transactional ids after {duration_text(ids)}, but {why}",
            "harmless, a new one is made; transactional.id.expiration.ms=2147483647 keeps them",
            level="note",
        )


def _lag(lags: Iterable[GroupLag]) -> Iterator[Finding]:
    for lag in lags:
        if lag.state == "DATA_LOSS":
            yield Finding(
                "lag",
                f"{lag.group}: {lag.reason}",
                f"start it with `headrace run {lag.group}`: it goes on from what is there; publish"
                " again what was lost",
            )


def _runs(settings: Settings) -> Iterator[Finding]:
    for receipt in receipts.runs(settings).values():
        broken_off = receipt.state in ("stopped", "failed") and receipt.superseded is None
        if broken_off and receipt.records:  # without any, nothing stands half done
            yield Finding(
                "runs",
                f"run {receipt.run} {receipt.state} after {receipt.records:,} records",
                "`headrace publish` the same files again: it goes on where this run ended",
                level="note",
            )


def _snapshots(settings: Settings, admin: Admin, wanted: Topology) -> Iterator[Finding]:
    for name, faults in checking.lost(settings, admin, wanted).items():
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        yield Finding(
            "snapshots",
            f"{name} can no longer be restored: {faults[0]}{more}",
            f"`headrace snapshot create` makes one that can; `headrace snapshot delete {name}`"
            " frees its room",
            level="note",
        )


def _schedules(settings: Settings) -> Iterator[Finding]:
    """What would begin now if somebody opened its window, and windows that nobody here knows."""
    found = schedules.read(settings)
    late = [str(row.unit) for row in found.rows if row.state in ("due", "asked")]
    if late and not found.led:
        yield Finding(
            "schedules",
            f"due, and no scheduler runs: {', '.join(late)}",
            "`headrace run` has one; with containers `headrace scheduler` is one",
            level="note",
        )
    for name in dict.fromkeys(window.group for window in found.unknown):
        yield Finding(
            "schedules",
            f"{name} has a window, and no schedule here",
            "nothing where another topics.yaml of this project knows it, and it holds nobody up;"
            f" else `headrace schedule --close {name}`",
            level="note",
        )


def _search(settings: Settings) -> Iterator[Finding]:
    """Whether Weaviate shows what PostgreSQL has; what differs is marked again."""
    if not settings.search.enabled or not weaviate.expected(settings):
        return
    try:
        with (
            postgres.connect(settings, autocommit=True, application="headrace doctor") as own,
            weaviate.connect(settings) as client,
        ):
            if not collections.read(own):
                return
            refused, waiting = marks.errors(own), marks.waiting(own).marks
            compared = None if waiting else compare.everything(own, client, settings)
    except Exception as error:
        if not isinstance(error, HeadraceError | psycopg.Error) and not weaviate.known(error):
            raise
        said = weaviate.line(error)
        yield Finding("search", said, "start it; until then its marks wait and nothing is lost")
        return
    if refused:
        yield Finding(
            "search",
            f"Weaviate refused {refused:,} records",
            "`headrace search errors` says why; `headrace search errors --retry` tries again",
        )
    if compared is None:
        yield Finding(
            "search",
            f"{waiting:,} marks wait; PostgreSQL and Weaviate are compared when there are none",
            "`headrace run search --until-caught-up`",
            level="note",
        )
    elif compared.apart or compared.unknown:
        yield Finding(
            "search",
            f"Weaviate shows {compared.apart:,} of {compared.records:,} records otherwise than"
            f" PostgreSQL and {compared.unknown:,} that are not there"
            f" ({', '.join(compared.examples)})",
            "they are marked again: `headrace run search --until-caught-up`",
        )


_STATUS = """
SELECT s.stage, r.topic, s.status, o.outcome = 'deferred' AND o.root_topic_id = r.topic_id
       AND o.root_offset = r."offset" AS deferred, count(*)
FROM stage_status s
JOIN records r ON r.id = s.record_id
LEFT JOIN outcomes o ON o.record_id = s.record_id AND o.stage = s.stage
GROUP BY 1, 2, 3, 4
"""
# Counted on its own, not through the view: what the four numbers must add up to.
_RECORDS = """
SELECT st.stage, count(*) FROM stage_topics st
JOIN records r ON r.topic = st.topic AND NOT r.deleted GROUP BY 1
"""


def _sums(
    connection: psycopg.Connection, topology: Topology | None, lags: Mapping[str, GroupLag]
) -> list[Sums]:
    counted = connection.execute("SELECT stage FROM stages ORDER BY stage").fetchall()
    order = list(topology.groups) if topology else []
    stages = sorted(
        (stage for (stage,) in counted),
        key=lambda stage: order.index(stage) if stage in order else len(order),
    )
    records: dict[str, int] = dict(connection.execute(_RECORDS).fetchall())
    numbers: dict[str, dict[str, int]] = {stage: {} for stage in stages}
    for stage, topic, status, deferred, count in connection.execute(_STATUS).fetchall():
        mine = numbers.setdefault(stage, {})
        mine[status] = mine.get(status, 0) + count
        if status == "pending":
            held = stage in lags and any(
                p.topic == topic and p.held for p in lags[stage].partitions
            )
            part = "left_out" if held else "deferred" if deferred else "open"
            mine[part] = mine.get(part, 0) + count
    return [
        Sums(
            stage,
            records=records.get(stage, 0),
            ok=mine.get("ok", 0),
            dropped=mine.get("dropped", 0),
            dead=mine.get("dead", 0),
            pending=mine.get("pending", 0),
            deferred=mine.get("deferred", 0),
            left_out=mine.get("left_out", 0),
        )
        for stage in stages
        for mine in [numbers[stage]]
    ]


def _unaccounted(
    sums: Sequence[Sums], lags: Mapping[str, GroupLag], topology: Topology | None
) -> Iterator[Finding]:
    """Invariant 1: the sums, and that every pending record is in somebody's backlog."""
    for s in sums:
        if not s.balanced:
            yield Finding(
                "records",
                f"the sums do not agree: {s}",
                "run `headrace migrate`; if it stays, this is a fault of the program: report it",
            )
    if topology is None or not lags:
        return
    for stage in topology.stages():
        if stage.short not in {s.stage for s in sums}:
            yield Finding(
                "records",
                f"PostgreSQL does not know stage {stage.short}",
                "run `headrace migrate` after topics.yaml has changed",
            )
    # A stage's records are on their way while it, a stage above it or a store has work.
    busy = any(not lag.caught_up for lag in lags.values())
    for s in sums:
        lost = s.pending - s.deferred - s.left_out
        if lost and not busy and s.stage in lags:
            yield Finding(
                "records",
                f"{s.stage}: {lost:,} records are pending, but nothing is left to read",
                f"queue them with `headrace requeue {s.stage} --missing`;"
                f" `headrace sql \"SELECT record_id FROM stage_status WHERE stage = '{s.stage}'"
                " AND status = 'pending'\"` lists them",
            )
        if s.deferred:
            yield Finding(
                "records",
                f"{s.stage}: {s.deferred:,} records are deferred and come back by redo",
                "nothing, unless they should have come back by now",
                level="note",
            )


def _dead(connection: psycopg.Connection) -> Iterator[Finding]:
    """Dead letters that wait for somebody."""
    for group, count in connection.execute(
        "SELECT \"group\", count(*) FROM letters WHERE state = 'open' GROUP BY 1 ORDER BY 1"
    ).fetchall():
        yield Finding(
            "dead",
            f"{group}: {count:,} dead letters are open",
            f"`headrace dead list {group}` says why; once it is mended,"
            f" `headrace dead redrive {group}` gives them back, and `headrace dead dismiss {group}`"
            " puts aside what never can be read",
            level="note",
        )


def _unsent(connection: psycopg.Connection) -> Iterator[Finding]:
    """Work that a killed command had noted to be done again."""
    rows = connection.execute(
        """SELECT q."group", o.kind, count(*)
           FROM redo q LEFT JOIN redo_orders o ON o.id = q.order_id
           WHERE q.state = 'sending' AND q.queued_at < now() - interval '2 minutes'
           GROUP BY 1, 2 ORDER BY 1, 2"""
    ).fetchall()
    for group, kind, count in rows:
        command = {"dead": "dead redrive", "upgrade": "upgrade"}.get(kind, "requeue --missing")
        yield Finding(
            "redo",
            f"{group}: {count:,} records were noted to be done again and perhaps not sent",
            f"start the command once more, it goes on from there: `headrace {command}` for {group}",
        )


# Of each kind of fault how many rows there are.
_FAULTS = """
WITH whole AS MATERIALIZED (
  SELECT record_id, stage, jsonb_array_length(
    CASE WHEN outcome = 'ok' THEN result ELSE earlier->'result' END->'personas') AS personas
  FROM outcomes WHERE stage = ANY (ARRAY(SELECT stage FROM stages WHERE facet = 'personas'))
)
SELECT 'edges stand without a node at one end', count(*) FROM edges e
WHERE NOT EXISTS (SELECT FROM nodes n WHERE n.id = e.source)
   OR NOT EXISTS (SELECT FROM nodes n WHERE n.id = e.target)
UNION ALL
SELECT 'edges are served although a node of theirs is not', count(*) FROM edges e
WHERE e.superseded_at IS NULL
  AND (EXISTS (SELECT FROM nodes n WHERE n.id = e.source AND n.superseded_at IS NOT NULL)
    OR EXISTS (SELECT FROM nodes n WHERE n.id = e.target AND n.superseded_at IS NOT NULL))
UNION ALL
SELECT 'nodes are served without an answer of their stage', count(*) FROM nodes n
WHERE n.superseded_at IS NULL AND NOT EXISTS (
  SELECT FROM outcomes o WHERE o.record_id = n.root_id AND o.stage = n.stage
  AND (o.outcome = 'ok' OR o.earlier IS NOT NULL))
UNION ALL
SELECT 'communities are served by halves', count(*) FROM whole w
WHERE w.personas <> (SELECT count(*) FROM nodes n WHERE n.root_id = w.record_id
                     AND n.stage = w.stage AND n.kind = 'persona' AND n.superseded_at IS NULL)
   OR w.personas <> (SELECT count(*) FROM edges e WHERE e.root_id = w.record_id
                     AND e.stage = w.stage AND e.superseded_at IS NULL)
"""


def _graph(connection: psycopg.Connection) -> Iterator[Finding]:
    """Whether nodes and edges are what the outcomes say."""
    for fault, count in connection.execute(_FAULTS).fetchall():
        if count:
            yield Finding(
                "graph",
                f"{count:,} {fault}",
                "this is a fault of the program: report it; a new answer of the stage mends it",
            )


_EMBEDDED = """
SELECT stage, count(*) FROM llm_calls
WHERE provider = 'embedded' AND transport = 'direct' AND state = 'answered' GROUP BY 1 ORDER BY 1
"""


def _asking(connection: psycopg.Connection, settings: Settings) -> Iterator[Finding]:
    """What keeps groups from asking a language model, and whose answers there are."""
    for problem in standing.problems(settings):
        yield Finding("llm", problem, "correct the setting, and start the groups that ask again")
    for group, one in standing.refused(connection, settings).items():
        age = span((datetime.now(UTC) - one.at).total_seconds())
        do = "what the line says, and start it again; the other groups go on meanwhile"
        if one.budget:
            do = "nothing, or a higher budget; `headrace llm cost` tells where the money went"
        elif one.reason.startswith("circuit: "):
            do = "nothing: it goes on by itself when the provider is back"
        yield Finding(
            "llm",
            f"{group} could not ask {age} ago: {one.reason}",
            do,
            level="note" if one.budget or one.reason.startswith("circuit: ") else "finding",
        )
    for line in standing.stuck(connection):
        budget = ": budget: " in line
        do = "what the line says; it is tried again all the time"
        yield Finding("llm", line, do, level="note" if budget else "finding")
    for stage, count in connection.execute(_EMBEDDED).fetchall():
        yield Finding(
            "llm",
            f"{stage}: the embedded model answered {count:,} calls; what it says is for trying out",
            "set llm.base_url or llm.api_key for real ones (docs/llm.md)",
            level="note",
        )


def _forgetting(connection: psycopg.Connection) -> Iterator[Finding]:
    """Orders that are not done, and what a purge has changed on topics for a while."""
    resume = "`headrace forget --resume` goes on and says what it waits for"
    for number, state in connection.execute(
        "SELECT id, state FROM forget_orders WHERE state = 'open' OR (purge AND state <> 'purged')"
        " ORDER BY id"
    ).fetchall():
        still = "not done yet" if state == "open" else "not purged yet"
        yield Finding("forget", f"order {number} is {still}", resume, level="note")
    changed = connection.execute(
        "SELECT topic, string_agg(key, ', ' ORDER BY key) FROM forget_configs GROUP BY 1 ORDER BY 1"
    ).fetchall()
    for topic, keys in changed:
        yield Finding("forget", f"{topic} has a purge's {keys} still", resume)


def _offsets(settings: Settings, reader: Reader) -> Iterator[Finding]:
    """A store's own offsets beside their mirror in Kafka; a store at work is given time."""
    with clients.admin(settings) as admin:
        for group in reader.topology.stores():
            deadline = time.monotonic() + PATIENCE_SECONDS
            while True:
                own = _own_offsets(settings, admin, group)
                mirror = admin.committed(group.name, own)
                apart = {at: n for at, n in own.items() if n and mirror.get(at, 0) != n}
                if not apart or time.monotonic() > deadline or not admin.members(group.name):
                    break
                time.sleep(0.5)
            yield from mirror_findings(group.short, apart, mirror)


def mirror_findings(group: str, apart: Offsets, mirror: Offsets) -> Iterator[Finding]:
    """Pure. `apart` are the store's own offsets where the mirror says something else."""
    behind = {at: n for at, n in apart.items() if mirror.get(at, 0) < n}
    ahead = {at: n for at, n in apart.items() if mirror.get(at, 0) > n}

    def where(some: Offsets) -> str:
        (topic, partition), own = next(iter(some.items()))
        shown = mirror.get((topic, partition), 0)
        return f"{len(some)} partitions ({topic}/{partition}: {shown} there, {own} in the store)"

    if behind:
        yield Finding(
            "offsets",
            f"{group}: Kafka's mirror is behind PostgreSQL on {where(behind)}; the lag that is"
            " shown is too large",
            f"start it for a moment: `headrace run {group} --until-caught-up`",
        )
    if ahead:
        yield Finding(
            "offsets",
            f"{group}: Kafka's mirror is ahead of PostgreSQL on {where(ahead)}, as after a restored"
            " backup; the lag that is shown is too small",
            f"nothing is lost: `headrace run {group}` goes on from where PostgreSQL stands",
        )


def _own_offsets(settings: Settings, admin: Admin, group: Group) -> Offsets:
    """What PostgreSQL says of the topics as they are now; earlier incarnations do not count."""
    names = [topic.name for topic in (*group.reads, group.redo)]
    ids = admin.topic_ids(names)
    with database.reading(settings) as connection:
        rows = connection.execute(
            'SELECT topic, partition, topic_id, next FROM offsets WHERE "group" = ANY(%s)',
            [[group.short, group.name]],
        ).fetchall()
    return {
        (topic, partition): following
        for topic, partition, topic_id, following in rows
        if ids.get(topic) == topic_id
    }
