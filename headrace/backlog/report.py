"""Lag and progress as people read them (tables, lines) and as programs do (dictionaries)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headrace.backlog.model import STALL_SECONDS, GroupLag, PartitionLag, State
from headrace.backlog.progress import Progress
from headrace.llm.admission import usd
from headrace.words import count

COLUMNS = ("GROUP", "TOPIC", "LAG", "REDO", "IN/S", "OUT/S", "BEHIND", "ETA", "STATE")
LEFT = {
    "RUN",
    "BATCH",
    "MODEL",
    "DAY",
    "WHEN",
    "LAST",
    "NEXT",
    "GROUP",
    "TOPIC",
    "STATE",
    "STAGE",
    "PLATFORM",
    "STORED",
}
COLOURS = {
    State.CATCHING_UP: "cyan",
    State.OK: "green",
    State.DONE: "green",
    State.WAITING: "yellow",
    State.WAITING_BUDGET: "yellow",
    State.PAUSED: "bold yellow",
    State.SCHEDULED: "blue",
    State.RUNNING: "cyan",
    State.DISABLED: "dim",
    State.STALL: "bold red",
    State.STOPPED: "yellow",
    State.DATA_LOSS: "bold red",
}


def span(seconds: float | None) -> str:
    """A length of time, two units at most: "45 s", "3 min 20 s", "2 d 4 h"; never; – if unknown."""
    if seconds is None:
        return "–"
    if math.isinf(seconds):
        return "never"
    if 0 < seconds < 1:
        return "<1 s"
    left = round(seconds)
    for size, unit, smaller, small in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if left >= size:
            rest = left % size // smaller
            return f"{left // size} {unit}" + (f" {rest} {small}" if rest else "")
    return f"{left} s"


def columns(detail: str) -> tuple[str, ...]:
    return COLUMNS if detail else tuple(name for name in COLUMNS if name != "TOPIC")


def rate(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def rows(groups: Iterable[GroupLag], *, detail: str, project: str) -> list[tuple[str, ...]]:
    """Cells by `columns`: a row a group, then its topics (`detail` topics or partitions)."""
    found: list[tuple[str, ...]] = []
    for group in groups:
        state = told(str(group.state), group.reason, group.requests)
        eta = group.eta()
        cells = (f"{group.lag:,}", f"{group.redo:,}", rate(group.rate_in), rate(group.rate_out))
        name = (group.group, "") if detail else (group.group,)
        times = (span(group.seconds_behind), span(eta))
        if not group.partitions and group.members is None:  # nobody could be asked
            cells, times = ("–",) * 4, ("–",) * 2
        found.append((*name, *cells, *times, state))
        if not detail:
            continue
        for topic, parts in group.topics():
            short = topic.removeprefix(f"{project}.")
            found.append(("", short, *_cells(group, parts)))
            if detail == "partitions":
                found += [("", f"  {p.partition}", *_cells(group, (p,))) for p in parts]
    return found


def told(state: str, reason: str | None, requests: object = None) -> str:
    """The cell of a state: why, and what is under way by batches."""
    why = "; ".join(str(one) for one in (reason, requests) if one)
    return f"{state}  {why}".rstrip()


def _cells(group: GroupLag, parts: Sequence[PartitionLag]) -> tuple[str, ...]:
    lag = sum(p.lag for p in parts)
    ins = [p.rate_in for p in parts if p.rate_in is not None]
    outs = [p.rate_out for p in parts if p.rate_out is not None]
    times = [p.oldest_ms for p in parts if p.lag and p.oldest_ms is not None]
    behind = 0.0 if lag == 0 else (group.at_ms - min(times)) / 1000 if times else None
    etas = [p.eta() for p in parts if p.lag]
    known = [eta for eta in etas if eta is not None]
    eta = 0.0 if not etas else max(known) if len(known) == len(etas) else None
    if parts[0].held is not None:
        eta = None  # nobody works on it now
    counted = f"{lag:,}"
    where = ("", counted) if parts[0].redo else (counted, "")
    return (
        *where,
        rate(sum(ins) if ins else None),
        rate(sum(outs) if outs else None),
        span(max(behind, 0.0) if behind is not None else None),
        span(eta),
        "DATA_LOSS" if any(p.lost for p in parts) else str(parts[0].held or ""),
    )


def show(cells: Sequence[Sequence[str]], names: Sequence[str]) -> None:
    """A table on standard output. A terminal too narrow for its numbers is left to break lines:
    better than to see half of each; the last column alone may be cut off."""
    console = Console()
    if not console.is_terminal:
        click.echo(plain(cells, names))
        return
    widths = [max(map(cell_len, column)) for column in zip(names, *cells, strict=True)]
    whole = sum(widths) + 2 * len(widths)
    if whole - widths[-1] + len("SCHEDULED") > console.width:
        console.width = max(console.width, whole)
    console.print(table(cells, names))


def table(cells: Iterable[Sequence[str]], names: Sequence[str]) -> Table:
    """For a terminal."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in names:
        made.add_column(column, justify="left" if column in LEFT else "right", no_wrap=True)
    for row in cells:
        state = row[-1].split(" ")[0]
        style = COLOURS.get(State(state)) if state in State.__members__ else None
        made.add_row(*map(Text, row[:-1]), Text(row[-1], style=style or ""))
    return made


def plain(cells: Iterable[Sequence[str]], names: Sequence[str]) -> str:
    """The same as aligned text, whatever the width of what it goes to."""
    lines = [tuple(names), *map(tuple, cells)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(names))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if name in LEFT else cell.rjust(width)
            for cell, width, name in zip(line, widths, names, strict=True)
        ).rstrip()
        for line in lines
    )


def line(group: GroupLag) -> str:
    """One group in one line of a log."""
    why = "; ".join(str(one) for one in (group.reason, group.requests) if one)
    why = f" ({why})" if why else ""
    return (
        f"{group.group} {group.state}{why} lag={group.lag} redo={group.redo}"
        f" in={rate(group.rate_in)}/s out={rate(group.rate_out)}/s"
        f" behind={span(group.seconds_behind)} eta={span(group.eta())}"
    )


def as_dict(group: GroupLag, stall_seconds: float = STALL_SECONDS) -> dict[str, Any]:
    """For programs. An `eta_seconds` of null with `eta_never` true is an honest never."""
    return {
        "group": group.group,
        "consumergroup": group.name,
        "kind": group.kind,
        "state": str(group.state),
        "reason": group.reason or None,
        "lag": group.lag,
        "redo": group.redo,
        "backlog": group.backlog,
        "held": group.held,
        "caught_up": group.caught_up,
        "members": group.members,
        "requests": group.requests.as_dict() if group.requests else None,
        "rate_in": group.rate_in,
        "rate_out": group.rate_out,
        "seconds_behind": group.seconds_behind,
        **_eta(group.eta(stall_seconds)),
        "partitions": [
            {
                "topic": p.topic,
                "partition": p.partition,
                "redo": p.redo,
                "start": p.start,
                "end": p.end,
                "committed": p.committed,
                "lag": p.lag,
                "lost": p.lost,
                "state": str(p.held) if p.held else None,
                "rate_in": p.rate_in,
                "rate_out": p.rate_out,
                "oldest_ms": p.oldest_ms,
                **_eta(p.eta()),
            }
            for p in group.partitions
        ],
    }


def progress_text(progress: Progress) -> str:
    receipt = progress.receipt
    lines = [f"Run {receipt.run}: {receipt.state}, {count(receipt.records, 'record')}"]
    if receipt.rejected:
        lines[0] += f", {receipt.rejected:,} rejected"
    if receipt.superseded:
        lines[0] += f"; goes on as run {receipt.superseded}"
    lines.append(f"Progress: {progress.passed}/{receipt.records}")
    steps = [
        (
            step.group,
            {"": "", "records": "records as published"}.get(step.what, f"results of {step.what}"),
            f"{step.passed}/{step.records}",
            f"{100 * step.passed // step.records if step.records else 100} %",
            f"{step.left_out} left out for now" if step.left_out else "",
        )
        for step in progress.steps
    ]
    if steps:
        widths = [max(len(step[n]) for step in steps) for n in range(5)]
        lines += [
            f"  {g.ljust(widths[0])}  {w.ljust(widths[1])}  {n.rjust(widths[2])}"
            f"  {share.rjust(widths[3])}  {note}".rstrip()
            for g, w, n, share, note in steps
        ]
    if progress.calls:
        calls = count(progress.calls, "call")
        lines.append(f"Cost: {usd(progress.cost)} for {calls} of language models")
    lines += [f"Waits: {group}: {reason}" for group, reason in progress.waits.items()]
    lines += [f"Waits: {group}: {requests}" for group, requests in progress.requests.items()]
    if progress.superseded:
        old = count(progress.superseded, "record")
        lines.append(f"{old} superseded: a newer revision stands in their place")
    return "\n".join(lines)


def _eta(seconds: float | None) -> dict[str, Any]:
    never = seconds is not None and math.isinf(seconds)
    return {"eta_seconds": None if never else seconds, "eta_never": never}
