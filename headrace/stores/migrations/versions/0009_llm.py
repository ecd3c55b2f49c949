"""What language models were asked, and what they answered.

Each step of a call is one function, that is one round trip and one transaction: admit holds the
provider's row until it has counted, so that all workers on all machines share one limit. Nothing
that it counts grows with the table: the calls of the last minute, one row a day and a session.
"""

from alembic import op

from headrace.stores.migrations import comments

revision = "0009"
down_revision = "0008"

# llm_calls is updated once, soon after: there is room for that on its page. The small tables
# change with every call.
TABLES = """
CREATE TABLE llm_calls (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  stage text NOT NULL,
  provider text NOT NULL,
  model text NOT NULL,
  prompt text NOT NULL,
  version integer NOT NULL,
  transport text NOT NULL CHECK (transport IN ('direct', 'batch')),
  reason text NOT NULL,
  repeats bigint[] NOT NULL DEFAULT '{}',
  session text NOT NULL,
  worker text NOT NULL,
  state text NOT NULL DEFAULT 'sent' CHECK (state IN ('sent', 'answered', 'failed', 'lost')),
  items integer NOT NULL,
  tokens bigint NOT NULL,
  input_tokens bigint,
  output_tokens bigint,
  cached_tokens bigint,
  cost numeric NOT NULL DEFAULT 0,
  priced boolean NOT NULL,
  day date NOT NULL,
  sent_at timestamptz NOT NULL,
  ended_at timestamptz,
  seconds double precision,
  request_id text,
  error text,
  raw text,
  records text[]
) WITH (fillfactor = 80);
CREATE INDEX llm_calls_window ON llm_calls (provider, sent_at) WHERE transport = 'direct';
CREATE INDEX llm_calls_records ON llm_calls USING gin (records) WHERE records IS NOT NULL;

CREATE TABLE llm_answers (
  key bytea PRIMARY KEY,
  stage text NOT NULL,
  record_id text COLLATE "C" NOT NULL,
  "set" integer NOT NULL,
  part text NOT NULL,
  prompt text NOT NULL,
  version integer NOT NULL,
  model text NOT NULL,
  answer jsonb NOT NULL,
  call bigint NOT NULL,
  cost numeric NOT NULL,
  tokens bigint NOT NULL,
  at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX llm_answers_record ON llm_answers (record_id, stage);
CREATE INDEX llm_answers_call ON llm_answers USING brin (call) WITH (autosummarize);

CREATE TABLE llm_claims (
  key bytea PRIMARY KEY,
  stage text NOT NULL,
  record_id text COLLATE "C" NOT NULL,
  owner text NOT NULL,
  until timestamptz NOT NULL,
  call bigint
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000);

CREATE TABLE llm_sets (
  stage text NOT NULL,
  record_id text COLLATE "C" NOT NULL,
  number integer NOT NULL,
  keep jsonb NOT NULL,
  reason text NOT NULL,
  at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (stage, record_id, number)
);
CREATE INDEX llm_sets_record ON llm_sets (record_id);

CREATE TABLE llm_providers (
  provider text PRIMARY KEY,
  hold_until timestamptz,
  failures integer NOT NULL DEFAULT 0,
  error text,
  open_until timestamptz,
  probe_until timestamptz
) WITH (fillfactor = 20);

CREATE TABLE llm_turns (
  ticket bytea PRIMARY KEY,
  provider text NOT NULL,
  stage text NOT NULL,
  at timestamptz NOT NULL,
  tokens bigint NOT NULL,
  shared boolean NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE llm_spent (
  scope text PRIMARY KEY,
  spent numeric NOT NULL DEFAULT 0
) WITH (fillfactor = 20);

CREATE TABLE llm_refusals (
  stage text PRIMARY KEY,
  scope text NOT NULL CHECK (scope IN ('day', 'session', 'other')),
  spent numeric NOT NULL DEFAULT 0,
  budget numeric NOT NULL DEFAULT 0,
  until timestamptz,
  at timestamptz NOT NULL,
  reason text,
  more numeric
) WITH (fillfactor = 20);
"""

# When calls may be sent is counted from the newest backwards: the first that would be one too
# many has to leave the window before the next may go. Whoever waits ahead will be sent later than
# all that are sent. Calls are passed over by their index, a thousand in less than a millisecond;
# tokens are summed up call by call only where together they are too many.
NEXT = """
CREATE FUNCTION llm_next(
  p_provider text, p_stage text, p_ticket bytea, p_own timestamptz, p_now timestamptz,
  p_window interval, p_grace interval, p_tokens bigint, p_requests integer, p_most bigint,
  OUT by_requests timestamptz, OUT by_tokens timestamptz, OUT used bigint, OUT used_tokens bigint
) LANGUAGE plpgsql STABLE AS $$
DECLARE
  v_from CONSTANT timestamptz := p_now - p_window;
  v_to CONSTANT timestamptz := p_now + p_window;  -- of a clock that was set back
  v_room CONSTANT bigint := p_most - least(p_tokens, p_most);
  v_turns timestamptz[];
  v_tokens bigint[];
  v_ahead integer;
BEGIN
  SELECT array_agg(t.at ORDER BY t.at DESC, t.ticket DESC),
    array_agg(t.tokens ORDER BY t.at DESC, t.ticket DESC), count(*)
  INTO v_turns, v_tokens, v_ahead FROM llm_turns t
  WHERE t.provider = p_provider AND t.ticket <> p_ticket AND t.at > p_now - p_grace
    AND CASE WHEN p_stage IS NULL THEN NOT t.shared ELSE t.stage = p_stage END
    AND (p_own IS NULL OR (t.at, t.ticket) < (p_own, p_ticket));
  IF v_ahead >= p_requests THEN
    by_requests := v_turns[p_requests] + p_window;
  ELSIF p_requests IS NOT NULL THEN
    SELECT c.sent_at + p_window INTO by_requests FROM llm_calls c
    WHERE c.provider = p_provider AND c.transport = 'direct'
      AND c.sent_at > v_from AND c.sent_at < v_to AND (p_stage IS NULL OR c.stage = p_stage)
    ORDER BY c.sent_at DESC OFFSET p_requests - v_ahead - 1 LIMIT 1;
  END IF;
  IF by_requests > p_now OR p_most IS NOT NULL THEN
    SELECT count(*), coalesce(sum(c.tokens), 0) INTO used, used_tokens FROM llm_calls c
    WHERE c.provider = p_provider AND c.transport = 'direct'
      AND c.sent_at > v_from AND c.sent_at < v_to AND (p_stage IS NULL OR c.stage = p_stage);
  END IF;
  IF used_tokens + coalesce((SELECT sum(n) FROM unnest(v_tokens) AS n), 0) > v_room THEN
    SELECT max(n.at) + p_window INTO by_tokens FROM (
      SELECT l.at, sum(l.tokens) OVER newest AS total FROM (
        SELECT 0 AS sent, w.at, w.tokens FROM unnest(v_turns, v_tokens) AS w (at, tokens)
        UNION ALL
        SELECT 1, c.sent_at, c.tokens FROM llm_calls c
        WHERE c.provider = p_provider AND c.transport = 'direct'
          AND c.sent_at > v_from AND c.sent_at < v_to AND (p_stage IS NULL OR c.stage = p_stage)
      ) AS l WINDOW newest AS (ORDER BY l.sent, l.at DESC ROWS UNBOUNDED PRECEDING)
    ) AS n WHERE n.total > v_room;
  END IF;
END $$
"""

ADMIT = """
CREATE FUNCTION llm_admit(
  p_provider text, p_stage text, p_owner text, p_session text, p_keys bytea[],
  p_model text, p_prompt text, p_version integer, p_transport text, p_reason text,
  p_repeats bigint[], p_tokens bigint, p_cost numeric,
  p_window interval, p_requests integer, p_most bigint, p_share double precision,
  p_failures integer, p_patience interval, p_lease interval, p_renew bytea[],
  p_zone text, p_daily numeric, p_max numeric,
  OUT kind text, OUT call bigint, OUT seconds double precision, OUT used numeric,
  OUT until timestamptz, OUT note text
) LANGUAGE plpgsql AS $$
DECLARE
  v_now timestamptz;
  v_day date;
  v_grace CONSTANT interval := '1 second';
  v_provider llm_providers%ROWTYPE;
  v_turn llm_turns%ROWTYPE;
  v_all record;
  v_own record;
  v_at timestamptz;
  v_shared boolean := false;
  v_of_day CONSTANT text := 'day ';
  v_of_session text := 'session ' || p_session;
  v_spent_day numeric := 0;
  v_spent_session numeric := 0;
  v_cost numeric := coalesce(p_cost, 0);
  v_ticket bytea := coalesce(p_keys[1], '');
  v_probes boolean := false;
BEGIN
  SELECT * INTO v_provider FROM llm_providers WHERE provider = p_provider FOR UPDATE;
  IF NOT FOUND THEN
    INSERT INTO llm_providers (provider) VALUES (p_provider) ON CONFLICT DO NOTHING;
    SELECT * INTO v_provider FROM llm_providers WHERE provider = p_provider FOR UPDATE;
  END IF;
  v_now := clock_timestamp();
  v_day := (v_now AT TIME ZONE p_zone)::date;

  -- What is no longer ours is not to be bought; what is stays so for longer than a call may take.
  UPDATE llm_claims c SET until = v_now + p_lease
  WHERE c.key = ANY (p_keys || coalesce(p_renew, '{}')) AND c.owner = p_owner
    AND (p_renew IS NOT NULL OR c.until < v_now + (p_patience + p_lease) / 2);
  IF (SELECT count(*) FROM llm_claims c WHERE c.key = ANY (p_keys) AND c.owner = p_owner)
      < cardinality(p_keys) THEN
    kind := 'taken';
    RETURN;
  END IF;

  IF p_transport = 'direct' AND v_provider.failures >= p_failures THEN
    IF v_provider.open_until > v_now THEN
      kind := 'open'; until := v_provider.open_until; used := v_provider.failures;
      note := v_provider.error; seconds := extract(epoch FROM until - v_now);
      DELETE FROM llm_turns t WHERE t.ticket = v_ticket;
      RETURN;
    ELSIF v_provider.probe_until > v_now THEN
      kind := 'probe'; seconds := 1;
      RETURN;
    END IF;
    v_probes := true;
  END IF;

  -- The sums of money are locked: reserved by one, seen by the next.
  INSERT INTO llm_spent (scope) SELECT s FROM unnest(ARRAY[v_of_day || v_day, v_of_session]) AS s
  WHERE NOT EXISTS (SELECT FROM llm_spent l WHERE l.scope = s) ORDER BY s ON CONFLICT DO NOTHING;
  SELECT l.spent INTO v_spent_day FROM llm_spent l WHERE l.scope = v_of_day || v_day FOR UPDATE;
  SELECT l.spent INTO v_spent_session FROM llm_spent l WHERE l.scope = v_of_session FOR UPDATE;
  IF v_cost > 0 AND v_spent_day + v_cost > p_daily THEN
    kind := 'day'; used := v_spent_day;
    until := ((v_day + 1)::timestamp AT TIME ZONE p_zone);
  ELSIF v_cost > 0 AND v_spent_session + v_cost > p_max THEN
    kind := 'session'; used := v_spent_session;
  END IF;
  IF kind IS NOT NULL THEN
    DELETE FROM llm_turns t WHERE t.ticket = v_ticket;
    note := v_cost;
    INSERT INTO llm_refusals AS r (stage, scope, spent, budget, until, at, more)
    VALUES (p_stage, kind, used, CASE kind WHEN 'day' THEN p_daily ELSE p_max END, until, v_now,
      v_cost)
    ON CONFLICT (stage) DO UPDATE SET scope = excluded.scope, spent = excluded.spent,
      budget = excluded.budget, until = excluded.until, at = excluded.at, reason = NULL,
      more = excluded.more;
    RETURN;
  END IF;

  v_at := v_now;
  IF p_transport = 'direct' THEN
    IF v_provider.hold_until > v_at THEN
      v_at := v_provider.hold_until; kind := 'hold';
    END IF;
    IF p_requests IS NOT NULL OR p_most IS NOT NULL THEN
      DELETE FROM llm_turns t WHERE t.provider = p_provider AND t.at <= v_now - v_grace;
      SELECT * INTO v_turn FROM llm_turns t WHERE t.ticket = v_ticket;
      SELECT * INTO v_all FROM llm_next(p_provider, NULL, v_ticket,
        CASE WHEN v_turn.shared THEN NULL ELSE v_turn.at END,
        v_now, p_window, v_grace, p_tokens, p_requests, p_most);
      IF v_all.by_requests > v_at THEN
        v_at := v_all.by_requests; kind := 'requests'; used := v_all.used;
      END IF;
      IF v_all.by_tokens > v_at THEN
        v_at := v_all.by_tokens; kind := 'tokens'; used := v_all.used_tokens;
      END IF;
      IF p_share IS NOT NULL THEN
        SELECT * INTO v_own FROM llm_next(p_provider, p_stage, v_ticket, v_turn.at, v_now,
          p_window, v_grace, p_tokens,
          CASE WHEN p_requests > 0 THEN greatest(1, floor(p_requests * p_share)::integer) END,
          floor(p_most * p_share)::bigint);
        IF v_own.by_requests > v_at THEN
          v_at := v_own.by_requests; kind := 'share'; used := v_own.used; v_shared := true;
        END IF;
        IF v_own.by_tokens > v_at THEN
          v_at := v_own.by_tokens; kind := 'share of tokens'; used := v_own.used_tokens;
          v_shared := true;
        END IF;
      END IF;
    END IF;
    IF v_at > v_now THEN
      IF kind = 'hold' THEN  -- not all at the same moment
        v_at := greatest(v_at, coalesce(v_turn.at, v_at + random() * interval '0.3 s'));
      END IF;
      seconds := extract(epoch FROM v_at - v_now);
      INSERT INTO llm_turns AS t VALUES (v_ticket, p_provider, p_stage, v_at, p_tokens, v_shared)
      ON CONFLICT (ticket) DO UPDATE SET at = excluded.at, shared = excluded.shared,
        tokens = excluded.tokens
        WHERE (t.at, t.shared) IS DISTINCT FROM (excluded.at, excluded.shared);
      RETURN;
    END IF;
    DELETE FROM llm_turns t WHERE t.ticket = v_ticket;
  END IF;

  IF v_probes THEN
    UPDATE llm_providers p SET probe_until = v_now + p_patience WHERE p.provider = p_provider;
  END IF;
  DELETE FROM llm_refusals r WHERE r.stage = p_stage AND r.scope <> 'other';
  IF v_cost > 0 THEN
    UPDATE llm_spent l SET spent = l.spent + v_cost WHERE l.scope = v_of_day || v_day;
    UPDATE llm_spent l SET spent = l.spent + v_cost WHERE l.scope = v_of_session;
  END IF;
  INSERT INTO llm_calls (stage, provider, model, prompt, version, transport, reason, repeats,
    session, worker, items, tokens, cost, priced, day, sent_at)
  VALUES (p_stage, p_provider, p_model, p_prompt, p_version, p_transport, p_reason, p_repeats,
    p_session, p_owner, cardinality(p_keys), p_tokens, v_cost, p_cost IS NOT NULL, v_day, v_now)
  RETURNING id INTO call;
  UPDATE llm_claims c SET call = llm_admit.call WHERE c.key = ANY (p_keys);
  kind := 'sent';
END $$
"""

# A claim and then the look for an answer, which sees what was settled until the claim was ours. It
# need not be on disk: without it nothing is admitted.
CLAIM = """
CREATE FUNCTION llm_claim(
  p_stage text, p_owner text, p_lease interval, p_keys bytea[], p_records text[]
) RETURNS TABLE (claimed bytea, died bigint, answered jsonb) LANGUAGE plpgsql AS $$
DECLARE
  v_mine bytea[];
  v_calls bigint[];
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  WITH taken AS (
    INSERT INTO llm_claims AS c (key, stage, record_id, owner, until)
    SELECT w.key, p_stage, w.record, p_owner, clock_timestamp() + p_lease
    FROM unnest(p_keys, p_records) AS w (key, record)
    WHERE NOT EXISTS (  -- those of others are not even locked: their settling may hold some
      SELECT FROM llm_claims o
      WHERE o.key = w.key AND o.owner <> p_owner AND o.until > clock_timestamp())
    ORDER BY w.key
    ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, until = excluded.until
      WHERE c.owner = excluded.owner OR c.until < clock_timestamp()
    RETURNING c.key, c.call
  )
  SELECT array_agg(t.key), array_agg(t.call) FILTER (WHERE t.call IS NOT NULL)
  INTO v_mine, v_calls FROM taken t;
  IF v_calls IS NOT NULL THEN
    UPDATE llm_calls l SET state = 'lost', ended_at = clock_timestamp()
    WHERE l.id = ANY (v_calls) AND l.state = 'sent';
  END IF;
  RETURN QUERY SELECT a.key, NULL::bigint, a.answer FROM llm_answers a WHERE a.key = ANY (p_keys);
  IF FOUND THEN
    DELETE FROM llm_claims c USING llm_answers a
    WHERE c.key = ANY (v_mine) AND c.owner = p_owner AND a.key = c.key;
  END IF;
  RETURN QUERY
    SELECT c.key, l.id, NULL::jsonb FROM llm_claims c
    LEFT JOIN llm_calls l ON l.id = c.call AND l.state = 'lost'
    WHERE c.key = ANY (v_mine) AND c.owner = p_owner;
END $$
"""

# Twice the same comes to the same: the difference to what the call counted before is booked.
BOOK = """
CREATE FUNCTION llm_book(p_day date, p_session text, p_more numeric) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  IF p_more <> 0 THEN
    UPDATE llm_spent SET spent = spent + p_more WHERE scope = 'day ' || p_day;
    UPDATE llm_spent SET spent = spent + p_more WHERE scope = 'session ' || p_session;
  END IF;
END $$
"""

# What a call says of records that were deleted meanwhile is not kept.
GONE = """
CREATE FUNCTION llm_gone(p_records text[]) RETURNS boolean LANGUAGE sql STABLE AS $$
  SELECT EXISTS (SELECT FROM records r WHERE r.id = ANY (p_records) AND r.deleted)
$$
"""

# Answers neither.
SETTLE = """
CREATE FUNCTION llm_settle(
  p_call bigint, p_owner text, p_input bigint, p_output bigint, p_cached bigint, p_cost numeric,
  p_seconds double precision, p_request text, p_error text, p_raw text, p_hold interval,
  p_done bytea[], p_keys bytea[], p_records text[], p_sets integer[], p_parts text[],
  p_answers text[], p_held text[]
) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  v_call llm_calls%ROWTYPE;
  v_cost numeric;
  v_count integer := greatest(cardinality(p_keys), 1);
BEGIN
  -- Of whoever has taken it over as well, unless he has asked for it himself by now.
  DELETE FROM llm_claims c
  WHERE c.key = ANY (p_done) AND (c.owner = p_owner OR c.call = p_call);
  SELECT * INTO v_call FROM llm_calls WHERE id = p_call FOR UPDATE;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  UPDATE llm_providers p SET failures = 0, error = NULL, open_until = NULL, probe_until = NULL
  WHERE p.provider = v_call.provider AND p.failures > 0;
  IF p_hold IS NOT NULL THEN
    UPDATE llm_providers p SET hold_until = greatest(p.hold_until, clock_timestamp() + p_hold)
    WHERE p.provider = v_call.provider;
  END IF;
  IF p_held IS NOT NULL AND llm_gone(p_held) THEN
    p_error := NULL; p_raw := NULL; p_held := NULL;
  END IF;
  v_cost := coalesce(p_cost, 0);
  UPDATE llm_calls SET state = 'answered', input_tokens = p_input, output_tokens = p_output,
    cached_tokens = p_cached, tokens = p_input + p_output, cost = v_cost,
    priced = p_cost IS NOT NULL, ended_at = clock_timestamp(), seconds = p_seconds,
    request_id = p_request, error = p_error, raw = p_raw, records = p_held
  WHERE id = p_call;
  PERFORM llm_book(v_call.day, v_call.session, v_cost - v_call.cost);
  INSERT INTO llm_answers (key, stage, record_id, "set", part, prompt, version, model, answer,
    call, cost, tokens)
  SELECT w.key, v_call.stage, w.record, w.number, w.part, v_call.prompt, v_call.version,
    v_call.model, w.answer::jsonb, p_call, v_cost / v_count, (p_input + p_output) / v_count
  FROM unnest(p_keys, p_records, p_sets, p_parts, p_answers)
    AS w (key, record, number, part, answer)
  WHERE NOT EXISTS (SELECT FROM records r WHERE r.id = w.record AND r.deleted)
  ORDER BY w.key ON CONFLICT (key) DO NOTHING;
  RETURN true;
END $$
"""

UNSENT = """
CREATE FUNCTION llm_unsent(
  p_call bigint, p_owner text, p_keys bytea[], p_error text, p_records text[], p_down boolean,
  p_billed boolean, p_hold interval, p_failures integer, p_open interval
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  v_call llm_calls%ROWTYPE;
BEGIN
  UPDATE llm_claims c SET call = NULL
  WHERE c.key = ANY (p_keys) AND c.owner = p_owner AND c.call = p_call;
  SELECT * INTO v_call FROM llm_calls WHERE id = p_call FOR UPDATE;
  IF NOT FOUND OR v_call.state NOT IN ('sent', 'lost') THEN
    RETURN;
  END IF;
  UPDATE llm_providers p SET
    hold_until = greatest(p.hold_until, clock_timestamp() + p_hold),
    failures = p.failures + p_down::integer,
    error = CASE WHEN p_down THEN p_error ELSE p.error END,
    open_until = CASE WHEN p_down AND p.failures + 1 >= p_failures
      THEN clock_timestamp() + p_open ELSE p.open_until END,
    probe_until = NULL
  WHERE p.provider = v_call.provider;
  IF llm_gone(p_records) THEN
    p_error := NULL; p_records := NULL;
  END IF;
  UPDATE llm_calls SET state = 'failed', ended_at = clock_timestamp(), error = p_error,
    records = p_records, seconds = extract(epoch FROM clock_timestamp() - sent_at),
    cost = CASE WHEN p_billed THEN cost ELSE 0 END,
    tokens = CASE WHEN p_billed THEN tokens ELSE 0 END
  WHERE id = p_call;
  IF NOT p_billed THEN
    PERFORM llm_book(v_call.day, v_call.session, -v_call.cost);
  END IF;
END $$
"""

FUNCTIONS = (NEXT, ADMIT, CLAIM, BOOK, GONE, SETTLE, UNSENT)

COMMENTS: dict[str, str] = {
    "llm_calls": "Calls of language models: one row before each is sent, brought up to date after",
    "llm_calls.provider": "Host of the endpoint, or embedded",
    "llm_calls.reason": "first, rest (what was missing), repair (an answer that was none), …",
    "llm_calls.repeats": "Calls in flight when their worker died, of which this asks again",
    "llm_calls.session": "Whose costs count together; headrace run gives its own",
    "llm_calls.state": (
        "sent: under way, or its worker died; answered; failed: nothing came of it; lost: its"
        " worker died, and another took over"
    ),
    "llm_calls.items": "Records (or parts of them) that it asks for",
    "llm_calls.tokens": "What counts for the limit: an estimate until it is answered",
    "llm_calls.cost": "USD; reserved by an estimate until it is answered; lost calls keep it",
    "llm_calls.priced": "Whether the model has a price in the settings",
    "llm_calls.day": "The day whose budget it counts for",
    "llm_calls.raw": "The answer as it came, where it could not be used",
    "llm_calls.records": "Whose content error and raw may hold",
    "llm_answers": "Answers of language models by item, never bought again",
    "llm_answers.key": "Hash of stage, record, set, part, model, prompt, schema and content",
    "llm_answers.set": "Raised when somebody has a record done anew",
    "llm_answers.cost": "USD: its share of the call's",
    "llm_answers.tokens": "Its share of the call's",
    "llm_claims": "Items that a worker is about to buy, or is buying",
    "llm_claims.until": "From then on another worker may take it over",
    "llm_claims.call": "The call that asks for it, once there is one",
    "llm_sets": "Records that somebody has done anew, and what is to stay of what there was",
    "llm_providers": "What all workers know of a provider; locked while a call is admitted",
    "llm_providers.hold_until": "The provider asks for no call before",
    "llm_providers.failures": "Calls in a row that it did not answer",
    "llm_providers.open_until": "Nobody calls before: it is down",
    "llm_providers.probe_until": "One call tries until then whether it is back",
    "llm_turns": "Who waits for the rate limit, and the time each was given",
    "llm_turns.shared": "It waits for its group's own share, and holds up no other group",
    "llm_spent": "USD by day and by session, reserved ones included: what budgets go by",
    "llm_refusals": "Groups that wait: a budget is spent, or a call brought nothing",
    "llm_refusals.more": "USD that the call might have cost",
    "llm_refusals.reason": "Of those that no budget holds back: what is wrong, in one line",
}


def upgrade() -> None:
    execute = op.get_bind().exec_driver_sql
    execute(TABLES)
    for function in FUNCTIONS:
        execute(function.replace("%", "%%"))
    comments.write(execute, COMMENTS)


def downgrade() -> None:
    raise NotImplementedError("drop the schema instead")
