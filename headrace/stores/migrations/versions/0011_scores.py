"""Scores by dimension, and what they come to by the weights in force.

A dimension that a record has no score in counts as 5.0, the middle of the scale: function
`weighted_score` is the only place that says so.
"""

from alembic import op

from headrace.stores.migrations import comments

revision = "0011"
down_revision = "0010"

TABLES = """
CREATE TABLE score_dimensions (
  name text PRIMARY KEY,
  description text NOT NULL,
  weight double precision NOT NULL CHECK (weight >= 0),
  place integer NOT NULL,
  since timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE scores (
  record_id text COLLATE "C" PRIMARY KEY,
  stage text NOT NULL,
  scores jsonb NOT NULL,
  weighted double precision,
  version text NOT NULL,
  rank integer NOT NULL,
  root_topic_id text NOT NULL,
  root_partition integer NOT NULL,
  root_offset bigint NOT NULL,
  root_appended bigint NOT NULL,
  stored_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX scores_weighted ON scores (weighted DESC NULLS LAST, record_id);
CREATE FUNCTION weighted_score(scores jsonb) RETURNS double precision
LANGUAGE sql STABLE BEGIN ATOMIC
  SELECT sum(d.weight * coalesce((scores ->> d.name)::double precision, 5.0))
         / nullif(sum(d.weight), 0)
  FROM score_dimensions d;
END;
ALTER TABLE redo ADD COLUMN parts text;
"""

COMMENTS = {
    "score_dimensions": "Dimensions and weights in force; `headrace scores recompute` sets them",
    "score_dimensions.place": "Their order, for people",
    "scores": "What is served of each record's scores",
    "scores.scores": "Dimension: 0 to 10",
    "scores.weighted": "weighted_score(scores) by the weights in force",
    "scores.version": "Version of the stage and its model",
    "redo.parts": "Names of the parts that alone are to be done again; none: the whole",
}


def upgrade() -> None:
    execute = op.get_bind().exec_driver_sql
    execute(TABLES)
    comments.write(execute, COMMENTS)


def downgrade() -> None:
    raise NotImplementedError("drop the schema instead")
