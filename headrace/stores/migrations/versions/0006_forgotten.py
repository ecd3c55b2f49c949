"""What was forgotten: the audit, without content."""

from alembic import op

from headrace.stores.migrations import comments

revision = "0006"
down_revision = "0005"

TABLES = """
CREATE TABLE forget_orders (
  id text PRIMARY KEY,
  made_at timestamptz NOT NULL DEFAULT now(),
  made_by text NOT NULL,
  selection jsonb NOT NULL,
  subject jsonb,
  state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'forgotten', 'purged')),
  purge boolean NOT NULL DEFAULT false,
  progress jsonb NOT NULL DEFAULT '{}',
  counts jsonb NOT NULL DEFAULT '{}',
  finished_at timestamptz,
  purged_at timestamptz
);

CREATE TABLE forget_records (
  order_id text NOT NULL,
  record_id text COLLATE "C" NOT NULL,
  kind text NOT NULL,
  platform text NOT NULL,
  topic text NOT NULL,
  partition integer,
  "offset" bigint,
  published boolean NOT NULL DEFAULT false,
  PRIMARY KEY (order_id, record_id)
);

CREATE TABLE forget_configs (
  topic text NOT NULL,
  key text NOT NULL,
  before text,
  set_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (topic, key)
);

CREATE SEQUENCE author_changes;
"""

COMMENTS: dict[str, str] = {
    "forget_orders": "Orders of `headrace forget`: the audit; nothing of the content stands here",
    "forget_orders.id": "Also the run of its deletions",
    "forget_orders.made_by": "User of the operating system",
    "forget_orders.selection": "Kind of selection; of a name its hash",
    "forget_orders.subject": "What is needed to go on; empty once nothing is open",
    "forget_orders.progress": "Where the readers must come to, and which steps are done",
    "forget_orders.counts": "What was found, by place",
    "forget_records": "The records of orders that are not purged yet",
    "forget_records.offset": "Where the deletion stands; empty: not published yet",
    "forget_records.published": "By this order; else it was deleted before",
    "forget_configs": "Settings of topics that a purge has changed and not yet set back",
    "forget_configs.before": "The topic's own setting before; empty: it had none",
}


def upgrade() -> None:
    execute = op.get_bind().exec_driver_sql
    execute(TABLES)
    comments.write(execute, COMMENTS)
