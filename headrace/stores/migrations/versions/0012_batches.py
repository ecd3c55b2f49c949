"""Requests that go to a provider in batches, and the batches that they went with.

A request waits, is sent with a batch, and is over (its answers are in the ledger, or nobody asks
for them any more) or, after so many rounds without one, left to be asked directly. It is gone when
its records are queued to be done again; one that is to be asked directly when that is done.
"""

from alembic import op

from headrace.stores.migrations import comments

revision = "0012"
down_revision = "0011"

TABLES = """
CREATE TABLE llm_batches (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name text NOT NULL UNIQUE,
  stage text NOT NULL,
  provider text NOT NULL,
  model text NOT NULL,
  state text NOT NULL DEFAULT 'making' CHECK (state IN ('making', 'sent', 'done')),
  status text NOT NULL DEFAULT '',
  file text,
  batch text,
  requests integer NOT NULL,
  answered integer NOT NULL DEFAULT 0,
  again integer NOT NULL DEFAULT 0,
  cost numeric NOT NULL DEFAULT 0,
  error text,
  made_at timestamptz NOT NULL DEFAULT now(),
  sent_at timestamptz,
  cancel_at timestamptz,
  done_at timestamptz
);
CREATE INDEX llm_batches_open ON llm_batches (id) WHERE state <> 'done';
CREATE TABLE llm_requests (
  id uuid PRIMARY KEY,
  stage text NOT NULL,
  provider text NOT NULL,
  model text NOT NULL,
  state text NOT NULL DEFAULT 'waiting'
    CHECK (state IN ('waiting', 'sent', 'over', 'direct', 'queued')),
  task jsonb NOT NULL,
  body text,
  bytes integer NOT NULL,
  input_tokens integer NOT NULL,
  output_tokens integer NOT NULL,
  cost numeric,
  round integer NOT NULL DEFAULT 0,
  urgent boolean NOT NULL DEFAULT false,
  batch bigint,
  call bigint,
  error text,
  made_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX llm_requests_waiting ON llm_requests (stage, provider, model, made_at)
  WHERE state = 'waiting';
CREATE INDEX llm_requests_back ON llm_requests (stage) WHERE state IN ('over', 'direct');
CREATE INDEX llm_requests_open ON llm_requests (stage, made_at)
  WHERE state IN ('waiting', 'sent');
CREATE INDEX llm_requests_batch ON llm_requests (batch) WHERE batch IS NOT NULL;
CREATE TABLE llm_request_items (
  key bytea PRIMARY KEY,
  request uuid NOT NULL,
  place integer NOT NULL,
  record_id text COLLATE "C" NOT NULL,
  "set" integer NOT NULL,
  part text NOT NULL,
  alone text NOT NULL DEFAULT '',
  queued boolean NOT NULL DEFAULT false
);
CREATE INDEX llm_request_items_request ON llm_request_items (request, place);
CREATE INDEX llm_request_items_record ON llm_request_items (record_id);
"""

COMMENTS: dict[str, str] = {
    "llm_batches": "Files of requests that were given to a provider's Batch API",
    "llm_batches.name": "Our own name for it, in the provider's metadata: how it is found again",
    "llm_batches.state": "making: not certainly with the provider yet; sent; done: all collected",
    "llm_batches.status": "What the provider said last; full: it has no room for more yet",
    "llm_batches.file": "The provider's id of the file",
    "llm_batches.batch": "The provider's id of the batch",
    "llm_batches.answered": "Requests with a usable answer",
    "llm_batches.again": "Requests that came back without one",
    "llm_batches.cost": "USD that its answers cost",
    "llm_batches.cancel_at": "When somebody asked for it to be cancelled",
    "llm_requests": "Requests that wait for a batch, or for what becomes of one",
    "llm_requests.state": (
        "waiting; sent; over: to be queued; direct: to be queued, and asked without a batch;"
        " queued: that is done, and it is still to be asked"
    ),
    "llm_requests.task": "Schema and packing, to read the answer by",
    "llm_requests.body": "What is sent; none once a record of it was forgotten",
    "llm_requests.round": "How many batches came back without an answer to it",
    "llm_requests.urgent": "It is not to wait until its batch is full or old enough",
    "llm_requests.call": "Its row in llm_calls, once its cost is reserved",
    "llm_request_items": "What each request asks for",
    "llm_request_items.queued": "Its record is on the redo topic",
    "llm_request_items.alone": "Names of the parts that alone are asked for; none: the whole",
}


def upgrade() -> None:
    execute = op.get_bind().exec_driver_sql
    execute(TABLES)
    comments.write(execute, COMMENTS)


def downgrade() -> None:
    raise NotImplementedError("drop the schema instead")
