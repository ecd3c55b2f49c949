"""What search needs: marks of changed records, versions to compare, collections, errors.

Each row of records and outcomes carries a number from one sequence that grows with each change of
it; the sum over a record's rows is its row_version. So no row is written for the version's sake.
"""

from alembic import op

from headrace.stores.migrations import comments

revision = "0003"
down_revision = "0002"

VERSIONS = """
CREATE SEQUENCE record_changes;
ALTER TABLE records ADD COLUMN row_version bigint NOT NULL DEFAULT 0;
ALTER TABLE outcomes ADD COLUMN row_version bigint NOT NULL DEFAULT 0;
UPDATE records SET row_version = nextval('record_changes');
UPDATE outcomes SET row_version = nextval('record_changes');
ALTER TABLE records ALTER COLUMN row_version SET DEFAULT nextval('record_changes');
ALTER TABLE outcomes ALTER COLUMN row_version SET DEFAULT nextval('record_changes');
"""

# A queue: rows come and go all the time, so it is cleaned by their number, not by their share.
MARKS = """
CREATE TABLE search_dirty (
  id bigint GENERATED ALWAYS AS IDENTITY,
  record_id text COLLATE "C" NOT NULL,
  shard smallint NOT NULL GENERATED ALWAYS AS (hashtext(record_id) & 7) STORED,
  rebuild boolean NOT NULL DEFAULT false,
  marked_at timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);
CREATE INDEX search_dirty_next ON search_dirty (shard, rebuild, id);

CREATE TABLE search_written (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  record_ids text[] NOT NULL,
  written_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX search_written_at ON search_written (written_at);

CREATE TABLE search_collections (
  name text PRIMARY KEY,
  alias text NOT NULL,
  state text NOT NULL CHECK (state IN ('serving', 'building')),
  space text,
  made_at timestamptz NOT NULL DEFAULT now(),
  UNIQUE (alias, state)
);

CREATE TABLE search_errors (
  record_id text COLLATE "C" PRIMARY KEY,
  collection text NOT NULL,
  reason text NOT NULL,
  at timestamptz NOT NULL DEFAULT now()
);
"""

COMMENTS = {
    "records.row_version": "Grows with each change of the row",
    "outcomes.row_version": "Grows with each change of the row",
    "search_dirty": "Records that changed since search has seen them; rows are only ever added",
    "search_dirty.shard": "Of its record; one projector at a time works on a shard",
    "search_dirty.rebuild": "For the collections that are being built; the others have it",
    "search_written": "What went to Weaviate lately, to be compared once more",
    "search_collections": "Weaviate's collections behind each alias",
    "search_collections.space": "Space of its vectors; empty: it has none",
    "search_errors": "Records that Weaviate did not take, and why",
}


def upgrade() -> None:
    execute = op.get_bind().exec_driver_sql
    execute(VERSIONS)
    execute(MARKS)
    comments.write(execute, COMMENTS)


def downgrade() -> None:
    raise NotImplementedError("search is projected anew; drop the schema instead")
