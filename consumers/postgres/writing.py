"""A read batch into the tables. Everything happens in the caller's transaction.

resolve  names to ids of dim_*, before the transaction: rows of dim_* are of use to everybody
records  COPY into a temporary table, ordered upsert where newer
outcomes COPY into a temporary table, ordered insert; what stands already is locked, merged in
         Python by the one `merge`, and updated; mentions and vectors follow what is served
receipts, dead letters
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import starmap
from operator import itemgetter
from typing import Any, TypeVar

import orjson
import psycopg
from psycopg.types.json import set_json_loads

from consumers.postgres import graph as graphs
from consumers.postgres.merge import Place, Served, State, merge
from consumers.postgres.reading import Batch, Decision, Letter, Raw, Receipt, Redone
from headrace.search import marks as search
from headrace.slug import slug
from headrace.stores import authors, scoring
from headrace.stores.copying import NULL, copy, escaped
from headrace.stores.dimensions import Dimension

K = TypeVar("K")
V = TypeVar("V")

_NAME = 500  # characters of a name in dim_*
_MOST_SKIPPED = 64  # batches
_UNSURE = (-1, False)  # no count of headrace.stores.authors
_LAST_MS = 253_402_214_400_000  # 9999-12-31: a foreign message may name any time

RECORD = (
    "id", "kind", "platform_id", "native_id", "text", "title", "author_id", "community_id", "url",
    "created_at", "lang", "metrics", "value", "run_id", "topic", "topic_id", "partition", "offset",
    "appended", "deleted",
)  # fmt: skip
OUTCOME = (
    "record_id", "stage", "outcome", "reason", "result", "version", "rank", "input_rank",
    "root_topic_id", "root_partition", "root_offset", "root_appended", "input_topic",
    "input_partition", "input_offset", "out_topic_id", "out_partition", "out_offset",
    "out_appended", "at", "parts", "earlier", "floor",
)  # fmt: skip
MENTION = (
    "record_id", "stage", "start", "end", "text", "name", "type", "method", "confidence",
    "place_id", "revision", "version",
)  # fmt: skip
VECTOR = (
    "record_id", "space", "stage", "dimensions", "vector", "version", "rank", "root_topic_id",
    "root_partition", "root_offset", "root_appended",
)  # fmt: skip


def _listed(columns: Iterable[str], prefix: str = "") -> str:
    return ", ".join(f'{prefix}"{column}"' for column in columns)


# Without constraints or defaults: a row that does not fit fails where it matters.
_TEMPORARY = f"""
CREATE TEMPORARY TABLE IF NOT EXISTS incoming_records ON COMMIT DELETE ROWS AS
  SELECT {_listed(RECORD)} FROM records WITH NO DATA;
CREATE TEMPORARY TABLE IF NOT EXISTS incoming_outcomes ON COMMIT DELETE ROWS AS
  SELECT {_listed(OUTCOME)} FROM outcomes WITH NO DATA;
CREATE TEMPORARY TABLE IF NOT EXISTS merged_outcomes ON COMMIT DELETE ROWS AS
  SELECT {_listed(OUTCOME)} FROM outcomes WITH NO DATA;
CREATE TEMPORARY TABLE IF NOT EXISTS incoming_vectors ON COMMIT DELETE ROWS AS
  SELECT {_listed(VECTOR)} FROM vectors WITH NO DATA;
"""
_EMPTY = "TRUNCATE incoming_records, incoming_outcomes, merged_outcomes, incoming_vectors"

_UPSERT_RECORDS = f"""
INSERT INTO records AS r ({_listed(RECORD)})
SELECT {_listed(RECORD)} FROM incoming_records ORDER BY id
ON CONFLICT (id) DO UPDATE SET
  {", ".join(f'"{column}" = excluded."{column}"' for column in RECORD[1:])},
  updated_at = now(), row_version = nextval('record_changes')
WHERE newer(excluded.topic_id, excluded."offset", excluded.appended,
            r.topic_id, r."offset", r.appended)
"""

_INSERT_OUTCOMES = f"""
INSERT INTO outcomes ({_listed(OUTCOME)})
SELECT {_listed(OUTCOME)} FROM incoming_outcomes ORDER BY record_id, stage
ON CONFLICT DO NOTHING
RETURNING record_id, stage
"""

_STANDING = f"""
SELECT {_listed(OUTCOME, "o.")}
FROM outcomes o
JOIN unnest(%s::text[], %s::text[]) AS asked (record_id, stage)
  ON asked.record_id = o.record_id AND asked.stage = o.stage
ORDER BY o.record_id, o.stage
FOR UPDATE OF o
"""

_UPDATE_OUTCOMES = f"""
UPDATE outcomes o SET
  {", ".join(f'"{column}" = m."{column}"' for column in OUTCOME[2:])},
  stored_at = now(), row_version = nextval('record_changes')
FROM merged_outcomes m
WHERE o.record_id = m.record_id AND o.stage = m.stage
"""

_DELETE_MENTIONS = """
DELETE FROM entity_mentions m
USING unnest(%s::text[], %s::text[]) AS gone (record_id, stage)
WHERE m.record_id = gone.record_id AND m.stage = gone.stage
"""

# Those of other revisions than what is served now; another space's of the same revision stays.
_DELETE_VECTORS = """
DELETE FROM vectors v
USING unnest(%s::text[], %s::text[], %s::text[], %s::bigint[])
   AS now_ (record_id, stage, topic_id, "offset")
WHERE v.record_id = now_.record_id AND v.stage = now_.stage
  AND (v.root_topic_id, v.root_offset) IS DISTINCT FROM (now_.topic_id, now_."offset")
"""

# Whoever is here holds the outcome's row, and what comes is what stands.
_UPSERT_VECTORS = f"""
INSERT INTO vectors ({_listed(VECTOR)})
SELECT {_listed(VECTOR)} FROM incoming_vectors ORDER BY record_id, space
ON CONFLICT (record_id, space) DO UPDATE SET
  {", ".join(f'"{column}" = excluded."{column}"' for column in VECTOR[2:])}, stored_at = now()
"""

# Held until the end: whoever changes the weights waits for what was reckoned by the old ones.
_HOLD_WEIGHTS = f"SELECT pg_advisory_xact_lock_shared({scoring.LOCK})"

_UPSERT_SCORES = """
INSERT INTO scores (record_id, stage, scores, weighted, version, rank, root_topic_id,
                    root_partition, root_offset, root_appended)
SELECT s.record_id, s.stage, s.scores, weighted_score(s.scores), s.version, s.rank, s.topic_id,
       s.partition, s."offset", s.appended
FROM unnest(%s::text[], %s::text[], %s::jsonb[], %s::text[], %s::integer[], %s::text[],
            %s::integer[], %s::bigint[], %s::bigint[])
  AS s (record_id, stage, scores, version, rank, topic_id, partition, "offset", appended)
ON CONFLICT (record_id) DO UPDATE SET
  stage = excluded.stage, scores = excluded.scores, weighted = excluded.weighted,
  version = excluded.version, rank = excluded.rank, root_topic_id = excluded.root_topic_id,
  root_partition = excluded.root_partition, root_offset = excluded.root_offset,
  root_appended = excluded.root_appended, stored_at = now()
"""
_DELETE_SCORES = "DELETE FROM scores WHERE record_id = ANY(%s)"

# What stood before the order was given is no answer to it.
_DELETE_ANSWERED = """
DELETE FROM redo r
USING unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[])
   AS came (record_id, stage, topic_id, partition, "offset")
WHERE r."group" = came.stage AND r.record_id = came.record_id
  AND came."offset" >= coalesce(
    (SELECT (o.ends #>> ARRAY[came.topic_id, came.partition])::bigint
     FROM redo_orders o WHERE o.id = r.order_id), 0)
"""

# Off, rows of redo are looked up by key; else all of it may be read for each batch.
_HASHING = "SELECT set_config('enable_hashjoin', %s, true)"

_DELETE_REDONE = """
DELETE FROM redo r USING unnest(%s::text[], %s::text[]) AS came ("group", record_id)
WHERE r."group" = came."group" AND r.record_id = came.record_id
"""

_RESOLVE = """
UPDATE dead_letters d SET resolved_at = now()
FROM unnest(%s::text[], %s::text[], %s::integer[], %s::bigint[])
  AS came ("group", topic, partition, "offset")
WHERE d."group" = came."group" AND d.topic = came.topic AND d.partition = came.partition
  AND d."offset" = came."offset" AND d.resolved_at IS NULL
"""

_UPSERT_DECISION = """
INSERT INTO decisions AS d (subject, action, value, "at", "by", record_id, topic_id, "offset",
                            appended)
VALUES (%s, %s, %s::jsonb, %s, %s, record_of(%s), %s, %s, %s)
ON CONFLICT (subject, action) DO UPDATE SET
  value = excluded.value, "at" = excluded."at", "by" = excluded."by",
  topic_id = excluded.topic_id, "offset" = excluded."offset", appended = excluded.appended,
  stored_at = now(), row_version = nextval('record_changes')
WHERE newer(excluded.topic_id, excluded."offset", excluded.appended,
            d.topic_id, d."offset", d.appended)
"""

# Their personas have no object where the community is deleted.
_MARK_PERSONAS = """
INSERT INTO search_dirty (record_id)
SELECT id FROM nodes WHERE root_id = ANY(%s) AND kind = 'persona' AND superseded_at IS NULL
"""

_UPSERT_RUN = """
INSERT INTO runs AS r (run, state, platform, kind, started_at, ended_at, records, rejected, receipt,
                       topic_id, "offset", appended)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s::jsonb, %s, %s, %s)
ON CONFLICT (run) DO UPDATE SET
  state = excluded.state, platform = excluded.platform, kind = excluded.kind,
  started_at = excluded.started_at, ended_at = excluded.ended_at, records = excluded.records,
  rejected = excluded.rejected, receipt = excluded.receipt, topic_id = excluded.topic_id,
  "offset" = excluded."offset", appended = excluded.appended, updated_at = now()
WHERE newer(excluded.topic_id, excluded."offset", excluded.appended,
            r.topic_id, r."offset", r.appended)
"""

# A message that dies again after a redo is the same dead letter, with its latest reason. Another
# message at its place, since the topic was made anew, is another letter.
_SAME = """(d.key, coalesce(d.value, excluded.value))
  IS NOT DISTINCT FROM (excluded.key, coalesce(excluded.value, d.value))"""
_UPSERT_LETTER = f"""
INSERT INTO dead_letters AS d ("group", record_key, topic, partition, "offset", reason, exception,
                               at, key, value, headers, topic_id, appended)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s::jsonb, %s, %s)
ON CONFLICT ("group", topic, partition, "offset") DO UPDATE SET
  record_key = excluded.record_key, key = excluded.key, value = excluded.value,
  topic_id = CASE WHEN {_SAME} THEN coalesce(excluded.topic_id, d.topic_id)
                  ELSE excluded.topic_id END,
  appended = CASE WHEN {_SAME} THEN coalesce(excluded.appended, d.appended)
                  ELSE excluded.appended END,
  reason = excluded.reason, exception = excluded.exception, at = excluded.at,
  headers = excluded.headers, resolved_at = NULL,
  deaths = CASE WHEN {_SAME} THEN d.deaths ELSE 0 END + 1,
  redriven_at = CASE WHEN {_SAME} THEN d.redriven_at END,
  dismissed_at = CASE WHEN {_SAME} THEN d.dismissed_at END,
  dismissal = CASE WHEN {_SAME} THEN d.dismissal END
WHERE excluded.at > d.at
"""


def _ordered(rows: Mapping[K, V]) -> list[tuple[K, V]]:
    """By key, so that two workers never wait for each other in a circle."""
    return sorted(rows.items(), key=itemgetter(0))


class Eager:
    """Whether to COPY straight into a table in the hope that no key stands there yet.

    That is so in most batches, and takes half the time; a vain attempt costs its time and rows to
    vacuum, so after one so many batches go the sure way, and twice as many after the next.
    """

    def __init__(self) -> None:
        self._skipped = 0
        self._skip = 1

    def copy(
        self,
        connection: psycopg.Connection,
        table: str,
        columns: Iterable[str],
        lines: Iterable[str],
    ) -> bool:
        """True where the rows are in the table now; else nothing is changed. Lines that are made as
        they are asked for are made while PostgreSQL works on those before."""
        if self._skipped > 0:
            self._skipped -= 1
            return False
        try:
            with connection.transaction():  # a savepoint
                copy(connection, table, columns, lines)
        except psycopg.errors.UniqueViolation:
            self._skipped = self._skip
            self._skip = min(self._skip * 2, _MOST_SKIPPED)
            return False
        self._skip = 1
        return True


class Writer:
    def __init__(
        self,
        with_vectors: Collection[str] = (),
        with_scores: Collection[str] = (),
        *,
        marks: bool = True,
    ) -> None:
        """`with_vectors`: the stages whose results come with vectors; `with_scores`: those whose
        results are scores; `marks`: tell the projector what changed."""
        self._with_vectors = with_vectors
        self._with_scores = with_scores
        self._marks = marks
        self._eager_records = Eager()
        self._eager_outcomes = Eager()
        self._platforms = Dimension("dim_platform", {"name": "text"})
        own = {"platform_id": "smallint", "name": "text"}
        self._authors = Dimension("dim_author", own)
        self._authors_as_of: tuple[int, bool] | None = None  # see headrace.stores.authors
        self._communities = Dimension("dim_community", own, {"slug": "text"})
        self._places = Dimension("dim_place", {"name": "text"})
        self._runs = Dimension("dim_run", {"run": "text"})

    def open(self, connection: psycopg.Connection) -> None:
        """Call once a connection, outside a transaction."""
        set_json_loads(orjson.loads, connection)  # a large number goes back as it came
        with connection.transaction():
            connection.execute(_TEMPORARY.encode())

    def forget(self) -> None:
        """For after a rollback."""
        for dimension in (
            self._platforms, self._authors, self._communities, self._places, self._runs
        ):  # fmt: skip
            dimension.forget()
        self._authors_as_of = None

    def resolve(self, connection: psycopg.Connection, batch: Batch) -> None:
        """Make the ids known of every name in the batch."""
        raws = [raw for raw in batch.records.values() if not raw.value.get("deleted")]
        self._platforms.resolve(
            connection, {(raw.value["platform"],) for raw in batch.records.values()}
        )
        self._runs.resolve(connection, {(raw.run,) for raw in batch.records.values() if raw.run})
        for came in batch.graphs.values():
            self._platforms.resolve(
                connection, {(one.graph.platform,) for one in came if one.graph}
            )
        named, communities = set(), set()
        for raw in raws:
            platform = self._platforms[(raw.value["platform"],)]
            if author := raw.value.get("author"):
                named.add((platform, author[:_NAME]))
            if community := _community(raw.value):
                communities.add((platform, *community))
        if named and self._authors_as_of in (None, _UNSURE):
            self._authors.forget()
            self._authors_as_of = authors.seen(connection)
        self._authors.resolve(connection, named)
        self._communities.resolve(connection, communities)
        self._places.resolve(
            connection,
            {
                (mention["name"][:_NAME],)
                for state in batch.outcomes.values()
                for mention in _mentions(state)
                if mention["type"] == "place"
            },
        )

    def write(self, connection: psycopg.Connection, batch: Batch, *, again: bool = False) -> None:
        """Write the batch, resolved before. `again`: not the first of this transaction."""
        if again:
            connection.execute(_EMPTY)
        if batch.records:
            self._hold_authors(connection, batch)
            records = _ordered(batch.records)
            if not self._eager_records.copy(
                connection, "records", RECORD, starmap(self._record, records)
            ):
                copy(connection, "incoming_records", RECORD, starmap(self._record, records))
                connection.execute(_UPSERT_RECORDS.encode())
        nodes: set[str] = set()
        if batch.outcomes:
            stood = self._write_outcomes(connection, batch.outcomes)
            if batch.graphs:
                nodes = graphs.write(connection, batch.graphs, stood, self._platforms)
            if connection.execute("SELECT EXISTS (SELECT FROM redo)").fetchone() == (True,):
                connection.execute(_HASHING, ["off"])
                connection.execute(_DELETE_ANSWERED, _last_places(batch))
                connection.execute(_HASHING, ["on"])
        if batch.redone:
            self._write_redone(connection, batch.redone)
        if self._marks:
            changed = batch.records.keys() | {key for key, _ in batch.outcomes} | nodes
            changed |= {subject for subject, _ in batch.decisions}
            search.mark(connection, changed)
            if communities := [key for key in batch.records if key.startswith("community:")]:
                connection.execute(_MARK_PERSONAS, [communities])
        with connection.cursor() as cursor:
            if batch.decisions:
                rows = [
                    _decision_row(*key, batch.decisions[key]) for key in sorted(batch.decisions)
                ]
                cursor.executemany(_UPSERT_DECISION, rows)
            if batch.receipts:
                cursor.executemany(_UPSERT_RUN, [_run_row(r) for r in batch.receipts.values()])
            if batch.letters:
                cursor.executemany(_UPSERT_LETTER, list(map(_letter_row, batch.letters)))

    def _hold_authors(self, connection: psycopg.Connection, batch: Batch) -> None:
        """Names that were taken out since their ids were learned are put in again."""
        if self._authors_as_of is None:
            return  # none was named yet
        if authors.hold(connection) != self._authors_as_of:
            self._authors_as_of = None
            self.resolve(connection, batch)
            self._authors_as_of = _UNSURE  # should this be rolled back, the next try looks again

    # -- outcomes

    def _write_outcomes(
        self, connection: psycopg.Connection, came: Mapping[tuple[str, str], State]
    ) -> Mapping[tuple[str, str], State]:
        """Returns what stood of them before."""
        stood: Mapping[tuple[str, str], State] = {}
        served: Iterable[State] = came.values()
        ordered = [state for _, state in _ordered(came)]
        if not self._eager_outcomes.copy(connection, "outcomes", OUTCOME, map(_outcome, ordered)):
            copy(connection, "incoming_outcomes", OUTCOME, map(_outcome, ordered))
            inserted = connection.execute(_INSERT_OUTCOMES.encode()).fetchall()
            if len(inserted) < len(came):
                rest = came.keys() - set(inserted)
                served = [came[key] for key in inserted]
                renewed, stood = self._merge_outcomes(connection, [came[key] for key in rest])
                served += renewed
        mentions = [line for state in served for line in self._mention_lines(state)]
        if mentions:
            copy(connection, "entity_mentions", MENTION, mentions)
        vectors = [line for state in served for line in _vector_lines(state)]
        if vectors:
            copy(connection, "incoming_vectors", VECTOR, vectors)
            connection.execute(_UPSERT_VECTORS.encode())
        scored = [state for state in served if state.stage in self._with_scores]
        if scored:
            _write_scores(connection, scored)
        return stood

    def _write_redone(self, connection: psycopg.Connection, redone: Sequence[Redone]) -> None:
        """What this group did again: its order is answered, and what it took is no dead letter."""
        keys = sorted({(one.group, one.key) for one in redone})
        connection.execute(_DELETE_REDONE, [[k[0] for k in keys], [k[1] for k in keys]])
        taken = sorted({(o.group, o.topic, o.partition, o.offset) for o in redone if not o.dead})
        if taken:
            connection.execute(_RESOLVE, [list(column) for column in zip(*taken, strict=True)])

    def _merge_outcomes(
        self, connection: psycopg.Connection, came: Sequence[State]
    ) -> tuple[list[State], Mapping[tuple[str, str], State]]:
        """Merge into rows that stand; returns those whose mentions are now to be written, and what
        stood."""
        standing = {
            (state.record_id, state.stage): state
            for state in map(_stored, connection.execute(_STANDING.encode(), _keys(came)))
        }
        merged, renewed = [], []
        for state in came:
            before = standing[state.record_id, state.stage]
            after = merge(before, state)
            if after is before:
                continue
            merged.append(after)
            if after.served != before.served:
                renewed.append(after)
        if merged:
            copy(connection, "merged_outcomes", OUTCOME, map(_outcome, merged))
            connection.execute(_UPDATE_OUTCOMES.encode())
        if renewed:
            connection.execute(_DELETE_MENTIONS, _keys(renewed))
        with_vectors = [state for state in renewed if state.stage in self._with_vectors]
        if with_vectors:
            connection.execute(_DELETE_VECTORS, _served_roots(with_vectors))
        return renewed, standing

    def _mention_lines(self, state: State) -> Iterator[str]:
        mentions = _mentions(state)
        served = state.served if mentions else None
        if served is None:
            return
        root = served.root
        head = f"{escaped(state.record_id)}\t{state.stage}"
        tail = (
            f"{root.topic_id}:{root.partition}:{root.offset}:{root.at}\t{escaped(served.version)}"
        )
        for mention in mentions:
            kind, name, confidence = mention["type"], mention["name"], mention.get("confidence")
            place: int | str = self._places[(name[:_NAME],)] if kind == "place" else NULL
            yield (
                f"{head}\t{mention['start']}\t{mention['end']}\t{escaped(mention['text'])}"
                f"\t{escaped(name)}\t{escaped(kind)}\t{escaped(mention.get('method'))}"
                f"\t{NULL if confidence is None else confidence}\t{place}\t{tail}"
            )

    # -- records

    def _record(self, record_id: str, raw: Raw) -> str:
        value, place = raw.value, raw.place
        platform = self._platforms[(value["platform"],)]
        run: int | str = self._runs[(raw.run,)] if raw.run else NULL
        head = f"{escaped(record_id)}\t{escaped(value['kind'])}\t{platform}"
        tail = (
            f"{run}\t{raw.topic}\t{place.topic_id}\t{place.partition}\t{place.offset}\t{place.at}"
        )
        if value.get("deleted") is True:
            return f"{head}{_NOTHING}\t{tail}\tt"
        get = value.get
        author, community, metrics = get("author"), _community(value), get("metrics")
        title, text = get("title"), get("text")
        if value["kind"] == "community":
            title, text = title or get("name"), text or get("description")
            metrics = metrics or {name: get(name) for name in _COUNTS if name in value}
        author_id: int | str = self._authors[(platform, author[:_NAME])] if author else NULL
        community_id: int | str = self._communities[(platform, community[0])] if community else NULL
        return (
            f"{head}\t{escaped(get('native_id'))}\t{escaped(text)}\t{escaped(title)}\t{author_id}"
            f"\t{community_id}\t{escaped(get('url'))}\t{get('created_at') or NULL}"
            f"\t{escaped(get('lang'))}"
            f"\t{NULL if metrics is None else escaped(orjson.dumps(metrics).decode())}"
            f"\t{escaped(raw.text.decode())}\t{tail}\tf"
        )


_NOTHING = f"\t{NULL}" * 10  # native_id to value
_COUNTS = ("posts", "authors", "comments")


def _community(value: Mapping[str, Any]) -> tuple[str, str] | None:
    """Name and slug of the community that a record is of, or is."""
    name = value.get("name") if value["kind"] == "community" else value.get("community")
    if not name:
        return None
    own = value.get("slug") if value["kind"] == "community" else None
    return name[:_NAME], (own or slug(name) or name)[:_NAME]


def _mentions(state: State) -> Sequence[Mapping[str, Any]]:
    """The mentions in what is served of a record."""
    if state.outcome == "ok":
        result = state.result
    else:
        result = state.earlier.result if state.earlier else None
    found = result.get("entities") if result else None
    return found if isinstance(found, list) else ()


def _vector_lines(state: State) -> Iterator[str]:
    """The vector that came with what is served; one that is stored already does not come again."""
    served = state.served
    if served is None or served.vector is None:
        return
    space, dimensions, numbers = served.vector
    root = served.root
    yield (
        f"{escaped(state.record_id)}\t{escaped(space)}\t{state.stage}\t{dimensions}"
        f"\t\\\\x{numbers.hex()}\t{escaped(served.version)}\t{served.rank}"
        f"\t{root.topic_id}\t{root.partition}\t{root.offset}\t{root.at}"
    )


def _write_scores(connection: psycopg.Connection, states: Iterable[State]) -> None:
    """What is served of each record's scores; none where nothing is."""
    ordered = sorted(states, key=lambda state: state.record_id)
    rows = [
        (
            state.record_id,
            state.stage,
            orjson.dumps(served.result).decode(),
            served.version,
            served.rank,
            *served.root,
        )
        for state in ordered
        if (served := state.served) is not None
    ]
    connection.execute(_HOLD_WEIGHTS.encode())
    if rows:
        connection.execute(_UPSERT_SCORES, [list(column) for column in zip(*rows, strict=True)])
    gone = [state.record_id for state in ordered if state.served is None]
    if gone:
        connection.execute(_DELETE_SCORES, [gone])


def _served_roots(states: Iterable[State]) -> list[list[Any]]:
    """Keys in order, and topic and offset of the revision served; None where none is."""
    ordered = sorted(states, key=lambda state: (state.record_id, state.stage))
    roots = [state.served.root if state.served else None for state in ordered]
    return [
        [state.record_id for state in ordered],
        [state.stage for state in ordered],
        [root.topic_id if root else None for root in roots],
        [root.offset if root else None for root in roots],
    ]


def _last_places(batch: Batch) -> list[list[Any]]:
    """Keys in order, and where the last outcome of each stands."""
    ordered = sorted(batch.outcomes)
    places = [batch.last.get(key) or batch.outcomes[key].out for key in ordered]
    return [
        [record_id for record_id, _ in ordered],
        [stage for _, stage in ordered],
        [place.topic_id for place in places],
        [str(place.partition) for place in places],
        [place.offset for place in places],
    ]


def _keys(states: Iterable[State]) -> list[list[str]]:
    ordered = sorted((state.record_id, state.stage) for state in states)
    return [[key[0] for key in ordered], [key[1] for key in ordered]]


# -- State ↔ row

_NO_RARE = "\t".join([NULL] * 3)


def _outcome(state: State) -> str:
    root, out, parts, earlier, floor = (
        state.root, state.out, state.parts, state.earlier, state.floor
    )  # fmt: skip
    topic, partition, offset = state.input
    result = NULL if state.result is None else _json(state.result)
    rare = _NO_RARE
    if parts is not None or earlier is not None or floor is not None:
        kept = (parts, _earlier(earlier), floor and list(floor))
        rare = "\t".join(NULL if value is None else _json(value) for value in kept)
    return (
        f"{escaped(state.record_id)}\t{state.stage}\t{state.outcome}\t{escaped(state.reason)}"
        f"\t{result}\t{escaped(state.version)}\t{state.rank}\t{state.input_rank}"
        f"\t{root.topic_id}\t{root.partition}\t{root.offset}\t{root.at}"
        f"\t{topic}\t{partition}\t{offset}"
        f"\t{out.topic_id}\t{out.partition}\t{out.offset}\t{out.at}\t{escaped(state.at)}\t{rare}"
    )


def _stored(row: Sequence[Any]) -> State:
    """A row of outcomes, columns as in OUTCOME."""
    (
        record_id, stage, outcome, reason, result, version, rank, input_rank, root_topic_id,
        root_partition, root_offset, root_appended, input_topic, input_partition, input_offset,
        out_topic_id, out_partition, out_offset, out_appended, at, parts, earlier, floor,
    ) = row  # fmt: skip
    return State(
        record_id,
        stage,
        outcome,
        reason,
        result,
        version,
        rank,
        input_rank,
        Place(root_topic_id, root_partition, root_offset, root_appended),
        (input_topic, input_partition, input_offset),
        Place(out_topic_id, out_partition, out_offset, out_appended),
        _time(at),
        parts,
        _served(earlier),
        Place(*floor) if floor else None,
    )


def _earlier(served: Served | None) -> dict[str, Any] | None:
    """As column outcomes.earlier keeps it; the views read it."""
    if served is None:
        return None
    topic_id, partition, offset, appended = served.root
    return {
        "result": served.result,
        "version": served.version,
        "rank": served.rank,
        "input_rank": served.input_rank,
        "topic_id": topic_id,
        "partition": partition,
        "offset": offset,
        "appended": appended,
        "out": list(served.out),
        "at": served.at,
    }


def _served(kept: Mapping[str, Any] | None) -> Served | None:
    if kept is None:
        return None
    root = Place(kept["topic_id"], kept["partition"], kept["offset"], kept["appended"])
    out = Place(*kept["out"])
    return Served(
        kept["result"], kept["version"], kept["rank"], kept["input_rank"], root, out, kept["at"]
    )


def _json(value: Any) -> str:
    return escaped(orjson.dumps(value).decode())


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _run_row(receipt: Receipt) -> tuple[Any, ...]:
    value, place = receipt
    columns = ("state", "platform", "kind", "started_at", "ended_at", "records", "rejected")
    return (
        value["run"],
        *(value.get(column) for column in columns),
        orjson.dumps(value).decode(),
        place.topic_id,
        place.offset,
        place.at,
    )


def _decision_row(subject: str, action: str, decision: Decision) -> tuple[Any, ...]:
    value, at, by, place = decision
    kept = None if value is None else orjson.dumps(value).decode()
    return (subject, action, kept, at, by, subject, place.topic_id, place.offset, place.at)


def _letter_row(letter: Letter) -> tuple[Any, ...]:
    key = (
        None if letter.key is None else letter.key.decode(errors="replace").replace("\0", "\ufffd")
    )
    return (
        letter.group,
        None if key is None else key[:_NAME],
        letter.topic.replace("\0", "\ufffd"),
        letter.partition,
        letter.offset,
        letter.reason,
        letter.error,
        datetime.fromtimestamp(min(max(letter.at, 0), _LAST_MS) / 1000, UTC),
        letter.key,
        letter.value,
        orjson.dumps(letter.headers).decode(),
        letter.stood[0] if letter.stood else None,
        letter.stood[1] if letter.stood else None,
    )
