"""Dead letters that somebody has put aside: nothing will ever read them, and nobody waits."""

from alembic import op

from headrace.stores.migrations import comments

revision = "0008"
down_revision = "0007"

TABLES = """
ALTER TABLE dead_letters
  ADD COLUMN dismissed_at timestamptz,
  ADD COLUMN dismissal text;
"""

COMMENTS: dict[str, str] = {
    "dead_letters.dismissed_at": "When it was dismissed; a redrive takes that back",
    "dead_letters.dismissal": "Why, in the words of who dismissed it",
}


def upgrade() -> None:
    execute = op.get_bind().exec_driver_sql
    execute(TABLES)
    comments.write(execute, COMMENTS)


def downgrade() -> None:
    raise NotImplementedError("drop the schema instead")
