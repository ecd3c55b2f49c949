"""What is scheduled: a whole group, one platform of a group, or a job. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headrace.config import Settings
from headrace.platforms import Platform
from headrace.schedule import Schedule
from headrace.stream.topology import Group, Topic, Topology

Key = tuple[str, str | None]  # short name of the group or job, platform

DISABLED = "disabled"
UNCONFIGURED = "no language model is configured"


@dataclass(frozen=True, slots=True)
class Unit:
    """What has windows of its own.

    topics   what is read in a window; a job reads no topic
    held     why no window is opened now whatever is due; None: none is held back
    minimum  messages that must wait, or the window is left out
    after    units whose windows come first: they write what this one reads
    """

    group: str
    platform: str | None
    when: Schedule
    topics: tuple[Topic, ...] = ()
    held: str | None = None
    minimum: int | None = None
    after: frozenset[Key] = frozenset()
    job: bool = False

    @property
    def key(self) -> Key:
        return self.group, self.platform

    def __str__(self) -> str:
        return f"{self.group} ({self.platform})" if self.platform else self.group


def units(settings: Settings, topology: Topology, platforms: Mapping[str, Platform]) -> list[Unit]:
    """Everything with a schedule, writers before readers. A group that reads one topic a platform
    has a unit a platform, for what a platform's file may say of it."""
    found: list[Unit] = []
    for group in topology.in_order():
        above = {other.short for other in topology.upstream(group)}
        held = topology.left_out(group, settings, platforms, windows=True)
        unpaid = UNCONFIGURED if group.paid and not settings.llm.configured else None
        for platform, topics in _by_platform(group).items():
            when = topology.schedule(group, platform, platforms)
            if when.always:
                continue
            file = platforms.get(platform) if platform is not None else None
            own = file.processing.batch_processing.get(group.short) if file else None
            found.append(
                Unit(
                    group.short,
                    platform,
                    when,
                    topics,
                    held=_held([held.get(topic.short) for topic in topics]) or unpaid,
                    minimum=own.min_new_records if own else None,
                    after=frozenset(
                        unit.key
                        for unit in found
                        if unit.group in above
                        and (unit.platform == platform or None in (platform, unit.platform))
                    ),
                )
            )
    # A job reads what stores have, and so whatever any group makes.
    everything = frozenset(unit.key for unit in found)
    found += [
        Unit(job.short, None, job.when, after=everything, job=True)
        for job in topology.jobs.values()
    ]
    return found


def scheduled(topology: Topology, platforms: Mapping[str, Platform], group: Group) -> bool:
    """Whether a group has a schedule, be it for one platform alone."""
    return any(
        not topology.schedule(group, platform, platforms).always for platform in _by_platform(group)
    )


def reads(
    settings: Settings,
    topology: Topology,
    platforms: Mapping[str, Platform],
    group: Group,
    open_platforms: frozenset[str | None],
) -> tuple[Topic, ...]:
    """What a group reads while these windows of its are open, its redo topic left out: what it
    always reads, and what the windows are for."""
    out = topology.left_out(group, settings, platforms, windows=True)
    return tuple(
        topic
        for topic in group.reads
        if topic.short not in out
        and (
            topic.platform in open_platforms
            or topology.schedule(group, topic.platform, platforms).always
        )
    )


def _by_platform(group: Group) -> dict[str | None, tuple[Topic, ...]]:
    found: dict[str | None, tuple[Topic, ...]] = {}
    for topic in group.reads:
        found[topic.platform] = (*found.get(topic.platform, ()), topic)
    return found


def _held(states: list[str | None]) -> str | None:
    """Only where all topics are held: what may be read is read."""
    if not states or None in states:
        return None
    return DISABLED if set(states) == {"DISABLED"} else "fast mode skips it"
