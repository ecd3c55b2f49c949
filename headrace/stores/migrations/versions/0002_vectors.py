"""Vectors: one row a record and space, little-endian float32.

They are bytes, not pgvector's type: no extension has to be made by somebody who may, every bit
stays as the model gave it, a row is read straight into an array, and each space has a dimension
count of its own. Searching by meaning is the search server's work.
"""

from alembic import op

from headrace.stores.migrations import comments

revision = "0002"
down_revision = "0001"

VECTORS = """
CREATE TABLE vectors (
  record_id text COLLATE "C" NOT NULL,
  space text COLLATE "C" NOT NULL,
  stage text COLLATE "C" NOT NULL,
  dimensions integer NOT NULL CHECK (dimensions > 0),
  vector bytea NOT NULL CHECK (length(vector) = 4 * dimensions),
  version text NOT NULL,
  rank integer NOT NULL,
  root_topic_id text NOT NULL,
  root_partition integer NOT NULL,
  root_offset bigint NOT NULL,
  root_appended bigint NOT NULL,
  stored_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (record_id, space)
);
ALTER TABLE vectors ALTER COLUMN vector SET STORAGE EXTERNAL;
CREATE INDEX vectors_space ON vectors (space, record_id);
"""

COMMENTS = {
    "vectors": "One row a record and space: the vector of what is served of the record",
    "vectors.space": "Model and dimension count; vectors of different spaces cannot be compared",
    "vectors.stage": "The stage that made it",
    "vectors.vector": "Little-endian float32, as many as dimensions says",
    "vectors.version": "Version of the stage: code and model",
    "vectors.root_topic_id": "Revision of the raw record: incarnation of its topic ...",
    "vectors.root_partition": "... partition ...",
    "vectors.root_offset": "... offset ...",
    "vectors.root_appended": "... and append time, milliseconds since 1970",
    "vectors.stored_at": "When the vector came here",
}


def upgrade() -> None:
    execute = op.get_bind().exec_driver_sql
    execute(VECTORS)
    comments.write(execute, COMMENTS)


def downgrade() -> None:
    op.get_bind().exec_driver_sql("DROP TABLE vectors")
