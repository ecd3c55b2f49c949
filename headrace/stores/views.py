"""The views for people, made from the stages of topics.yaml. Pure: SQL out, nothing executed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.search.versions import ROW_VERSION


@dataclass(frozen=True, slots=True)
class StageRow:
    """What the views know of a stage; `topics` are (full raw topic name, platform or None)."""

    stage: str
    facet: str
    semantic: bool
    paid: bool  # asks a language model: its answers do not make a record more or less done
    version: str
    rank: int
    description: str
    topics: tuple[tuple[str, str | None], ...]


NAMES = (
    "letters",
    "metrics_current",
    "metrics_history",
    "platform_metrics",
    "coverage",
    "communities",
    "persona_history",
    "personas",
    "searched",
    "entities",
    "posts",
    "record_status",
    "served",
    "stage_status",
)

# A stage's answer counts for the record's current revision only; an older one leaves it pending,
# a newer one (the store has not read the record yet) does too, until its record is here. Where the
# store could not keep a newer revision, none comes: then the record is dead.
STAGE_STATUS = """
CREATE VIEW stage_status AS
SELECT r.id AS record_id, r.platform_id, st.stage,
       CASE WHEN o.outcome = 'drop' THEN 'dropped'
            WHEN o.outcome IN ('ok', 'dead') THEN o.outcome
            WHEN refused.reason IS NOT NULL THEN 'dead'
            ELSE 'pending' END AS status,
       o.at AS processed_at, o.stored_at, coalesce(o.reason, refused.reason) AS reason, o.version
FROM records r
JOIN stage_topics st ON st.topic = r.topic
LEFT JOIN outcomes o
  ON o.record_id = r.id AND o.stage = st.stage
 AND o.root_topic_id = r.topic_id AND o.root_offset = r."offset"
 AND o.outcome IN ('ok', 'drop', 'dead')
LEFT JOIN (
  SELECT DISTINCT ON (record_key, topic) record_key, topic, at, "offset", reason
  FROM dead_letters WHERE "group" NOT IN (SELECT stage FROM stages)
  ORDER BY record_key, topic, at DESC, "offset" DESC
) refused
  ON o.record_id IS NULL AND refused.record_key = r.id AND refused.topic = r.topic
 AND (refused.at, refused."offset") > (to_timestamp(r.appended / 1000.0), r."offset")
WHERE NOT r.deleted
"""

SERVED = """
CREATE VIEW served AS
SELECT DISTINCT ON (s.facet, f.record_id)
       f.record_id, s.facet, f.stage, f.result, f.version, f.rank, f.at,
       (f.topic_id, f."offset") IS DISTINCT FROM (r.topic_id, r."offset") AS stale
FROM (
  SELECT record_id, stage, result, version, rank, at,
         root_topic_id AS topic_id, root_offset AS "offset", root_appended AS appended
  FROM outcomes WHERE outcome = 'ok'
  UNION ALL
  SELECT record_id, stage, earlier->'result', earlier->>'version', (earlier->>'rank')::integer,
         (earlier->>'at')::timestamptz, earlier->>'topic_id', (earlier->>'offset')::bigint,
         (earlier->>'appended')::bigint
  FROM outcomes WHERE outcome <> 'ok' AND earlier IS NOT NULL
) f
JOIN stages s USING (stage)
JOIN records r ON r.id = f.record_id AND NOT r.deleted
ORDER BY s.facet, f.record_id, f.appended DESC, f."offset" DESC, f.rank DESC, f.stage
"""

ENTITIES = """
CREATE VIEW entities AS
SELECT m.type, m.name, p.name AS platform,
       count(*) AS mentions, count(DISTINCT m.record_id) AS records,
       round(avg(m.confidence)::numeric, 3) AS confidence,
       min(r.created_at) AS first_seen, max(r.created_at) AS last_seen
FROM entity_mentions m
JOIN records r ON r.id = m.record_id AND NOT r.deleted
JOIN dim_platform p ON p.id = r.platform_id
GROUP BY m.type, m.name, p.name
"""

# A letter's place is its input's, so an outcome of that input that is not dead has answered it; one
# of parts (its header `hr` names them) is answered when the result has them. A
# record that has another place on the letter's topic, and came there after the letter died, has a
# newer revision, whichever incarnation of the topic that is. The cause is the reason without what
# differs from letter to letter.
LETTERS = r"""
CREATE VIEW letters AS
SELECT d.id, d."group", d.record_key, d.topic, d.partition, d."offset", d.reason, d.exception, d.at,
       d.deaths, d.redriven_at, d.dismissed_at, d.dismissal,
       CASE WHEN q.letter IS NOT NULL THEN 'queued'
            WHEN d.resolved_at IS NOT NULL THEN 'done'
            WHEN o.input_topic = d.topic AND o.input_partition = d.partition
             AND o.input_offset = d."offset" AND o.outcome <> 'dead'
             AND (coalesce(split_part(d.headers->>'hr', ';', 5), '') = ''
                  OR o.result ?& string_to_array(split_part(d.headers->>'hr', ';', 5), ','))
            THEN 'done'
            WHEN r.deleted
              OR r.topic = d.topic AND r.partition = d.partition AND r."offset" > d."offset"
              OR r.topic = d.topic AND (r.partition, r."offset") <> (d.partition, d."offset")
                 AND r.appended > extract(epoch FROM d.at) * 1000
              OR o.input_topic = d.topic AND o.input_partition = d.partition
                 AND o.input_offset > d."offset" THEN 'superseded'
            WHEN d.dismissed_at IS NOT NULL THEN 'dismissed'
            ELSE 'open' END AS state,
       left(regexp_replace(
         CASE WHEN starts_with(d.reason, coalesce(d.exception, '')) THEN ''
              ELSE d.exception || ': ' END
         || CASE WHEN d.record_key <> '' THEN replace(d.reason, d.record_key, '…')
                 ELSE d.reason END, '\d+', '#', 'g'), 160) AS cause
FROM dead_letters d
LEFT JOIN redo q ON q.letter = d.id
LEFT JOIN records r ON r.id = d.record_key
LEFT JOIN outcomes o ON o.record_id = d.record_key AND o.stage = d."group"
"""

# What an object in Weaviate is made of: a record, or a persona that is served. A version grows with
# each change of the row, of an outcome, or of a decision.
SEARCHED = f"""
CREATE VIEW searched AS
SELECT r.id, r.platform_id, r.kind, r.deleted, {ROW_VERSION} AS row_version
FROM records r
UNION ALL
SELECT n.id, n.platform_id, n.kind,
       n.superseded_at IS NOT NULL
         OR EXISTS (SELECT FROM decisions d
                    WHERE d.subject = n.id AND d.action = 'hide' AND d.value IS NOT NULL)
         OR EXISTS (SELECT FROM records r WHERE r.id = n.root_id AND r.deleted),
       (n.row_version + coalesce(
         (SELECT sum(d.row_version) FROM decisions d WHERE d.subject = n.id), 0))::bigint
FROM nodes n
WHERE n.kind = 'persona'
"""

_PERSONA = """
       {of}->>'age_range' AS age_range, {of}->>'occupation' AS occupation,
       {of}->'interests' AS interests, {of}->'goals' AS goals, {of}->'frustrations' AS frustrations,
       {of}->>'tone_of_voice' AS tone_of_voice, {of}->'typical_posts' AS typical_posts,
       {of}->'evidence' AS evidence, (n.properties->>'set')::integer AS set"""
_OF_COMMUNITY = """
LEFT JOIN dim_platform p ON p.id = n.platform_id
LEFT JOIN nodes c ON c.id = n.root_id
LEFT JOIN records r ON r.id = n.root_id
LEFT JOIN decisions hidden
  ON hidden.subject = n.id AND hidden.action = 'hide' AND hidden.value IS NOT NULL"""
_SHOWN = "n.kind = 'persona' AND hidden.subject IS NULL AND r.deleted IS NOT TRUE"

# What people decided about a persona holds for every later answer of the stage.
PERSONAS = f"""
CREATE VIEW personas AS
SELECT n.id, n.root_id AS community_id, p.name AS platform, coalesce(r.title, c.name) AS community,
       coalesce(edit.value->>'name', n.name) AS name,{_PERSONA.format(of="v.properties")},
       locked.subject IS NOT NULL AS locked, edit.subject IS NOT NULL AS edited,
       n.properties->>'model' AS model, n.version, n.created_at,
       greatest(n.stored_at, edit.stored_at) AS updated_at
FROM nodes n{_OF_COMMUNITY}
LEFT JOIN decisions locked
  ON locked.subject = n.id AND locked.action = 'lock' AND locked.value IS NOT NULL
LEFT JOIN decisions edit
  ON edit.subject = n.id AND edit.action = 'edit' AND jsonb_typeof(edit.value) = 'object'
CROSS JOIN LATERAL (SELECT n.properties || coalesce(edit.value, '{{}}') AS properties) v
WHERE {_SHOWN} AND n.superseded_at IS NULL
"""

PERSONA_HISTORY = f"""
CREATE VIEW persona_history AS
SELECT n.id, n.root_id AS community_id, p.name AS platform, coalesce(r.title, c.name) AS community,
       n.name,{_PERSONA.format(of="n.properties")},
       n.properties->>'model' AS model, n.version, n.created_at, n.superseded_at
FROM nodes n{_OF_COMMUNITY}
WHERE {_SHOWN} AND n.superseded_at IS NOT NULL
"""

COVERAGE = """
CREATE VIEW coverage AS
SELECT p.name AS platform, s.stage, count(*) AS records,
       count(*) FILTER (WHERE s.status = 'ok') AS ok,
       count(*) FILTER (WHERE s.status = 'dropped') AS dropped,
       count(*) FILTER (WHERE s.status = 'dead') AS dead,
       count(*) FILTER (WHERE s.status = 'pending') AS pending,
       round(count(*) FILTER (WHERE s.status = 'ok')::numeric
             / nullif(count(*) FILTER (WHERE s.status <> 'dropped'), 0), 4) AS coverage,
       max(s.stored_at) AS last_updated
FROM stage_status s
JOIN dim_platform p ON p.id = s.platform_id
GROUP BY p.name, s.stage
"""

METRICS_HISTORY = """
CREATE VIEW metrics_history AS
SELECT m.*, j.version, j.watermark, c.run IS NOT NULL AS current
FROM metrics m
JOIN job_runs j ON j.id = m.run
LEFT JOIN job_current c ON c.job = j.job AND c.run = m.run
"""

METRICS_CURRENT = """
CREATE VIEW metrics_current AS
SELECT m.* FROM metrics m JOIN job_current c ON c.run = m.run
"""


def statements(stages: Sequence[StageRow], coverage_level: float) -> list[str]:
    """CREATE VIEW and COMMENT statements, in the order they need each other."""
    made = [STAGE_STATUS, SERVED, _record_status(stages), _posts(stages), ENTITIES, LETTERS]
    made += [SEARCHED, PERSONAS, PERSONA_HISTORY]
    made += [_communities(stages), COVERAGE, _platform_metrics(stages, coverage_level)]
    made += [METRICS_HISTORY, METRICS_CURRENT]
    facets = {stage.facet for stage in stages}
    for name, comment in _comments(coverage_level).items():
        if name == "posts.sentiment_stale" and "sentiment" not in facets:
            continue
        if name == "posts.score" and "scores" not in facets:
            continue
        kind = "COLUMN" if "." in name else "VIEW"
        made.append(f"COMMENT ON {kind} {name} IS {_quoted(comment)}")
    return made


def _record_status(stages: Sequence[StageRow]) -> str:
    columns, joins = [], []
    for number, stage in enumerate(stages):
        alias, name = f"s{number}", _quoted(stage.stage)
        columns.append(
            f'{alias}.status AS "{stage.stage}_status",'
            f' {alias}.processed_at AS "{stage.stage}_processed_at"'
        )
        joins.append(
            f"LEFT JOIN stage_status {alias} ON {alias}.record_id = r.id AND {alias}.stage = {name}"
        )
    every = [f"s{number}" for number, stage in enumerate(stages) if not stage.paid]
    stages = [stage for stage in stages if not stage.paid]
    # A semantic provider of the facet comes later, and the facet has a first answer before.
    sentiment = [
        a
        for a, stage in zip(every, stages, strict=True)
        if stage.facet == "sentiment" and not stage.semantic
    ]
    others = [
        a
        for a, stage in zip(every, stages, strict=True)
        if not stage.semantic and stage.facet != "sentiment"
    ]
    semantic = [a for a, stage in zip(every, stages, strict=True) if stage.semantic]
    status = f"""CASE WHEN {_any(every, "dead")} THEN 'failed'
            WHEN {_any(sentiment, "pending")} THEN 'pending_sentiment'
            WHEN {_any(others, "pending")} THEN 'sentiment_complete'
            WHEN {_any(semantic, "pending")} THEN 'pending_semantic'
            ELSE 'full' END"""
    listed = "".join(f",\n       {column}" for column in columns)
    return f"""
CREATE VIEW record_status AS
SELECT r.id, p.name AS platform, r.kind,
       {status} AS processing_status,
       r.ingested_at, r.updated_at{listed}
FROM records r
JOIN dim_platform p ON p.id = r.platform_id
{chr(10).join(joins)}
WHERE NOT r.deleted AND EXISTS (SELECT FROM stage_topics st WHERE st.topic = r.topic)
"""


def _any(aliases: Sequence[str], status: str) -> str:
    return " OR ".join(f"{alias}.status = '{status}'" for alias in aliases) or "false"


def _posts(stages: Sequence[StageRow]) -> str:
    """Posts and comments with what is served of the facets that people ask for first."""
    known = {stage.facet for stage in stages}
    wanted = {
        "text": [
            ("result->>'clean'", "clean_text"),
            ("result->>'language'", "language"),
            ("result->'hashtags'", "hashtags"),
        ],
        "sentiment": [
            ("result->>'label'", "sentiment"),
            ("(result->>'score')::double precision", "sentiment_score"),
            ("(result->>'confidence')::double precision", "sentiment_confidence"),
            ("stale", "sentiment_stale"),
        ],
    }
    columns, joins = "", ""
    for facet, parts in wanted.items():
        if facet not in known:
            continue
        columns += "".join(f",\n       {facet}.{part} AS {name}" for part, name in parts).replace(
            f"{facet}.(result", f"({facet}.result"
        )
        joins += _served_join(facet, stages)
    if "scores" in known:
        columns += ",\n       scored.weighted AS score, scored.scores"
        joins += "\nLEFT JOIN scores scored ON scored.record_id = r.id"
    return f"""
CREATE VIEW posts AS
SELECT r.id, p.name AS platform, r.kind, r.native_id, r.title, r.text, a.name AS author,
       c.name AS community, r.url, r.created_at, r.lang, r.metrics, run.run,
       (r.value::jsonb)->>'parent_id' AS parent_id, (r.value::jsonb)->>'thread_id' AS thread_id,
       (r.value::jsonb)->'labels' AS labels, (r.value::jsonb)->'extra' AS extra,
       r.ingested_at, r.updated_at{columns}
FROM records r
JOIN dim_platform p ON p.id = r.platform_id
LEFT JOIN dim_author a ON a.id = r.author_id
LEFT JOIN dim_community c ON c.id = r.community_id
LEFT JOIN dim_run run ON run.id = r.run_id{joins}
WHERE NOT r.deleted AND r.kind <> 'community'
"""


def _served_join(facet: str, stages: Sequence[StageRow]) -> str:
    """The served result of a facet: where one stage provides it, a plain join does (it is quicker
    over many rows than `served`, which has to choose)."""
    names = [stage.stage for stage in stages if stage.facet == facet]
    if len(names) > 1:
        return f"\nLEFT JOIN served {facet} ON {facet}.record_id = r.id" + (
            f" AND {facet}.facet = {_quoted(facet)}"
        )
    return f"""
LEFT JOIN (
  SELECT o.record_id,
         CASE WHEN o.outcome = 'ok' THEN o.result ELSE o.earlier->'result' END AS result,
         CASE WHEN o.outcome = 'ok'
              THEN o.root_topic_id <> now_.topic_id OR o.root_offset <> now_."offset"
              WHEN o.earlier IS NOT NULL
              THEN o.earlier->>'topic_id' <> now_.topic_id
                OR (o.earlier->>'offset')::bigint <> now_."offset" END AS stale
  FROM outcomes o JOIN records now_ ON now_.id = o.record_id
  WHERE o.stage = {_quoted(names[0])}
) {facet} ON {facet}.record_id = r.id"""


def _communities(stages: Sequence[StageRow]) -> str:
    mean, joined = "NULL::numeric", ""
    if any(stage.facet == "sentiment" for stage in stages):
        mean = "round(avg((sentiment.result->>'score')::double precision)::numeric, 3)"
        joined = _served_join("sentiment", stages)
    return f"""
CREATE VIEW communities AS
WITH counted AS (
  SELECT p.name AS platform, d.slug, count(*) FILTER (WHERE r.kind = 'post') AS posts,
         count(*) FILTER (WHERE r.kind = 'comment') AS comments,
         count(DISTINCT r.author_id) AS authors, {mean} AS sentiment,
         min(r.created_at) AS first_at, max(r.created_at) AS last_at,
         min(r.ingested_at) AS stored_at
  FROM records r
  JOIN dim_platform p ON p.id = r.platform_id
  JOIN dim_community d ON d.id = r.community_id{joined}
  WHERE NOT r.deleted AND r.kind <> 'community'
  GROUP BY p.name, d.slug
), described AS (
  SELECT DISTINCT ON (p.name, d.slug) p.name AS platform, d.slug, r.id, r.title, r.text, r.metrics,
         r.ingested_at, n.properties, n.created_at AS enriched_at
  FROM records r
  JOIN dim_platform p ON p.id = r.platform_id
  JOIN dim_community d ON d.id = r.community_id
  LEFT JOIN nodes n ON n.id = r.id AND n.kind = 'community' AND n.superseded_at IS NULL
  WHERE r.kind = 'community' AND NOT r.deleted
  ORDER BY p.name, d.slug, r.id
)
SELECT platform, slug, coalesce(e.title, (
         SELECT min(d.name) FROM dim_community d JOIN dim_platform p ON p.id = d.platform_id
         WHERE p.name = platform AND d.slug = slugs.slug)) AS name,
       e.id, e.text AS description, coalesce(c.posts, 0) AS posts,
       coalesce(c.comments, 0) AS comments, coalesce(c.authors, 0) AS authors, c.sentiment,
       c.first_at, c.last_at, e.metrics AS published_counts,
       e.properties->>'about' AS about, e.properties->>'tone' AS tone,
       e.properties->'themes' AS themes,
       (SELECT count(*) FROM personas WHERE community_id = e.id) AS personas,
       (e.properties->>'set')::integer AS set,
       least(e.ingested_at, c.stored_at) AS created_at, e.enriched_at
FROM (SELECT platform, slug FROM counted UNION SELECT platform, slug FROM described) slugs
LEFT JOIN counted c USING (platform, slug)
LEFT JOIN described e USING (platform, slug)
"""


def _platform_metrics(stages: Sequence[StageRow], level: float) -> str:
    sentiment = any(stage.facet == "sentiment" for stage in stages)
    reached = f"coalesce(c.coverage, 1) >= {level!r}"
    quick = "NOT g.semantic"
    counted = "".join(f" AND c.stage <> {_quoted(stage.stage)}" for stage in stages if stage.paid)
    mood = (
        """round(avg(sentiment_score)::numeric, 3) AS sentiment,
         count(*) FILTER (WHERE sentiment = 'positive') AS positive,
         count(*) FILTER (WHERE sentiment = 'neutral') AS neutral,
         count(*) FILTER (WHERE sentiment = 'negative') AS negative"""
        if sentiment
        else """NULL::numeric AS sentiment, 0::bigint AS positive,
         0::bigint AS neutral, 0::bigint AS negative"""
    )
    return f"""
CREATE VIEW platform_metrics AS
WITH volume AS (
  SELECT platform, count(*) AS records, count(*) FILTER (WHERE kind = 'post') AS posts,
         count(*) FILTER (WHERE kind = 'comment') AS comments,
         count(DISTINCT author) AS authors, count(DISTINCT community) AS communities,
         min(created_at) AS first_at, max(created_at) AS last_at,
         sum((SELECT sum(CASE WHEN jsonb_typeof(value) = 'number' THEN value::text::numeric END)
              FROM jsonb_each(CASE WHEN jsonb_typeof(metrics) = 'object' THEN metrics END)
              WHERE key IN ('likes', 'comments', 'shares', 'score', 'reactions')))
           AS engagement,
         {mood}, max(updated_at) AS updated_at
  FROM posts GROUP BY platform
), levels AS (
  SELECT c.platform, jsonb_object_agg(c.stage, c.coverage ORDER BY c.stage) AS coverages,
         CASE WHEN bool_and({reached}) THEN 'full'
              WHEN bool_and({reached}) FILTER (WHERE {quick}) THEN 'fast'
              ELSE 'early' END AS processing_level,
         max(c.last_updated) AS last_updated
  FROM coverage c JOIN stages g ON g.stage = c.stage{counted}
  GROUP BY c.platform
), ranked AS (
  SELECT platform, type, name, mentions,
         row_number() OVER (PARTITION BY platform ORDER BY mentions DESC, type, name) AS place
  FROM entities
), top AS (
  SELECT platform, jsonb_agg(jsonb_build_object('name', name, 'type', type, 'mentions', mentions)
                             ORDER BY place) AS top_entities
  FROM ranked WHERE place <= 10 GROUP BY platform
)
SELECT v.platform, coalesce(l.processing_level, 'early') AS processing_level, v.records, v.posts,
       v.comments, v.authors, v.communities, v.engagement, v.sentiment, v.positive, v.neutral,
       v.negative, coalesce(t.top_entities, '[]') AS top_entities, v.first_at, v.last_at,
       coalesce(l.coverages, '{{}}') AS coverages,
       greatest(v.updated_at, l.last_updated) AS last_updated
FROM volume v LEFT JOIN levels l USING (platform) LEFT JOIN top t USING (platform)
"""


def _comments(level: float) -> dict[str, str]:
    return {
        "stage_status": "Per current record and stage that reads it: ok, dropped, dead or pending",
        "served": "Per record and facet the result to read; stale: of an earlier revision",
        "record_status": "How far each record is, and when each stage answered",
        "record_status.processing_status": (
            "pending_sentiment; sentiment_complete: sentiment done, another quick stage is not; "
            "pending_semantic: only semantic stages are missing; full; failed: a stage's "
            "outcome is dead"
        ),
        "posts": "Posts and comments, with names instead of ids and their sentiment and language",
        "posts.sentiment_stale": "The sentiment is of an earlier revision of the text",
        "posts.score": "Scores by the weights in force, from 0 to 10 (docs/scoring.md)",
        "entities": "Named entities with their mentions, per platform",
        "letters": "Every dead letter: its state and cause; `headrace dead` redrives them",
        "letters.state": (
            "open; queued: it is to be done again; done: it went through after all; superseded: "
            "the record has a newer revision, or was deleted; dismissed: nobody waits for it"
        ),
        "communities": "Communities with counts of what is stored, and what was published of them",
        "communities.about": "What it is about, its tone and themes, by the stage personas",
        "communities.personas": "How many personas are served of it",
        "communities.set": "Number of the set that these personas are of",
        "communities.created_at": "When it first came here, or a post of it",
        "communities.enriched_at": "When its first personas came here",
        "personas": "Personas that are served, as people edited them; hidden ones left out",
        "personas.set": "Number of the set that is served of its community",
        "personas.edited": "A person changed fields of it (`headrace personas edit`)",
        "personas.locked": "A person keeps it for later sets (`headrace personas lock`)",
        "persona_history": "Personas of earlier sets, as they were made",
        "searched": "What can be searched, and its version; deleted: it has no object",
        "coverage": "Per platform and stage: records = ok + dropped + dead + pending",
        "coverage.coverage": "ok / records that the stage does not drop; empty if it drops all",
        "platform_metrics": "Volume, engagement, sentiment and top entities per platform",
        "platform_metrics.processing_level": (
            f"early; fast: every quick stage covers {level:.0%}; full: every stage does"
        ),
        "platform_metrics.engagement": "Sum of likes, comments, shares, score and reactions",
        "metrics_history": "Figures of every run of the job metrics, a row a platform",
        "metrics_history.platform": "Empty: all platforms together",
        "metrics_history.current": "Of the run to be read: the newest watermark",
        "metrics_current": "The figures to be read: those of the job metrics' newest watermark",
        "metrics_current.platform": "Empty: all platforms together",
        "platform_metrics.last_updated": "When a record or outcome behind the figures last came",
    }


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
