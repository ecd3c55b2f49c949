"""Which tables a snapshot holds. Every table of the schema stands in exactly one of the two."""

from __future__ import annotations

# Copied, and replaced by a restore. The value is the column that names the record whose content
# the row holds: `forget` takes such rows out of snapshots too.
INCLUDED: dict[str, str | None] = {
    "dim_platform": None,
    "dim_author": None,  # names: see headrace.snapshots.removal
    "dim_community": None,
    "dim_place": None,
    "dim_run": None,
    "records": "id",
    "outcomes": "record_id",
    "entity_mentions": "record_id",
    "vectors": "record_id",
    "runs": None,
    "dead_letters": "record_key",
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
    "forgotten": "what was forgotten stays forgotten",
    "search_dirty": "a restore marks every record",
    "search_written": "search is projected anew",
    "search_errors": "search is projected anew",
    "search_collections": "what Weaviate has, which does not go back",
}
