"""Windows of scheduled groups: what was opened when, up to where, and how it ended.

A due time has at most one window, and a unit (a group, or one platform of it) at most one that is
open and one that somebody has asked for. So whoever writes here twice changes nothing.
"""

from alembic import op

from headrace.stores.migrations import comments

revision = "0004"
down_revision = "0003"

TABLES = """
CREATE TABLE windows (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  "group" text NOT NULL,
  platform text,
  due timestamptz NOT NULL,
  state text NOT NULL CHECK (state IN ('asked', 'open', 'done', 'skipped')),
  reason text NOT NULL,
  asked_at timestamptz NOT NULL DEFAULT now(),
  opened_at timestamptz,
  ends jsonb NOT NULL DEFAULT '{}',
  waiting bigint NOT NULL DEFAULT 0,
  done_at timestamptz,
  UNIQUE NULLS NOT DISTINCT ("group", platform, due)
);
CREATE UNIQUE INDEX windows_one_at_a_time ON windows ("group", platform, state)
  NULLS NOT DISTINCT WHERE state IN ('asked', 'open');

CREATE TABLE schedules (
  "group" text NOT NULL,
  platform text,
  schedule text NOT NULL,
  since timestamptz NOT NULL,
  UNIQUE NULLS NOT DISTINCT ("group", platform)
);
"""

COMMENTS: dict[str, str] = {
    "windows": "When scheduled groups and jobs work, one row a window",
    "windows.platform": "Of a group that reads one topic a platform; empty: all that it reads",
    "windows.due": "The moment that the schedule meant",
    "windows.state": "asked: to be opened as soon as may be; skipped: there was too little to do",
    "windows.reason": "Why it was opened, or not",
    "windows.opened_at": "When it was opened; later than due where nobody was there in time",
    "windows.ends": "What has to be passed: topic, partition, offset",
    "windows.waiting": "How much waited when it was opened",
    "schedules": "Since when a schedule counts: what was due before is not made up",
}


def upgrade() -> None:
    execute = op.get_bind().exec_driver_sql
    execute(TABLES)
    comments.write(execute, COMMENTS)
