"""Nodes, edges, and what people decided about them.

Kinds are data: a persona, a community and whatever later stages find are rows of the same tables.
A row that is served no longer stays as history, `superseded_at` says since when; a deletion of its
record takes it away.
"""

from alembic import op

from headrace.stores.migrations import comments

revision = "0010"
down_revision = "0009"

# The one place in SQL that knows how a persona is named; headrace.graph says it in Python.
FUNCTIONS = r"""
CREATE FUNCTION record_of(node text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN
  CASE WHEN starts_with(node, 'persona:')
       THEN 'community:' || regexp_replace(substr(node, 9), ':?[^:]*$', '')
       ELSE node END;
COMMENT ON FUNCTION record_of IS 'The record that a node was made of, by the node''s id';
"""

TABLES = """
CREATE TABLE nodes (
  id text COLLATE "C" PRIMARY KEY,
  kind text NOT NULL,
  platform_id smallint,
  name text,
  properties jsonb NOT NULL DEFAULT '{}',
  root_id text COLLATE "C" NOT NULL,
  stage text COLLATE "C" NOT NULL,
  version text NOT NULL,
  rank integer NOT NULL,
  root_topic_id text NOT NULL,
  root_partition integer NOT NULL,
  root_offset bigint NOT NULL,
  root_appended bigint NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  stored_at timestamptz NOT NULL DEFAULT now(),
  superseded_at timestamptz,
  row_version bigint NOT NULL DEFAULT nextval('record_changes')
);
CREATE INDEX nodes_root ON nodes (root_id, stage);
CREATE INDEX nodes_kind ON nodes (kind, id);

CREATE TABLE edges (
  id uuid PRIMARY KEY,
  kind text NOT NULL,
  source text COLLATE "C" NOT NULL,
  target text COLLATE "C" NOT NULL,
  properties jsonb NOT NULL DEFAULT '{}',
  root_id text COLLATE "C" NOT NULL,
  stage text COLLATE "C" NOT NULL,
  version text NOT NULL,
  rank integer NOT NULL,
  root_topic_id text NOT NULL,
  root_partition integer NOT NULL,
  root_offset bigint NOT NULL,
  root_appended bigint NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  stored_at timestamptz NOT NULL DEFAULT now(),
  superseded_at timestamptz
);
CREATE INDEX edges_root ON edges (root_id, stage);
CREATE INDEX edges_source ON edges (source, kind);
CREATE INDEX edges_target ON edges (target, kind);

CREATE TABLE decisions (
  subject text COLLATE "C" NOT NULL,
  action text COLLATE "C" NOT NULL,
  value jsonb,
  "at" timestamptz NOT NULL,
  "by" text,
  record_id text COLLATE "C" NOT NULL,
  topic_id text NOT NULL,
  "offset" bigint NOT NULL,
  appended bigint NOT NULL,
  stored_at timestamptz NOT NULL DEFAULT now(),
  row_version bigint NOT NULL DEFAULT nextval('record_changes'),
  PRIMARY KEY (subject, action)
);
CREATE INDEX decisions_record ON decisions (record_id);
"""

ROOT = {
    "root_id": "The record that it was made of",
    "stage": "The stage that made it",
    "version": "Version of that stage: code, model and prompt",
    "rank": "Rank of that version",
    "root_topic_id": "Revision of the record: incarnation of its topic ...",
    "root_partition": "... partition ...",
    "root_offset": "... offset ...",
    "root_appended": "... and append time, milliseconds since 1970",
    "created_at": "When it first came here",
    "stored_at": "When it came here as it is",
    "superseded_at": "Since when it is history: something else is served of its record",
}
COMMENTS = {
    "nodes": "Things that stages found in records; views personas and communities read them",
    "nodes.id": "A community's is its record's; persona:<platform>:<slug>:<set>-<place>",
    "nodes.kind": "community, persona, ...",
    "nodes.platform_id": "Of dim_platform",
    "nodes.name": "Name as people write it",
    "nodes.properties": "All that is known of it but its name; set: number of the set it is in",
    "nodes.row_version": "Grows with each change of the row",
    **{f"nodes.{column}": text for column, text in ROOT.items()},
    "edges": "How nodes belong together",
    "edges.id": "uuid5 of kind, source and target",
    "edges.kind": "member_of: persona to community",
    "edges.source": "Id of a node",
    "edges.target": "Id of a node",
    "edges.properties": "All else that is known of it",
    **{f"edges.{column}": text for column, text in ROOT.items()},
    "decisions": "What people decided, the newest of each subject and action; from topic decisions",
    "decisions.subject": "Id of a node",
    "decisions.action": "edit (value: fields and what they shall be), lock, hide",
    "decisions.value": "What was decided; empty: it was taken back",
    "decisions.at": "When it was decided, by the clock of whoever did",
    "decisions.by": "Who decided",
    "decisions.record_id": "The record that the subject was made of",
    "decisions.topic_id": "Where it stands, the later counts: incarnation of the topic ...",
    "decisions.offset": "... offset ...",
    "decisions.appended": "... and the message's time, milliseconds since 1970",
    "decisions.stored_at": "When it came here",
    "decisions.row_version": "Grows with each change of the row",
}


def upgrade() -> None:
    execute = op.get_bind().exec_driver_sql
    execute(FUNCTIONS)
    execute(TABLES)
    comments.write(execute, COMMENTS)


def downgrade() -> None:
    raise NotImplementedError("drop the schema instead")
