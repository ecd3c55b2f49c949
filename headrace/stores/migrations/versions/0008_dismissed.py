"""Dead letters that somebody has put aside: nothing will ever read them, and nobody waits."""

from alembic import op

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
    for name, text in COMMENTS.items():
        execute(f"COMMENT ON COLUMN {name} IS '{text}'")


def downgrade() -> None:
    raise NotImplementedError("drop the schema instead")
