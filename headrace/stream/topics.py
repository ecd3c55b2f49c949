"""The topics that a broker has beside those that topics.yaml wants, and how to bring them together.

A change is refused where it would lose data, break the order of a key or of revisions, or keep
data shorter than the longest schedule of a reader needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from headrace import platforms as platform_files
from headrace.config import Settings
from headrace.errors import ConfigError, HeadraceError
from headrace.platforms import Platform
from headrace.schedule import DAY_MS, duration_text
from headrace.stream import clients, topology
from headrace.stream.clients import Admin, Wanted
from headrace.stream.topology import Topic, Topology
from headrace.words import count

CLEANUP, RETENTION, SIZE = "cleanup.policy", "retention.ms", "retention.bytes"
TIMESTAMPS, MAX_BYTES = "message.timestamp.type", "max.message.bytes"
_TIMESTAMPS = {"append": "LogAppendTime", "create": "CreateTime"}


@dataclass(frozen=True, slots=True)
class Change:
    """One setting of one topic; `refused` says why it is not made."""

    topic: str
    key: str
    before: str
    after: str
    refused: str | None = None
    loses_data: bool = False  # refused, unless a person accepts just that

    def __str__(self) -> str:
        text = f"{self.topic}: {self.key} {_shown(self.key, self.before)}"
        text += f" → {_shown(self.key, self.after)}"
        return f"{text}: refused, {self.refused}" if self.refused else text


@dataclass(frozen=True)
class Plan:
    """What `topics apply` would do."""

    create: tuple[Topic, ...] = ()
    alter: tuple[Change, ...] = ()
    refused: tuple[Change, ...] = ()
    unknown: tuple[str, ...] = ()  # topics with the project's prefix that nobody wants; left alone
    unchanged: int = 0

    @property
    def is_empty(self) -> bool:
        return not (self.create or self.alter or self.refused)

    def lines(self) -> Iterator[str]:
        """The difference, a line each: + made, ~ changed, ! refused, ? not in topics.yaml."""
        for topic in self.create:
            parts = count(topic.partitions, "partition")
            yield f"+ {topic.name} ({parts}, kept: {kept(topic)})"
        for change in self.alter:
            yield f"~ {change}"
        for change in self.refused:
            yield f"! {change}"
        for name in self.unknown:
            yield f"? {name} is not in topics.yaml; left as it is"


def plan(
    settings: Settings,
    admin: Admin,
    wanted: Topology | None = None,
    *,
    accept_loss: bool = False,
) -> Plan:
    """The difference between broker and topics.yaml.

    Raises ConfigError where topics.yaml itself is at fault: it keeps data shorter than a schedule
    needs, or lets raw topics expire.
    """
    wanted = wanted or topology.load(settings)
    check(wanted, platform_files.load(settings), settings.scheduler.margin_ms)
    there = admin.topics()
    create = tuple(topic for topic in wanted.topics.values() if topic.name not in there)
    present = {topic.name: topic for topic in wanted.topics.values() if topic.name in there}
    configs = admin.configs(present)
    changes = [
        change
        for name, topic in present.items()
        for change in _changes(topic, there[name], configs.get(name, {}))
    ]
    if accept_loss:
        changes = [
            Change(change.topic, change.key, change.before, change.after)
            if change.loses_data
            else change
            for change in changes
        ]
    prefix = f"{settings.project}."
    changed = {change.topic for change in changes}
    return Plan(
        create=create,
        alter=tuple(change for change in changes if not change.refused),
        refused=tuple(change for change in changes if change.refused),
        unknown=tuple(
            sorted(
                name for name in there if name.startswith(prefix) and wanted.by_name(name) is None
            )
        ),
        unchanged=len(present) - len(changed),
    )


def apply(settings: Settings, admin: Admin, plan: Plan) -> None:
    """Carry out a plan; nothing at all where a part of it is refused (HeadraceError)."""
    if plan.refused:
        reasons = "; ".join(str(change) for change in plan.refused)
        raise HeadraceError(f"nothing was changed. {reasons}")
    admin.create(Wanted(topic.name, topic.partitions, config(topic)) for topic in plan.create)
    alter: dict[str, dict[str, str]] = {}
    for change in plan.alter:
        alter.setdefault(change.topic, {})[change.key] = change.after
    admin.alter_configs(alter)


def ensure(
    settings: Settings, wanted: Topology | None = None, admin: Admin | None = None
) -> tuple[Topic, ...]:
    """Create the topics that are missing, and those only; quick when none is. Returns them."""
    wanted = wanted or topology.load(settings)
    if admin is None:
        with clients.admin(settings) as own:
            return ensure(settings, wanted, own)
    there = admin.topics()
    missing = tuple(topic for topic in wanted.topics.values() if topic.name not in there)
    if missing:
        check(wanted, platform_files.load(settings), settings.scheduler.margin_ms)
        admin.create(Wanted(topic.name, topic.partitions, config(topic)) for topic in missing)
    return missing


def config(topic: Topic) -> dict[str, str]:
    """The broker's settings of a topic."""
    return {
        CLEANUP: topic.cleanup,
        RETENTION: str(topic.retention_ms),
        SIZE: "-1",  # topics expire by time, if at all
        TIMESTAMPS: _TIMESTAMPS[topic.timestamps],
        MAX_BYTES: str(topic.max_message_bytes),
    }


def kept(topic: Topic) -> str:
    """How long a topic keeps its messages, for people."""
    return "newest by key" if topic.cleanup == "compact" else duration_text(topic.retention_ms)


def check(wanted: Topology, platforms: Mapping[str, Platform], margin_ms: int = DAY_MS) -> None:
    """Raises ConfigError where a topic would be emptied before its readers come to it, and have had
    `margin_ms` to work."""
    wanted.check_platforms(platforms)
    for topic in wanted.topics.values():
        if topic.cleanup == "compact" and topic.retention_ms >= 0:
            raise ConfigError(f"topics.yaml: {topic.short}: a compacted topic has no retention")
        if topic.is_raw and topic.retention_ms >= 0:
            raise ConfigError(
                f"topics.yaml: {topic.short}: raw topics never expire; compact them, "
                "or keep them forever"
            )
        needed, why = needed_retention(wanted, topic, platforms, margin_ms)
        if topic.retention_ms >= 0 and (needed < 0 or topic.retention_ms < needed):
            raise ConfigError(
                f"topics.yaml: {topic.short}: retention {duration_text(topic.retention_ms)} is "
                f"shorter than the {duration_text(needed)} that {why} needs"
            )


def needed_retention(
    wanted: Topology,
    topic: Topic,
    platforms: Mapping[str, Platform],
    margin_ms: int = DAY_MS,
) -> tuple[int, str]:
    """How long a topic must keep its messages for its slowest reader: milliseconds (-1: for ever)
    and who that is ("group sentiment, cron …")."""
    needed, why = 0, ""
    for group in wanted.readers_of(topic):
        for platform, when in wanted.schedules(group, platforms).items():
            if platform is not None and topic.platform not in (None, platform):
                continue
            longest = when.longest_ms
            reader = f"group {group} ({when.text}{f' on {platform}' if platform else ''})"
            if longest is None:
                return -1, reader
            if not when.always and longest + margin_ms > needed:
                needed, why = longest + margin_ms, reader
    return needed, why


def _changes(topic: Topic, partitions: int, present: Mapping[str, str]) -> Iterator[Change]:
    if partitions != topic.partitions:
        yield Change(
            topic.name,
            "partitions",
            str(partitions),
            str(topic.partitions),
            "keys would move to other partitions and lose their order; correct topics.yaml, or "
            "publish again under a new project name",
        )
    for key, after in config(topic).items():
        before = present.get(key, after)
        if before == after:
            continue
        refused, loses = _objection(topic, key, before, after, present)
        yield Change(topic.name, key, before, after, refused, loses)


def _compacted(present: Mapping[str, str]) -> bool:
    return present.get(CLEANUP) == "compact"


def _objection(
    topic: Topic, key: str, before: str, after: str, present: Mapping[str, str]
) -> tuple[str | None, bool]:
    if key == CLEANUP and after == "compact":
        return "all but the newest message of each key would be lost", True
    if key == CLEANUP and topic.retention_ms >= 0:
        return f"what is older than {duration_text(topic.retention_ms)} would be lost", True
    if key == RETENTION and not _compacted(present) and _shorter(after, before):
        return f"what is older than {duration_text(int(after))} would be lost", True
    if key == TIMESTAMPS and topic.is_raw and after != _TIMESTAMPS["append"]:
        return "the order of revisions rests on the log append time", False
    return None, False


def _shorter(after: str, before: str) -> bool:
    return int(after) >= 0 and (int(before) < 0 or int(after) < int(before))


def _shown(key: str, value: str) -> str:
    return duration_text(int(value)) if key == RETENTION else value
