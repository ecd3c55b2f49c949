"""Which tables a snapshot holds. Every table of the schema stands in exactly one of the two."""

from __future__ import annotations

from typing import NamedTuple


class Content(NamedTuple):
    """Rows that hold what a record says.

    record     column with the record's id
    tombstone  column and value of a row without content: it stays when the record is forgotten,
               since its deletion does not come again; COPY and SQL write the value alike
    of_node    the column may hold the id of a node that was made of the record
    stays      of a record that is published anew, since it does not come again with it
    """

    record: str
    tombstone: tuple[str, str] | None = None
    of_node: bool = False
    stays: bool = False


# Copied, and replaced by a restore.
INCLUDED: dict[str, Content | None] = {
    "dim_platform": None,
    "dim_author": None,  # names: see headrace.snapshots.removal
    "dim_community": None,
    "dim_place": None,
    "dim_run": None,
    "records": Content("id", ("deleted", "t")),
    "outcomes": Content("record_id", ("outcome", "deleted")),
    "entity_mentions": Content("record_id"),
    "vectors": Content("record_id", of_node=True),
    "nodes": Content("root_id"),
    "edges": Content("root_id"),
    "decisions": Content("record_id", stays=True),
    "scores": Content("record_id"),
    "score_dimensions": None,  # the weights that the scores were reckoned with
    "runs": None,
    "dead_letters": Content("record_key"),
    "offsets": None,
    "job_runs": None,
    "job_current": None,
    "metrics": None,
    "gate_states": None,
}

# Neither copied nor touched by a restore, and why.
LEFT_OUT: dict[str, str] = {
    "about": "what the views were made from",
    "alembic_version": "the manifest says it; a restore brings rows to the schema that is there",
    "stages": "topics.yaml says it",
    "stage_topics": "topics.yaml says it",
    "windows": "of stages, which do not go back: their offsets are Kafka's",
    "schedules": "as windows",
    "redo": "what stands on Kafka's redo topics, which do not go back",
    "redo_orders": "as redo",
    "llm_answers": "what is paid for is never taken back",
    "llm_calls": "as llm_answers: the money is spent",
    "llm_claims": "what is being asked now",
    "llm_batches": "what a provider is being asked",
    "llm_requests": "as llm_batches",
    "llm_request_items": "as llm_batches",
    "llm_sets": "as llm_answers: the sets that they are of",
    "llm_spent": "as llm_calls",
    "llm_providers": "how a provider is doing now",
    "llm_turns": "who waits for it now",
    "llm_refusals": "why groups wait now",
    "forget_orders": "what was forgotten stays forgotten",
    "forget_records": "what was forgotten stays forgotten: a restore heeds it",
    "forget_configs": "what is to be set back on topics",
    "search_dirty": "a restore marks every record",
    "search_written": "search is projected anew",
    "search_errors": "search is projected anew",
    "search_collections": "what Weaviate has, which does not go back",
}
