"""Windows of scheduled groups."""

from alembic import op

revision = "0004"
down_revision = "0003"

TABLES = """
"""

COMMENTS: dict[str, str] = {}


def upgrade() -> None:
    execute = op.get_bind().exec_driver_sql
    if TABLES.strip():
        execute(TABLES)
    for name, text in COMMENTS.items():
        quoted = text.replace("'", "''")
        execute(f"COMMENT ON {'COLUMN' if '.' in name else 'TABLE'} {name} IS '{quoted}'")
