"""The figures of a small corpus, beside a recount in Python of what was published and answered."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import pytest

from headrace import gates
from headrace.backlog import lag as lags
from tests.world import World

Value = dict[str, Any]
STAGES = ("text", "entities", "sentiment")


def corpus() -> list[Value]:
    """Posts and comments of two platforms that share authors, entities and communities."""
    texts = (
        "I love my new iPhone from Apple, it is wonderful and works great every day",
        "Nike shoes are terrible, they broke after a week and nobody at Nike answers me",
        "The weather in London is what it always is in the month of November",
        "Me encanta este producto, es muy bueno y lo recomiendo a todos mis amigos",
        "Google and Amazon announce something that nobody has asked them for, as usual",
    )
    found = []
    for number in range(60):
        platform = ("reddit", "youtube")[number % 3 == 0]
        kind = "comment" if number % 4 == 1 else "post"
        value: Value = {
            "id": f"{kind}:{platform}:{number}", "kind": kind, "platform": platform,
            "native_id": str(number), "text": texts[number % len(texts)],
            "metrics": {"score": number, "likes": 2 * number, "views": 1000},
        }  # fmt: skip
        if number % 7:
            value["author"] = f"Author {number % 9}"
        if number % 5:
            value["community"] = ("Shared Place", f"only {platform}")[number % 2]
        if number % 6:
            day = date(2024, 1, 1) + timedelta(days=number // 2)
            value["created_at"] = f"{day}T{number % 24:02}:30:00Z"
        found.append(value)
    return found


class Recount:
    """What the figures should be, from the last value of each id and the stages' messages."""

    def __init__(self, values: list[Value], answers: dict[str, list[Value]]) -> None:
        last = {value["id"]: value for value in values}
        self.records = {key: value for key, value in last.items() if not value.get("deleted")}
        self.served: dict[str, dict[str, Value]] = {stage: {} for stage in STAGES}
        self.outcomes: dict[str, dict[str, str]] = {stage: {} for stage in STAGES}
        for stage, messages in answers.items():
            for message in messages:
                self.outcomes[stage][message["id"]] = message["outcome"]
                if message["outcome"] == "ok":
                    self.served[stage][message["id"]] = message["result"]

    def of(self, platform: str | None) -> Value:
        mine = {k: v for k, v in self.records.items() if platform in (None, v["platform"])}
        scores = {k: self.served["sentiment"][k] for k in mine if k in self.served["sentiment"]}
        labels = Counter(score["label"] for score in scores.values())
        days = [
            date.fromisoformat(v["created_at"][:10]) for v in mine.values() if "created_at" in v
        ]
        mentions: Counter[tuple[str, str]] = Counter()
        naming: dict[tuple[str, str], set[str]] = defaultdict(set)
        for key in mine:
            for entity in self.served["entities"].get(key, {}).get("entities", ()):
                mentions[entity["type"], entity["name"]] += 1
                naming[entity["type"], entity["name"]].add(key)
        return {
            "records": len(mine),
            "posts": sum(v["kind"] == "post" for v in mine.values()),
            "comments": sum(v["kind"] == "comment" for v in mine.values()),
            "authors": len({(v["platform"], v["author"]) for v in mine.values() if "author" in v}),
            "communities": len(
                {(v["platform"], v["community"]) for v in mine.values() if "community" in v}
            ),
            "engagement": sum(v["metrics"]["score"] + v["metrics"]["likes"] for v in mine.values()),
            **{label: labels[label] for label in ("positive", "neutral", "negative")},
            "sentiment": pytest.approx(_mean(s["score"] for s in scores.values()), abs=6e-4),
            "languages": Counter(self.served["text"][k]["language"] for k in mine),
            "by_day": Counter(map(str, days)),
            "by_week": Counter(str(day - timedelta(days=day.weekday())) for day in days),
            "top_entities": {
                entity: (
                    count,
                    len(naming[entity]),
                    pytest.approx(
                        _mean(scores[key]["score"] for key in naming[entity] if key in scores),
                        abs=6e-4,
                    ),
                )
                for entity, count in mentions.items()
            },
            "stages": {
                stage: Counter({"drop": "dropped"}.get(said[key], said[key]) for key in mine)
                for stage, said in self.outcomes.items()
            },
        }


def _mean(numbers: Any) -> float | None:
    listed = list(numbers)
    return sum(listed) / len(listed) if listed else None


def told(world: World) -> dict[str | None, Value]:
    """metrics_current in the shape of the recount."""
    rows = [row for (row,) in world.sql("SELECT to_jsonb(m) FROM metrics_current m")]
    for row in rows:
        row["top_entities"] = {
            (e["type"], e["name"]): (e["mentions"], e["records"], e["sentiment"])
            for e in row["top_entities"]
        }
        row["stages"] = {
            stage: Counter({k: n for k, n in said.items() if k in ("ok", "dropped", "dead") and n})
            for stage, said in row["stages"].items()
            if stage in STAGES
        }
    return {row["platform"]: row for row in rows}


def test_figures_are_what_a_recount_finds(worlds: Callable[..., World]) -> None:
    world = worlds(flags={"metrics.top": 100})
    values = corpus()
    world.publish(values)
    again = [
        {**values[3], "text": "This is awful, Apple should be ashamed of it", "author": "Author 1"},
        {"id": values[4]["id"], "kind": values[4]["kind"], "platform": values[4]["platform"],
         "deleted": True},
    ]  # fmt: skip
    world.publish(again)
    world.run(*STAGES)
    assert "done in" in world.command("job", "run", "metrics").stdout
    answers = {stage: world.values(f"enriched.{stage}") for stage in STAGES}
    recount = Recount([*values, *again], answers)
    found = told(world)
    assert set(found) == {None, "reddit", "youtube"}
    for platform, row in found.items():
        wanted = recount.of(platform)
        assert {name: row[name] for name in wanted} == wanted, platform
        assert row["processing_level"] == "fast", "all but the scheduled stages have answered"
    assert recount.of(None)["top_entities"], "the texts name something"

    across = found[None]["across"]
    shares = {name: found[name]["records"] / 59 for name in ("reddit", "youtube")}
    assert across["shares"] == pytest.approx(shares, abs=1e-4)
    names: dict[str, set[str]] = defaultdict(set)
    for value in recount.records.values():
        if "author" in value:
            names[value["author"]].add(value["platform"])
    assert across["shared_authors"] == sum(len(where) == 2 for where in names.values())
    both = found["reddit"]["top_entities"].keys() & found["youtube"]["top_entities"].keys()
    assert across["shared_entities"] == len(both) > 0
    assert {(e["type"], e["name"]) for e in across["top_shared_entities"]} == both
    (place,) = across["top_shared_communities"]
    assert place["slug"] == "shared-place"
    assert place["records"] == sum(place["platforms"].values())
    assert "Author" not in json.dumps(across), "authors are counted, not named"

    (lag,) = lags.read(world.settings, ["metrics"])
    assert (lag.kind, lag.lag) == ("job", 0)
    states = {(g.gate, g.reading.platform): g.state for g in gates.judge(world.settings)}
    assert set(states.values()) == {"pass"}, states
    assert ("metrics", "youtube") in states

    world.publish([{**values[0], "id": "post:reddit:late", "native_id": "late"}])
    world.run("postgres", "metrics")
    later = told(world)[None]["records"]
    assert later == recount.of(None)["records"] + 1, "the job runs when the store has caught up"
    kept = world.sql("SELECT records FROM metrics_history WHERE platform IS NULL AND NOT current")
    assert kept == [(later - 1,)]


def on_a_schedule(content: Value) -> None:
    """A scheduled stage, the store that keeps what it finds, and the job, all in mode batch."""
    groups = content["groups"]
    for name in set(groups) - {"text", "postgres", "metrics"}:
        content["topics"].pop(groups.pop(name).get("writes"), None)
    groups["text"]["when"] = 'cron "0 3 * * *"'
    content["modes"] = {"batch": ["text", "metrics"]}


def test_in_batch_mode_a_job_comes_last(worlds: Callable[..., World]) -> None:
    """Its window is opened and closed like a group's, and it sees what the groups have made."""
    world = worlds(change=on_a_schedule, flags={"scheduler.look_seconds": 0.5})
    world.post(n=5, texts=["plain English words that anybody understands"])
    world.command("run", "--mode", "batch", "--until-caught-up")
    rows = world.sql("SELECT platform, stages->'text'->'ok' FROM metrics_current")
    assert sorted(rows, key=str) == [("reddit", 5), (None, 5)]
    found = world.sql('SELECT DISTINCT "group", state FROM windows')
    assert sorted(found) == [("metrics", "done"), ("text", "done")]
