"""Jobs: their runs, watermarks and results; and how the quality gates stood."""

from alembic import op

from headrace.stores.migrations import comments

revision = "0007"
down_revision = "0006"

TABLES = """
CREATE TABLE job_runs (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  job text COLLATE "C" NOT NULL,
  state text NOT NULL CHECK (state IN ('running', 'done', 'failed')),
  version text NOT NULL,
  started timestamptz NOT NULL DEFAULT clock_timestamp(),
  finished timestamptz,
  taken_at timestamptz,
  watermark jsonb,
  reason text
);
CREATE INDEX job_runs_job ON job_runs (job, started);

CREATE TABLE job_current (
  job text COLLATE "C" PRIMARY KEY,
  run uuid
);

CREATE TABLE metrics (
  run uuid NOT NULL,
  taken_at timestamptz NOT NULL,
  platform text COLLATE "C",
  records bigint NOT NULL,
  posts bigint NOT NULL,
  comments bigint NOT NULL,
  authors bigint NOT NULL,
  communities bigint NOT NULL,
  engagement numeric,
  sentiment numeric,
  positive bigint NOT NULL,
  neutral bigint NOT NULL,
  negative bigint NOT NULL,
  processing_level text NOT NULL,
  stages jsonb NOT NULL,
  languages jsonb NOT NULL,
  top_entities jsonb NOT NULL,
  by_day jsonb NOT NULL,
  by_week jsonb NOT NULL,
  across jsonb,
  first_at timestamptz,
  last_at timestamptz,
  last_updated timestamptz,
  UNIQUE NULLS NOT DISTINCT (run, platform)
);

CREATE TABLE gate_states (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  gate text COLLATE "C" NOT NULL,
  platform text COLLATE "C",
  state text NOT NULL CHECK (state IN ('pass', 'fail', 'unknown')),
  value double precision,
  threshold double precision,
  since timestamptz NOT NULL DEFAULT now(),
  looked_at timestamptz NOT NULL DEFAULT now(),
  ended_at timestamptz
);
CREATE UNIQUE INDEX gate_states_open ON gate_states (gate, platform) NULLS NOT DISTINCT
  WHERE ended_at IS NULL;
"""

COMMENTS: dict[str, str] = {
    "job_runs": "Runs of jobs, one row each",
    "job_runs.state": "running (or its process is gone, which the next run notes), done, failed",
    "job_runs.version": "Version of the job: code and model",
    "job_runs.taken_at": "When the snapshot that it works on was taken",
    "job_runs.watermark": (
        "The stores' offsets in that snapshot: {group: {topic: {incarnation: {partition: next}}}}"
    ),
    "job_runs.reason": "Why it failed",
    "job_current": "Per job the run whose result is to be read: the newest watermark",
    "metrics": "Figures, a row a platform and run of the job metrics; all of them are kept",
    "metrics.run": "Of job_runs",
    "metrics.taken_at": "When the snapshot was taken that the figures are true of",
    "metrics.platform": "Empty: all platforms together",
    "metrics.authors": "Accounts; over all platforms those of each are added up",
    "metrics.communities": "Over all platforms those of each are added up",
    "metrics.engagement": "Sum of likes, comments, shares, score and reactions",
    "metrics.sentiment": "Mean score, from -1 to 1",
    "metrics.processing_level": "early, fast or full; of all platforms the lowest",
    "metrics.stages": "Per stage records = ok + dropped + dead + pending, and its coverage",
    "metrics.languages": "Records by the language that stage text found; the most frequent",
    "metrics.top_entities": "The most mentioned, with mentions, records and mean sentiment",
    "metrics.by_day": "Records by the day (UTC) of their creation; the latest days that have any",
    "metrics.by_week": "Records by the Monday (UTC) of their week; the latest that have any",
    "metrics.across": (
        "Of all platforms: shares, and authors' names, entities and communities on several"
    ),
    "metrics.last_updated": "When a record or outcome behind the figures last came",
    "gate_states": "How each quality gate stood, a row a change",
    "gate_states.platform": "Empty: the gate is about the whole project",
    "gate_states.since": "When it was first seen in this state",
    "gate_states.looked_at": "When it was last seen in it, with the value of then",
    "gate_states.ended_at": "When it was seen in another state; empty: it is in this one",
}


def upgrade() -> None:
    execute = op.get_bind().exec_driver_sql
    execute(TABLES)
    comments.write(execute, COMMENTS)


def downgrade() -> None:
    op.get_bind().exec_driver_sql("DROP TABLE job_runs, job_current, metrics, gate_states")
