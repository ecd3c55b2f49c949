"""The gates. Each reads tables and views only, and says what to do where it does not pass."""

from __future__ import annotations

from collections.abc import Iterator

from psycopg import sql

from headrace import jobs
from headrace.gates.look import Gate, Look, Reading

# Fields of a record that have columns, and when such a column holds something.
_SAID = "coalesce(btrim({}), '') <> ''"
_THERE = "{} IS NOT NULL"
_COLUMNS = {
    "text": _SAID.format("r.text"),
    "title": _SAID.format("r.title"),
    "url": _SAID.format("r.url"),
    "lang": _SAID.format("r.lang"),
    "native_id": _SAID.format("r.native_id"),
    "author": _THERE.format("r.author_id"),
    "community": _THERE.format("r.community_id"),
    "created_at": _THERE.format("r.created_at"),
}


def required_fields(look: Look) -> Iterator[Reading]:
    least = look.settings.gates.required_share
    for platform in look.platforms:
        file = look.files.get(platform)
        fields = dict.fromkeys([*look.settings.gates.required, *(file.required if file else ())])
        conditions = [_has(name) for name in fields]
        query = sql.SQL(
            "SELECT count(*) AS records, count(*) FILTER (WHERE {}) AS whole FROM records r"
            " JOIN dim_platform p ON p.id = r.platform_id"
            " WHERE p.name = {} AND NOT r.deleted AND r.kind <> 'community'"
        ).format(sql.SQL(" AND ").join(conditions or [sql.SQL("true")]), platform)
        (row,) = look.rows(query.as_string(look.connection))
        share, lacking = row["whole"] / row["records"], row["records"] - row["whole"]
        yield Reading(
            platform,
            "pass" if share >= least else "fail",
            share,
            least,
            f"≥ {least:g}",
            f"{lacking:,} records lack one of {', '.join(fields)}",
            f"correct the mapping in config/platforms/{platform}.yaml and publish with --again",
        )


def _has(field: str) -> sql.Composable:
    if field in _COLUMNS:
        return sql.SQL(_COLUMNS[field])
    path = sql.Literal(field.split("."))
    return sql.SQL("coalesce((r.value::jsonb) #>> {}::text[], '') <> ''").format(path)


def entity_confidence(look: Look) -> Iterator[Reading]:
    least = look.settings.gates.entity_confidence
    for platform in look.platforms:
        row = look.confidence.get(platform)
        yield _above(
            platform,
            row["mean"] if row else None,
            least,
            "no entity is found yet" if row is None else f"the mean is {row['mean']:.3f}",
            "run the group entities"
            if row is None
            else "raise entities.threshold, then `headrace reset --stage entities`",
        )


def entity_threshold(look: Look) -> Iterator[Reading]:
    least = look.settings.entities.threshold
    for platform in look.platforms:
        row = look.confidence.get(platform)
        yield Reading(
            platform,
            "unknown" if row is None else "pass" if row["least"] >= least else "fail",
            row["least"] if row else None,
            least,
            f"≥ {least:g}",
            "no entity is found yet"
            if row is None
            else "there are mentions below entities.threshold, found when that was lower",
            "run the group entities" if row is None else "`headrace reset --stage entities`",
        )


def sums(look: Look) -> Iterator[Reading]:
    query = """
SELECT p.name AS platform, st.stage, count(*) AS records
FROM stage_topics st
JOIN records r ON r.topic = st.topic AND NOT r.deleted
JOIN dim_platform p ON p.id = r.platform_id
GROUP BY p.name, st.stage
"""
    counted = {(row["platform"], row["stage"]): row["records"] for row in look.rows(query)}
    told = {
        (row["platform"], row["stage"]): row["ok"] + row["dropped"] + row["dead"] + row["pending"]
        for row in look.coverage
    }
    for platform in look.platforms:
        wrong = sorted(
            stage
            for name, stage in counted.keys() | told.keys()
            if name == platform and counted.get((name, stage)) != told.get((name, stage))
        )
        yield _none(
            platform,
            len(wrong),
            f"ok + dropped + dead + pending are not the records: {', '.join(wrong)}",
            "`headrace doctor` shows the numbers; `headrace migrate` makes the views anew",
        )


def outcomes_have_records(look: Look) -> Iterator[Reading]:
    if look.only is not None:
        return
    query = """
SELECT count(*) FROM outcomes o
WHERE o.stored_at <= now() - make_interval(secs => %s)
  AND NOT EXISTS (SELECT FROM records r WHERE r.id = o.record_id)
"""
    lost = look.number(query, [look.settings.gates.settle_minutes * 60])
    yield _none(
        None,
        lost,
        f"{lost:,} outcomes are of records that never came",
        "`headrace lag` shows whether the store has read all raw topics; publish again what is"
        " missing",
    )


def mentions_are_served(look: Look) -> Iterator[Reading]:
    if look.only is not None:
        return
    query = """
SELECT count(*) FROM (SELECT DISTINCT record_id, stage FROM entity_mentions) m
WHERE NOT EXISTS (
  SELECT FROM outcomes o
  WHERE o.record_id = m.record_id AND o.stage = m.stage
    AND (o.outcome = 'ok' OR o.earlier IS NOT NULL))
"""
    stray = look.number(query)
    yield _none(
        None,
        stray,
        f"{stray:,} records have mentions of a result that is not served",
        "this is a fault of the program: report it; a new answer of the stage mends the record",
    )


def vectors_are_there(look: Look) -> Iterator[Reading]:
    if not any(stage.facet == "embeddings" for stage in look.topology.stages()):
        return
    query = """
SELECT p.name AS platform, count(*) AS missing
FROM outcomes o
JOIN stages s ON s.stage = o.stage AND s.facet = 'embeddings'
JOIN records r ON r.id = o.record_id AND NOT r.deleted
JOIN dim_platform p ON p.id = r.platform_id
WHERE o.outcome = 'ok' AND NOT EXISTS (
  SELECT FROM vectors v
  WHERE v.record_id = o.record_id
    AND v.space = (o.result->>'model') || '-' || (o.result->>'dimensions'))
GROUP BY p.name
"""
    missing = {row["platform"]: row["missing"] for row in look.rows(query)}
    for platform in look.platforms:
        yield _none(
            platform,
            missing.get(platform, 0),
            f"{missing.get(platform, 0):,} texts count as embedded and have no vector",
            "`headrace reset --stage embeddings`",
        )


def metrics_are_current(look: Look) -> Iterator[Reading]:
    job = look.topology.job("metrics")
    if job is None:
        return
    hours = look.settings.gates.metrics_hours
    how = jobs.standing(look.connection, job.short)
    query = """
SELECT platform, extract(epoch FROM now() - taken_at)::float8 / 3600 AS hours FROM metrics
WHERE run = %s AND platform IS NOT NULL
"""
    ages = {
        row["platform"]: max(row["hours"], 0.0)
        for row in look.rows(query, [how.current.id if how.current else None])
    }
    for platform in look.platforms:
        age = ages.get(platform)
        # Figures that know everything stored are current however old they are.
        current = age is not None and (age <= hours or how.behind == 0)
        what = "there are no figures of it"
        if age is not None:
            what = f"the figures are {age:.1f} hours old, {how.behind:,} messages came since"
        yield Reading(
            platform,
            "pass" if current else "fail",
            age,
            hours,
            f"≤ {hours:g} h",
            what,
            f"`headrace job run {job}`; `headrace job list` tells why it has not run",
        )


def sentiment_coverage(look: Look) -> Iterator[Reading]:
    least = look.settings.gates.sentiment_coverage
    stages = {stage.short for stage in look.topology.stages() if stage.facet == "sentiment"}
    for platform in look.platforms:
        mine = [row for row in look.coverage if row["platform"] == platform]
        mine = [row for row in mine if row["stage"] in stages]
        if not mine:
            continue
        found = [float(row["coverage"]) for row in mine if row["coverage"] is not None]
        best = max(found, default=None)
        if best is None:
            what, do = "every record is dropped", "nothing: no stage speaks these languages"
        elif not any(row["ok"] for row in mine) and _left_out(look, platform, stages):
            best, what = None, "the platform's file leaves sentiment out"
            do = f"nothing, or change it in config/platforms/{platform}.yaml"
        else:
            what, do = (
                f"it covers {100 * best:.1f} %",
                "`headrace lag` shows what its groups wait for",
            )
        yield _above(platform, best, least, what, do)


def _left_out(look: Look, platform: str, stages: set[str]) -> bool:
    """Whether no sentiment stage reads the platform's raw topic now."""
    for short in stages:
        group = look.topology.group(short)
        raw = [topic.short for topic in group.reads if topic.is_raw and topic.platform == platform]
        out = look.topology.left_out(group, look.settings, look.files)
        if any(topic not in out for topic in raw):
            return False
    return True


def _above(platform: str | None, value: float | None, least: float, what: str, do: str) -> Reading:
    """More than the threshold, or all where all is asked for."""
    if value is None:
        return Reading(platform, "unknown", None, least, f"> {least:g}", what, do)
    good = value > least or value == least == 1
    return Reading(platform, "pass" if good else "fail", value, least, f"> {least:g}", what, do)


def _none(platform: str | None, count: int, what: str, do: str) -> Reading:
    """A count of what should not be there."""
    return Reading(platform, "fail" if count else "pass", count, 0, "= 0", what, do)


GATES = [
    Gate("required_fields", "share of records with all required fields", required_fields),
    Gate("entity_confidence", "mean confidence of mentions", entity_confidence),
    Gate("entity_threshold", "least confidence of a mention", entity_threshold),
    Gate("sums", "stages whose numbers do not add up", sums),
    Gate("outcomes", "outcomes without a record", outcomes_have_records),
    Gate("mentions", "records with mentions of nothing served", mentions_are_served),
    Gate("vectors", "texts embedded without a vector", vectors_are_there),
    Gate("metrics", "age of the figures in hours", metrics_are_current),
    Gate("sentiment_coverage", "share of records with sentiment", sentiment_coverage),
]
