"""`headrace gates`."""

from __future__ import annotations

import json
from collections.abc import Callable

import click

from headrace.config import Settings

FAILED, UNKNOWN = 1, 3  # exit statuses; 0: all pass


@click.command()
@click.option("--platform", help="Only the gates of this platform.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def gates(load: Callable[[], Settings], platform: str | None, as_json: bool) -> int:
    """Whether what is stored is as good as it should be.

    Exit status: 0 where every gate is passed, 1 where one fails, 3 where none fails and of some
    nothing can be said yet.
    """
    from headrace.gates import judge

    found = judge(load(), platform)
    if as_json:
        click.echo(json.dumps([told.as_dict() for told in found], indent=2))
    else:
        width = max(len(told.gate) for told in found)
        names = max(len(told.reading.platform or "all") for told in found)
        for told in found:
            reading = told.reading
            value = "–" if reading.value is None else f"{round(reading.value, 4):g}"
            click.echo(
                f"{reading.state:<8}{told.gate:<{width}}  {reading.platform or 'all':<{names}}"
                f"  {value:>8} {reading.wanted:<8}  since {told.since:%Y-%m-%d %H:%M} UTC".rstrip()
            )
            if reading.state != "pass":
                click.echo(f"        {reading.what}\n        → {reading.do}")
    states = {told.state for told in found}
    return FAILED if "fail" in states else UNKNOWN if "unknown" in states else 0
