"""`python -m bench.real DATA`: real files of all platforms on the whole way, then what must hold.

DATA holds folders reddit/, comments/ and social/. Every file is published with its platform in a
project of its own, the groups run to the end, and each check is a line; exit status 1 if any fails.
"""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click
import orjson
import pyarrow.parquet
from python_calamine import CalamineWorkbook

from bench.rig import CLONE, environment, rig
from headrace.config import Settings
from headrace.stores import postgres
from headrace.stream import clients, schemas, topology
from producers.formats import open_rows
from producers.inputs import mappings_of, read_options
from producers.mapping import Mapped, map_rows
from producers.rejects import read_rejects
from producers.transfer import Order

FOLDERS = ("reddit", "comments", "social")
PLATFORMS = {  # the first pattern that fits a file's place in DATA
    "reddit/*": "reddit",
    "comments/reddit_*": "reddit",
    "comments/youtube_*": "youtube",
    "comments/tiktok_*": "tiktok",
    "comments/customer_*": "customer_care",
    "social/customer_care_*": "customer_care",
    "social/facebook_*": "facebook",
    "social/instagram_*": "instagram",
}


@dataclass(slots=True)
class Checks:
    failed: int = 0

    def say(self, good: bool, what: str) -> None:
        self.failed += not good
        print(f"{'ok  ' if good else 'FAIL'}  {what}", flush=True)


@dataclass(slots=True)
class Expected:
    """What the files hold, read once more without a server: rows by file, revisions by id."""

    rows: dict[Path, int] = field(default_factory=dict)
    revisions: Counter[str] = field(default_factory=Counter)


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the receipts here.")
def main(data: Path, path: Path | None) -> None:
    """Publish every file of DATA's folders, run to the end, check everything."""
    files = by_platform(data)
    checks = Checks()
    with rig() as on, on.project() as settings:
        expected = expect(settings, files)
        runs = [publish(settings, platform, paths) for platform, paths in files.items()]
        _published(checks, data, runs, expected)
        ended = command(settings, "run", "--until-caught-up")
        print(ended.stdout.rstrip())
        checks.say(ended.returncode == 0, f"run --until-caught-up ends with {ended.returncode}")
        if ended.returncode:
            print(ended.stderr[-3000:])
        _arrived(checks, settings, runs)
        _stored(checks, settings, expected)
        _clean(checks, settings, len(expected.revisions))
        if path is not None:
            path.write_text(json.dumps(runs, indent=2))
    print("everything holds" if not checks.failed else f"{checks.failed} checks failed")
    sys.exit(1 if checks.failed else 0)


def by_platform(data: Path) -> dict[str, list[Path]]:
    """Every file of the folders, by the platform that it is published for."""
    found: dict[str, list[Path]] = {}
    for file in sorted(file for folder in FOLDERS for file in (data / folder).rglob("*")):
        place = file.relative_to(data).as_posix()
        platform = next((p for pattern, p in PLATFORMS.items() if fnmatch(place, pattern)), None)
        if platform is None:
            raise click.UsageError(f"no platform is known for {place}")
        found.setdefault(platform, []).append(file)
    if not found:
        raise click.UsageError(f"{data} has no files in {', '.join(FOLDERS)}")
    return found


def expect(settings: Settings, files: dict[str, list[Path]]) -> Expected:
    """Rows are counted by plain readers, ids taken from the mapping."""
    expected = Expected()
    for _, file, item in mapped(settings, files):
        expected.rows.setdefault(file, 0)
        if isinstance(item, Mapped):
            expected.revisions[item.id] += 1
    expected.rows = {file: _rows(file) for file in expected.rows}
    return expected


def mapped(
    settings: Settings, files: dict[str, list[Path]]
) -> Iterator[tuple[str, Path, Mapped | Any]]:
    """Every row of every file as `publish` would map it."""
    validator = schemas.validator(settings, "raw_post.v1")
    for platform, paths in files.items():
        mappings = mappings_of(settings, platform)
        options = read_options(settings, Order(run="").options, mappings)
        for file in paths:
            with open_rows(str(file), options) as rows:
                for item in map_rows(rows, mappings, validator=validator):
                    yield platform, file, item


def _rows(file: Path) -> int:
    """Rows of data, counted without Headrace."""
    name = file.name
    match file.suffix:
        case ".csv":
            semicolons, headless = "semicolon" in name, "_trac_" in name
            with file.open(encoding="latin-1", newline="") as stream:
                lines = csv.reader(stream, delimiter=";" if semicolons else ",")
                above = 0 if headless else 2 if semicolons else 1
                return sum(1 for line in lines if line) - above
        case ".json":
            value = json.loads(file.read_text())
            return len(value["values"] if isinstance(value, dict) else value)
        case ".gz":
            with gzip.open(file) as stream:
                return sum(1 for line in stream if line.strip())
        case ".parquet":
            return int(pyarrow.parquet.read_metadata(file).num_rows)
        case ".xlsx":
            sheet = CalamineWorkbook.from_path(file).get_sheet_by_index(0).to_python()
            return sum(1 for row in sheet if any(cell != "" for cell in row)) - 1
    raise click.UsageError(f"{name}: how are its rows counted?")


def command(settings: Settings, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "headrace", *words],
        env=environment(settings),
        capture_output=True,
        text=True,
        cwd=CLONE,
    )


def publish(settings: Settings, platform: str, files: list[Path]) -> dict[str, Any]:
    """The receipt, as `publish --json` prints it."""
    done = command(settings, "publish", "--json", "--platform", platform, *map(str, files))
    if not done.stdout:
        raise RuntimeError(f"publish ended with {done.returncode}: {done.stderr[-3000:]}")
    receipt: dict[str, Any] = json.loads(done.stdout)
    return receipt


def _published(checks: Checks, data: Path, runs: list[dict[str, Any]], expected: Expected) -> None:
    reasons: Counter[str] = Counter()
    for run in runs:
        files = run["files"]
        counts = [sum(file[name] for file in files) for name in ("rows", "published", "rejected")]
        checks.say(
            run["state"] == "done" and all(file["state"] == "done" for file in files),
            f"{run['platform']}: {len(files)} files, {counts[0]:,} rows = {counts[1]:,} published"
            f" + {counts[2]:,} rejected, {run['seconds']:.1f} s ({run['state']})",
        )
        for file in files:
            path = Path(file["path"])
            place = path.relative_to(data).as_posix()
            there, known = file["published"] + file["rejected"], expected.rows[path]
            if there != known:
                checks.say(False, f"{place}: {known:,} rows, {there:,} published or rejected")
            if file["state"] != "done":
                checks.say(False, f"{place}: {file['state']}: {file.get('message')}")
            if file["rejected"]:
                told = [reject.reason for reject in read_rejects(Path(file["rejects_file"]))]
                explained = len(told) == file["rejected"] == sum(file["reasons"].values())
                if not (explained and all(told)):
                    checks.say(False, f"{place}: {file['rejected']:,} rejected, {len(told):,} told")
                reasons.update({f"{place}: {why}": n for why, n in file["reasons"].items()})
    rejected = sum(file["rejected"] for run in runs for file in run["files"])
    rows = sum(expected.rows.values())
    there = sum(f["published"] + f["rejected"] for run in runs for f in run["files"])
    files_there = sum(len(run["files"]) for run in runs)
    checks.say(
        rows == there and files_there == len(expected.rows),
        f"every row of {files_there} files is published or rejected: {there:,} of {rows:,}",
    )
    checks.say(
        sum(reasons.values()) == rejected, f"each of {rejected:,} rejects has a reason and its row"
    )
    for reason, number in reasons.most_common():
        print(f"        {number:,} × {reason}")
    published, ids = expected.revisions.total(), len(expected.revisions)
    records = sum(run["records"] for run in runs)
    checks.say(
        published == records,
        f"receipts say {records:,} records: {ids:,} distinct ids, {published - ids:,} repeats",
    )


def _arrived(checks: Checks, settings: Settings, runs: list[dict[str, Any]]) -> None:
    always = {group.short for group in topology.load(settings).mode("fast")}
    lags = json.loads(command(settings, "lag", "--json").stdout)
    for group in lags:
        if group["group"] not in always:
            print(f"        {group['group']}: lag {group['lag']:,}, {group['state']}")
            continue
        good = group["backlog"] == 0 and group["caught_up"]
        checks.say(good, f"{group['group']}: lag {group['lag']:,}, {group['state']}")
    superseded = 0
    for run in runs:
        waited = command(settings, "wait", run["run"], "--timeout", "60")
        told = json.loads(command(settings, "progress", run["run"], "--json").stdout)
        superseded += told["superseded"] or 0
        good = waited.returncode == 0 and told["done"] and told["passed"] == run["records"]
        checks.say(
            good,
            f"{run['platform']}: progress {told['passed']:,}/{told['records']:,} in"
            f" {len(told['steps'])} steps, {told['superseded']} superseded;"
            f" {(waited.stdout or waited.stderr).strip()}",
        )
    with postgres.connect(settings, readonly=True) as connection:
        row = connection.execute("SELECT count(*) FROM records").fetchone()
    published = sum(run["records"] for run in runs)
    stored = int(row[0]) if row else 0
    checks.say(
        superseded == published - stored,
        f"{published:,} published = {stored:,} rows + {superseded:,} superseded revisions",
    )


def _stored(checks: Checks, settings: Settings, expected: Expected) -> None:
    newest, messages = _newest(settings)
    checks.say(
        messages == expected.revisions.total(),
        f"{messages:,} messages on the raw topics, {expected.revisions.total():,} published",
    )
    ids = set(expected.revisions)
    stages = [group.short for group in quick_stages(settings)]
    with postgres.connect(settings, readonly=True) as connection:
        rows = connection.execute('SELECT id, topic, partition, "offset" FROM records').fetchall()
        records = {row[0]: tuple(row[1:]) for row in rows}
        checks.say(
            records.keys() == ids, f"{len(records):,} rows in records, {len(ids):,} distinct ids"
        )
        repeated = [identity for identity, times in expected.revisions.items() if times > 1]
        fine = sum(records.get(identity) == newest.get(identity) for identity in repeated)
        checks.say(
            records == newest,
            f"the newest revision stands: {fine:,} of {len(repeated):,} repeated ids",
        )
        for stage in stages:
            found = connection.execute(
                "SELECT status, count(*), count(DISTINCT record_id) FROM stage_status"
                " WHERE stage = %s GROUP BY 1",
                [stage],
            ).fetchall()
            counts = {status: number for status, number, _ in found}
            good = sum(counts.values()) == len(ids) and not counts.get("pending")
            told = " + ".join(f"{number:,} {name}" for name, number in sorted(counts.items()))
            checks.say(good, f"{stage}: {told} = {sum(counts.values()):,} records")
            reasons = connection.execute(
                "SELECT outcome, reason, count(*) FROM outcomes WHERE stage = %s AND outcome <>"
                " 'ok' GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 6",
                [stage],
            ).fetchall()
            for outcome, reason, number in reasons:
                print(f"        {number:,} × {outcome}: {reason}")
        levels = connection.execute(
            "SELECT platform, processing_level, records FROM platform_metrics ORDER BY 1"
        ).fetchall()
    total = sum(row[2] for row in levels)
    checks.say(
        total == len(ids) and all(level in ("fast", "full") for _, level, _ in levels),
        f"platform_metrics: {', '.join(f'{p} {level} {n:,}' for p, level, n in levels)}",
    )


def quick_stages(settings: Settings) -> list[topology.Group]:
    """The stages of mode fast, which run at once; the others wait for their hours."""
    return [group for group in topology.load(settings).mode("fast") if group.kind == "stage"]


def _newest(settings: Settings) -> tuple[dict[str, tuple[str, int, int]], int]:
    """Where each id stands last on the raw topics; and how many messages they hold."""
    from confluent_kafka import Consumer, KafkaError, TopicPartition

    newest: dict[str, tuple[str, int, int]] = {}
    messages = 0
    over = {
        "group.protocol": "classic",
        "enable.partition.eof": True,
        "auto.offset.reset": "earliest",
    }
    with clients.admin(settings) as admin:
        raw = {n: c for n, c in admin.topics().items() if n.startswith(f"{settings.project}.raw.")}
    consumer = Consumer(clients.consumer_conf(settings, f"{settings.project}.check", **over))
    parts = [TopicPartition(name, part, 0) for name, count in raw.items() for part in range(count)]
    consumer.assign(parts)
    left = len(parts)
    while left:
        for message in consumer.consume(5_000, 1.0):
            error = message.error()
            if error is None:
                identity = orjson.loads(message.value() or b"{}")["id"]
                newest[identity] = (message.topic(), message.partition(), message.offset())  # type: ignore[assignment]
                messages += 1
            elif error.code() == KafkaError._PARTITION_EOF:
                left -= 1
    consumer.close()
    return newest, messages


def _clean(checks: Checks, settings: Settings, records: int) -> None:
    rows = json.loads(command(settings, "coverage", "--json").stdout)
    for row in rows:
        share = "–" if row["coverage"] is None else f"{row['coverage']:.1%}"
        print(
            f"        {row['platform']:<14}{row['stage']:<10}{row['records']:>8,} records"
            f"{row['ok']:>8,} ok{row['dropped']:>8,} dropped{row['dead']:>4,} dead  {share}"
        )
    for stage in [group.short for group in quick_stages(settings)]:
        mine = [row for row in rows if row["stage"] == stage]
        counted = sum(row["records"] for row in mine)
        good = counted == records and not any(row["pending"] or row["dead"] for row in mine)
        checks.say(good, f"coverage of {stage}: {counted:,} records, none pending, none dead")
    done = command(settings, "doctor", "--json")
    told = json.loads(done.stdout)
    for finding in told["findings"]:
        print(f"        {finding['level']}: {finding['check']}: {finding['what']}")
    good = all(s["balanced"] and s["records"] == records for s in told["sums"])
    stages = len(topology.load(settings).stages())
    checks.say(good and len(told["sums"]) == stages, f"invariant 1: {len(told['sums'])} sums")
    checks.say(done.returncode == 0 and told["clean"], f"doctor ends with {done.returncode}")


if __name__ == "__main__":
    main()
