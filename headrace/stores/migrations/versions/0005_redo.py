"""What is queued to be done again and by which order; what became of a dead letter since.

A row of redo is noted in state `sending` before its message is produced, and is `queued` once the
broker has it; an outcome made from then on removes it in either state. So a command that was killed
may be started again: what stands as `sending` is produced once more.
"""

from alembic import op

from headrace.stores.migrations import comments

revision = "0005"
down_revision = "0004"

# Rows come and go by the million: cleaned by their number, not by their share.
TABLES = """
CREATE TABLE redo_orders (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  "group" text NOT NULL,
  kind text NOT NULL,
  reason text NOT NULL,
  ends jsonb NOT NULL,
  queued bigint NOT NULL DEFAULT 0,
  begun_at timestamptz NOT NULL DEFAULT now(),
  ended_at timestamptz
);
ALTER TABLE redo
  ADD COLUMN order_id bigint,
  ADD COLUMN letter bigint,
  ADD COLUMN state text NOT NULL DEFAULT 'queued' CHECK (state IN ('sending', 'queued'));
ALTER TABLE redo SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);
CREATE INDEX redo_sending ON redo ("group", record_id) WHERE state = 'sending';
CREATE INDEX redo_letter ON redo (letter) WHERE letter IS NOT NULL;

ALTER TABLE dead_letters
  ADD COLUMN topic_id text,
  ADD COLUMN appended bigint,
  ADD COLUMN deaths integer NOT NULL DEFAULT 1,
  ADD COLUMN redriven_at timestamptz,
  ADD COLUMN resolved_at timestamptz;
CREATE INDEX dead_letters_group ON dead_letters ("group", record_key);
"""

COMMENTS: dict[str, str] = {
    "redo_orders": "Commands that queued work to be done again",
    "redo_orders.kind": "dead (redriven dead letters), missing, upgrade, or who asked",
    "redo_orders.ends": (
        "Where the group's outcomes ended then, by topic incarnation and partition: what stands"
        " before is no answer to this order"
    ),
    "redo_orders.queued": "Records that it has put on the redo topic",
    "redo.order_id": "The order that queued it",
    "redo.letter": "The dead letter that is redriven, if it is one",
    "redo.state": "sending: noted, perhaps not produced; queued: it stands on the redo topic",
    "dead_letters.topic_id": "Incarnation of that topic, in letters of stores",
    "dead_letters.appended": "The original message's time, milliseconds since 1970; of stores",
    "dead_letters.deaths": "How often the message has died",
    "dead_letters.redriven_at": "When it was last put on the redo topic",
    "dead_letters.resolved_at": "When a store took it after all; view letters tells every state",
}


def upgrade() -> None:
    execute = op.get_bind().exec_driver_sql
    execute(TABLES)
    comments.write(execute, COMMENTS)


def downgrade() -> None:
    raise NotImplementedError("drop the schema instead")
