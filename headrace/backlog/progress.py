"""How far a run has come: counted by offsets passed between where it began and where it ended.

A receipt counts records, Kafka counts offsets, which also number the markers of transactions and
what others published meanwhile. So a part is given as its share of the run's offsets, rounded
down, and all of the records only when every offset is passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

import psycopg

from headrace.backlog.model import GroupLag, PartitionLag
from headrace.backlog.receipts import Receipt, Where
from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.llm import cost as costs
from headrace.llm import standing
from headrace.stores import postgres
from headrace.stream.topology import Topology


@dataclass(frozen=True, slots=True)
class Step:
    """One way that the run's records go: into a stage, or what a store keeps (raw or a stage's).

    left_out  records on topics that the group does not read now, part of `records`
    """

    group: str
    what: str  # "" for a stage; for a store "records" or the stage whose results it keeps
    passed: int
    records: int
    left_out: int = 0

    @property
    def share(self) -> float:
        return self.passed / self.records if self.records else 1.0

    def as_dict(self) -> dict[str, object]:
        return {
            "group": self.group,
            "what": self.what or "records",
            "passed": self.passed,
            "records": self.records,
            "left_out": self.left_out,
            "share": round(self.share, 4),
        }


@dataclass(frozen=True, slots=True)
class Progress:
    """superseded  records of the run that a newer revision has replaced; None if not known
    calls, cost    of language models, for the run's records; cost in USD
    waits  why groups that have not passed all of the run ask no language model now
    requests       in batches, by group, whatever run their records are of
    """

    receipt: Receipt
    steps: tuple[Step, ...]
    superseded: int | None = None
    calls: int = 0
    cost: Decimal = Decimal(0)
    waits: Mapping[str, str] = field(default_factory=dict)
    requests: Mapping[str, standing.InFlight] = field(default_factory=dict)

    @property
    def passed(self) -> int:
        """Records that have come through everything that may run now."""
        return min((s.passed + s.left_out for s in self.steps), default=self.receipt.records)

    @property
    def done(self) -> bool:
        return self.receipt.ended and self.passed >= self.receipt.records

    def as_dict(self) -> dict[str, object]:
        receipt = self.receipt
        requests = {group: one.as_dict() for group, one in self.requests.items()}
        return {
            "run": receipt.run,
            "state": receipt.state,
            "records": receipt.records,
            "rejected": receipt.rejected,
            "passed": self.passed,
            "done": self.done,
            "superseded": self.superseded,
            "continued_by": receipt.superseded,
            "steps": [step.as_dict() for step in self.steps],
            **({"calls": self.calls, "cost": float(self.cost)} if self.calls else {}),
            **({"waits": dict(self.waits)} if self.waits else {}),
            **({"requests": requests} if requests else {}),
        }


def progress(receipt: Receipt, topology: Topology, lags: Sequence[GroupLag]) -> Progress:
    """Pure. `lags` are samples of all groups, taken after the receipt was read."""
    known = {lag.group: lag for lag in lags}
    steps: list[Step] = []
    through: dict[str, Step] = {}  # by stage
    for group in topology.in_order():
        if group.short not in known:
            continue
        rows = {(p.topic, p.partition): p for p in known[group.short].partitions if not p.redo}
        what = "records" if group.kind == "store" else ""
        raw = _passed_raw(group.short, receipt, rows, what)
        if raw is not None:
            steps.append(raw)
        for stage in dict.fromkeys(topology.stage_of(topic) for topic in group.reads):
            if stage is None or stage.short not in through:
                continue
            written = {topic.name for topic in stage.outputs}  # one, or one a platform
            behind = sum(p.lag for p in rows.values() if p.topic in written)
            above = through[stage.short]
            kept = max(above.passed - behind, 0)
            what = stage.short if group.kind == "store" else ""
            steps.append(Step(group.short, what, kept, above.records, above.left_out))
        if not group.when.always:  # what it has not passed waits for its hour, as it should
            steps = [
                replace(step, left_out=step.records - step.passed)
                if step.group == group.short
                else step
                for step in steps
            ]
        if group.kind == "stage":
            own = [step for step in steps if step.group == group.short]
            if own:
                through[group.short] = min(own, key=lambda step: step.share)
    return Progress(receipt, tuple(steps))


def superseded(settings: Settings, progress: Progress) -> int | None:
    """Records of a run that newer revisions (or the run itself, by a repeat) have replaced.

    Known once a store has all of the run's raw records; None before, or without PostgreSQL.
    """
    stored = [s for s in progress.steps if s.what == "records"]
    if not stored or not progress.receipt.ended or any(s.passed < s.records for s in stored):
        return None
    try:
        with postgres.connect(settings, readonly=True) as connection:
            row = connection.execute(
                "SELECT count(*) FROM records r JOIN dim_run d ON d.id = r.run_id WHERE d.run = %s",
                [progress.receipt.run],
            ).fetchone()
    except (HeadraceError, psycopg.Error):
        return None
    return max(progress.receipt.records - int(row[0]), 0) if row else None


def paid(settings: Settings, progress: Progress) -> Progress:
    """With what language models were asked for the run, what they are asked by batches, and why
    they are not asked now; nothing without PostgreSQL."""
    groups = {step.group for step in progress.steps}
    behind = {step.group for step in progress.steps if step.passed < step.records}
    try:
        with postgres.connect(settings, readonly=True) as connection:
            calls, cost = costs.of_run(connection, progress.receipt.run)
            refused = standing.refused(connection, settings)
            requests = standing.in_flight(connection, sorted(groups))
    except (HeadraceError, psycopg.Error):
        return progress
    waits = {group: one.reason for group, one in refused.items() if group in behind}
    return replace(progress, calls=calls, cost=cost, waits=waits, requests=requests)


def _passed_raw(
    group: str, receipt: Receipt, rows: Mapping[Where, PartitionLag], what: str
) -> Step | None:
    """The share of the run's own offsets that a group has passed; None if it reads none of them."""
    spans: dict[str, list[tuple[PartitionLag, int, int]]] = {}
    for where, (start, end) in receipt.spans.items():
        if where in rows:
            spans.setdefault(where[0], []).append((rows[where], start, end))
    if not spans:
        return None
    records = passed = left_out = 0
    for topic, parts in spans.items():
        count = receipt.counts[topic]
        records += count
        if parts[0][0].held is not None:
            left_out += count
            continue
        whole = sum(end - start for _, start, end in parts)
        gone = sum(min(max(row.position - start, 0), end - start) for row, start, end in parts)
        passed += count if gone >= whole else max(min(count * gone // whole, count - 1), 0)
    return Step(group, what, passed, records, left_out)
