"""Where the content of a record, or its author's name, may stand: the one list of it.

A new table or topic is decided here. Tests hold the list against the database and topics.yaml: what
nobody has decided fails them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from headrace import decisions
from headrace.stream.topology import Topic, Topology


@dataclass(frozen=True, slots=True)
class Table:
    """Columns that can hold text, told apart."""

    content: frozenset[str]
    plain: frozenset[str]  # ids, names of ours, versions


def _table(content: str, plain: str) -> Table:
    return Table(frozenset(content.split()), frozenset(plain.split()))


# What forgetting empties or takes away; headrace.forget.tables does it, headrace.snapshots.removal
# does the same to the files of a snapshot.
TABLES = {
    "records": _table(
        "native_id text title url lang metrics value", "id kind topic topic_id"
    ),
    "outcomes": _table(
        "reason result parts earlier",
        "record_id stage outcome version root_topic_id input_topic out_topic_id floor",
    ),
    "entity_mentions": _table(
        "text name type method", "record_id stage revision version"
    ),
    "vectors": _table("vector", "record_id space stage version root_topic_id"),
    "nodes": _table("name properties", "id kind root_id stage version root_topic_id"),
    "edges": _table(
        "properties", "kind source target root_id stage version root_topic_id"
    ),
    "decisions": _table("value by", "subject action record_id topic_id"),
    "scores": _table("scores", "record_id stage version root_topic_id"),
    "dead_letters": _table(
        "record_key reason exception key value headers dismissal", "group topic topic_id"
    ),
    "llm_calls": _table(
        "error raw",
        "stage provider model prompt transport reason repeats session worker state request_id"
        " records",
    ),
    "llm_answers": _table("answer", "key stage record_id part prompt model"),
    "llm_claims": _table("", "key stage record_id owner"),
    "llm_sets": _table("keep reason", "stage record_id"),
    "llm_requests": _table("body error", "stage provider model state task"),
    "redo": _table("reason", "group record_id state parts"),
    "search_errors": _table("reason", "record_id collection"),
    "dim_author": _table("name", ""),
    "forget_orders": _table("subject", "id made_by selection state progress counts"),
}  # fmt: skip

# Tables without any, and why.
PLAIN_TABLES = {
    "about": "what the views were made from",
    "alembic_version": "the migration's number",
    "dim_community": "names of communities, which outlive a post",
    "dim_place": "names of places",
    "dim_platform": "names of platforms",
    "dim_run": "ids of runs",
    "forget_configs": "settings of topics",
    "forget_records": "ids",
    "gate_states": "names and values of gates",
    "job_current": "which run of a job counts",
    "job_runs": "watermarks, and why a run failed",
    "metrics": "figures of platforms; names of entities, not of authors",
    "llm_batches": "ids and counts of batches, and what the provider says of them",
    "llm_request_items": "ids",
    "llm_providers": "what a provider's servers said of being down",
    "llm_refusals": "names of groups, sums of money, what an endpoint says of settings",
    "llm_spent": "days, sessions and sums of money",
    "llm_turns": "hashes, and names of groups",
    "offsets": "positions",
    "redo_orders": "commands that queued work",
    "runs": "paths and counts",
    "schedules": "schedules of groups",
    "score_dimensions": "names and weights of dimensions",
    "search_collections": "names of collections",
    "search_dirty": "ids",
    "search_written": "ids",
    "stage_topics": "names of topics",
    "stages": "descriptions of stages",
    "windows": "when groups run, and why",
}

# Topics that no group's structure tells of: they hold counts, positions and paths.
PLAIN_TOPICS = {"alerts", "runs", "status", "status.table"}


def content_topics(topology: Topology) -> Iterator[Topic]:
    """Every topic on which content of records may stand: raw records, what stages make of them,
    what people decided about that, dead letters, work to be done again."""
    groups = topology.groups.values()
    theirs = {topic for group in groups for topic in (*group.outputs, group.redo, group.dlt)}
    for topic in topology.topics.values():
        if topic.is_raw or topic in theirs or topic.short == decisions.TOPIC:
            yield topic
