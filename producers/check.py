"""`publish --check FILE`: what would become of a file, with nothing published."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import orjson

from headrace.errors import HeadraceError
from producers.mapping import Mapped, MappedRows, Rejected

_WIDE = 160  # characters of one value in the view


@dataclass
class CheckReport:
    """Five records as they would be published, and counts of the rest by reason."""

    file: str
    detected: str
    platform: str
    mapping: str
    version: str
    rows: int = 0
    valid: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, int] = field(default_factory=dict)  # reason: line of the first such row
    left_out: dict[str, int] = field(default_factory=dict)  # field: values that were not readable
    deletions: int = 0
    empty_texts: int = 0
    nul_removed: int = 0
    whole: bool = True  # whether the file was read to its end
    ended: str | None = None  # why it could not be read to its end

    @property
    def rejected(self) -> int:
        return sum(self.reasons.values())

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "file": self.file,
            "detected": self.detected,
            "platform": self.platform,
            "mapping": self.mapping,
            "version": self.version,
            "rows": self.rows,
            "valid": self.valid,
            "rejected": self.rejected,
            "reasons": [
                {"reason": reason, "rows": count, "first_line": self.examples[reason]}
                for reason, count in self.reasons.most_common()
            ],
            "left_out": self.left_out,
            "deletions": self.deletions,
            "empty_texts": self.empty_texts,
            "nul_removed": self.nul_removed,
            "whole": self.whole,
            "ended": self.ended,
            "records": self.records,
        }

    def __str__(self) -> str:
        lines = [f"{self.file}: {self.detected}", f"mapping {self.platform}.{self.mapping}", ""]
        for record in self.records:
            lines += [*_shown(record), ""]
        scope = "" if self.whole else " of the first rows"
        lines.append(f"{self.valid:,}{scope} would be published, {self.rejected:,} rejected")
        lines += [
            f"  {count:,} × {reason} (first on line {self.examples[reason]:,})"
            for reason, count in self.reasons.most_common()
        ]
        lines += [
            f"  {count:,} × {name} could not be read and is left out"
            for name, count in self.left_out.items()
        ]
        if self.deletions:
            lines.append(f"  {self.deletions:,} of them are deletions")
        if self.empty_texts:
            lines.append(f"  {self.empty_texts:,} records have no text")
        if self.nul_removed:
            lines.append(f"  NUL characters taken out of {self.nul_removed:,} records")
        if self.ended:
            lines.append(f"  the rest cannot be read: {self.ended}")
        return "\n".join(lines)


def check(mapped: MappedRows, *, limit: int | None = None, show: int = 5) -> CheckReport:
    """Map a file to its end, or `limit` rows of it."""
    mapping = mapped.mapping
    report = CheckReport(
        mapped.rows.name,
        str(mapped.rows.detected),
        mapping.platform,
        mapping.name,
        mapping.version,
    )
    try:
        for row in mapped:
            if limit is not None and report.rows >= limit:
                report.whole = False
                break
            _count(report, row, show)
    except HeadraceError as error:
        report.ended, report.whole = str(error), False
    report.left_out = dict(mapped.left_out)
    report.nul_removed = mapped.nul_removed
    return report


def _count(report: CheckReport, row: Mapped | Rejected, show: int) -> None:
    report.rows += 1
    if isinstance(row, Rejected):
        report.reasons[row.reason] += 1
        report.examples.setdefault(row.reason, row.number)
        return
    report.valid += 1
    if "deleted" in row.record:
        report.deletions += 1
    else:
        report.empty_texts += not row.record["text"]
    if len(report.records) < show:
        report.records.append(orjson.loads(row.value))


def _shown(record: dict[str, Any]) -> list[str]:
    lines = []
    for key, value in record.items():
        if key in ("kind", "platform") or value is None:
            continue
        text = value if isinstance(value, str) else orjson.dumps(value).decode()
        text = " ".join(text.split())
        lines.append(f"  {key:<11} {text[:_WIDE]}{'…' if len(text) > _WIDE else ''}")
    return lines
