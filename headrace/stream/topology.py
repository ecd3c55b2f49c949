"""topics.yaml as objects: every topic and every group of a project. Pure; no broker is asked.

`short` names are those of topics.yaml with templates filled in (`raw.posts.reddit`, `text.redo`);
`name` carries the project's prefix and is what Kafka knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from headrace import platforms as platform_files
from headrace import schedule, yamlfile
from headrace.config import Mode, Positive, Section, Settings
from headrace.errors import ConfigError, HeadraceError
from headrace.platforms import Platform
from headrace.schedule import Schedule

Cleanup = Literal["compact", "delete"]
LeftOut = Literal["SCHEDULED", "DISABLED"]


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as topics.yaml wants it."""

    name: str
    short: str
    template: str
    platform: str | None
    description: str
    key: str
    schema: str | None
    partitions: int
    cleanup: Cleanup
    retention_ms: int  # -1: for ever
    timestamps: Literal["create", "append"]
    max_message_bytes: int

    @property
    def is_raw(self) -> bool:
        """Only raw topics give a record its revision."""
        return self.short.startswith("raw.")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch ends at the first of the three."""

    records: int
    bytes: int
    milliseconds: int


@dataclass(frozen=True, slots=True)
class DeadLetterLimits:
    """A group stops past `count` dead letters, or past `share` of at least `of_at_least`."""

    count: int
    share: float
    of_at_least: int


@dataclass(frozen=True, slots=True)
class Member:
    """What topics.yaml lists under `groups`, of whatever kind; `name` carries the project."""

    short: str
    name: str
    module: str
    description: str

    @property
    def application(self) -> str:
        """How those that work in PostgreSQL alone call themselves there."""
        return f"headrace {self.name}"

    def __str__(self) -> str:
        return self.short


@dataclass(frozen=True, slots=True)
class Group(Member):
    """A consumer group as topics.yaml wants it."""

    kind: Literal["stage", "store"]
    reads: tuple[Topic, ...]  # its input, without its redo topic
    outputs: tuple[Topic, ...]  # of a stage: one topic, or one a platform; a store has none
    redo: Topic
    dlt: Topic | None  # stages only; a store's dead letters are rows
    batch: Batch
    when: Schedule
    workers: int
    nice: int  # of its processes: 0, or more to yield the processor to quicker groups
    dead_letters: DeadLetterLimits
    version: str
    rank: int
    facet: str | None
    semantic: bool
    paid: bool  # asks a language model: runs only where one is configured, or when named
    options: Mapping[str, Any] = field(hash=False, default_factory=dict)

    def output(self, topic: Topic) -> Topic | None:
        """Where results go of what was read from this topic: a templated output follows its
        platform. None where there is no such topic."""
        if len(self.outputs) == 1 and self.outputs[0].platform is None:
            return self.outputs[0]
        return next((own for own in self.outputs if own.platform == topic.platform), None)


@dataclass(frozen=True, slots=True)
class Projector(Member):
    """A group that reads no topic: it makes another server a picture of PostgreSQL."""

    batch: Batch
    workers: int


@dataclass(frozen=True, slots=True)
class Job(Member):
    """Work on the whole corpus inside PostgreSQL, now and then (see `headrace.jobs`)."""

    when: Schedule
    version: str


@dataclass(frozen=True, slots=True)
class App(Member):
    """A group of Kafka's that runs itself: it reads topics, commits as it likes, and nothing waits
    for it. It has no redo topic and no dead letters."""

    reads: tuple[Topic, ...]


@dataclass(frozen=True)
class Topology:
    project: str
    topics: dict[str, Topic]  # by short name
    groups: dict[str, Group]  # by short name, in the order of topics.yaml
    projectors: dict[str, Projector]
    jobs: dict[str, Job]
    apps: dict[str, App]
    modes: dict[str, tuple[str, ...]]
    platforms: tuple[str, ...]
    default_batch: Batch
    _by_name: dict[str, Topic]

    def group(self, short: str) -> Group:
        """A group by its name, with or without the project's prefix."""
        found = self.groups.get(short) or self.groups.get(short.removeprefix(f"{self.project}."))
        if found is None:
            known = ", ".join([*self.groups, *self.projectors, *self.jobs, *self.apps])
            raise HeadraceError(f"group {short} is not known; there are: {known}")
        return found

    def projector(self, short: str) -> Projector | None:
        """A projector by its name, with or without the project's prefix; None if it is none."""
        return self.projectors.get(short.removeprefix(f"{self.project}."))

    def job(self, short: str) -> Job | None:
        """A job by its name, with or without the project's prefix; None if it is none."""
        return self.jobs.get(short.removeprefix(f"{self.project}."))

    def app(self, short: str) -> App | None:
        """An app by its name, with or without the project's prefix; None if it is none."""
        return self.apps.get(short.removeprefix(f"{self.project}."))

    def topic(self, short: str) -> Topic:
        if short not in self.topics:
            raise HeadraceError(f"topic {short} is not in topics.yaml (`headrace topics list`)")
        return self.topics[short]

    def by_name(self, name: str) -> Topic | None:
        """The topic with this full name, if it is ours."""
        return self._by_name.get(name)

    def stages(self) -> tuple[Group, ...]:
        return tuple(group for group in self.groups.values() if group.kind == "stage")

    def stores(self) -> tuple[Group, ...]:
        return tuple(group for group in self.groups.values() if group.kind == "store")

    def stage_of(self, topic: Topic) -> Group | None:
        """The stage that writes a topic."""
        return next((group for group in self.groups.values() if topic in group.outputs), None)

    def group_of(self, topic: Topic) -> Group | None:
        """The group whose redo topic or dead letters this is."""
        return next(
            (group for group in self.groups.values() if topic in (group.redo, group.dlt)), None
        )

    def readers_of(self, topic: Topic) -> tuple[Group, ...]:
        """The groups that read a topic, its redo reader included."""
        return tuple(
            group for group in self.groups.values() if topic in group.reads or topic == group.redo
        )

    def upstream(self, group: Group) -> tuple[Group, ...]:
        """The groups whose results or dead letters a group reads."""
        return tuple(
            other
            for other in self.groups.values()
            if any(topic in group.reads for topic in other.outputs) or other.dlt in group.reads
        )

    def in_order(self) -> tuple[Group, ...]:
        """All groups, writers before readers."""
        above = {
            group.short: [other.short for other in self.upstream(group)]
            for group in self.groups.values()
        }
        return tuple(self.groups[short] for short in TopologicalSorter(above).static_order())

    def raw_topics(self) -> tuple[Topic, ...]:
        return tuple(topic for topic in self.topics.values() if topic.is_raw)

    def mode(self, name: Mode | None) -> tuple[Group, ...]:
        """The groups that a mode runs; no mode is all of them."""
        return tuple(self.groups[short] for short in self._members(name) if short in self.groups)

    def projectors_of(self, name: Mode | None) -> tuple[Projector, ...]:
        """The projectors that a mode runs."""
        members = self._members(name)
        return tuple(self.projectors[short] for short in members if short in self.projectors)

    def jobs_of(self, name: Mode | None) -> tuple[Job, ...]:
        """The jobs that a mode runs."""
        return tuple(self.jobs[short] for short in self._members(name) if short in self.jobs)

    def _members(self, name: Mode | None) -> tuple[str, ...]:
        return self.modes.get(name or "full", (*self.groups, *self.projectors, *self.jobs))

    def subscription(
        self, group: Group | str, settings: Settings, platforms: Mapping[str, Platform]
    ) -> list[Topic]:
        """What a group really reads now (without its redo topic)."""
        out = self.left_out(group, settings, platforms)
        group = self.group(group) if isinstance(group, str) else group
        return [topic for topic in group.reads if topic.short not in out]

    def left_out(
        self,
        group: Group | str,
        settings: Settings,
        platforms: Mapping[str, Platform],
        *,
        windows: bool = False,
    ) -> dict[str, LeftOut]:
        """The topics (short names) that a group leaves unread for now, and their state.

        DISABLED: `batch_processing.<group>.enabled: false`. SCHEDULED: fast mode and a `skip_*`
        that means this group; and, unless `windows` are looked at elsewhere, topics with a schedule
        of a group that reads others always. The topic's lag stands meanwhile.
        """
        group = self.group(group) if isinstance(group, str) else group
        out: dict[str, LeftOut] = {}
        if not windows:
            rests = [
                topic
                for topic in group.reads
                if not self.schedule(group, topic.platform, platforms).always
            ]
            if len(rests) < len(group.reads):
                out = {topic.short: "SCHEDULED" for topic in rests}
        for topic in group.reads:
            platform = platforms.get(topic.platform) if topic.platform else None
            if platform is None:
                continue
            own = platform.processing.batch_processing.get(group.short)
            if own is not None and not own.enabled:
                out[topic.short] = "DISABLED"
            elif platform.mode(settings) == "fast" and _is_skipped(group, platform):
                out[topic.short] = "SCHEDULED"
        return out

    def batch(
        self, group: Group | str, settings: Settings, platforms: Mapping[str, Platform]
    ) -> Batch:
        """When a group's batch ends. Records: `processing.batch_size` of the settings, else the
        smallest `batch_processing.<group>.batch_size` of its platforms, else the group's own."""
        group = self.group(group) if isinstance(group, str) else group
        read = {topic.platform for topic in group.reads}
        written = [
            platform.processing.batch_processing.get(group.short)
            for name, platform in platforms.items()
            if name in read
        ]
        own = [batch.batch_size for batch in written if batch and batch.batch_size]
        records = settings.processing.batch_size or min(own, default=group.batch.records)
        return replace(group.batch, records=records)

    def schedules(
        self, group: Group, platforms: Mapping[str, Platform]
    ) -> dict[str | None, Schedule]:
        """When a group runs: by platform where the platform says so, and its own under None."""
        found: dict[str | None, Schedule] = {None: group.when}
        for name, platform in platforms.items():
            own = platform.processing.batch_processing.get(group.short)
            if own is not None and own.schedule is not None:
                found[name] = schedule.parse(own.schedule)
        return found

    def schedule(
        self, group: Group, platform: str | None, platforms: Mapping[str, Platform]
    ) -> Schedule:
        """When a group reads the topics of one platform (None: those of no platform)."""
        found = self.schedules(group, platforms)
        return found.get(platform, found[None])

    def check_platforms(self, platforms: Mapping[str, Platform]) -> None:
        """Raises ConfigError where a platform's batch_processing names a group that is none."""
        for platform in platforms.values():
            for stage in platform.processing.batch_processing:
                if stage not in self.groups:
                    raise yamlfile.read(platform.path).error(
                        ("processing", "batch_processing", stage),
                        f"there is no such group; there are: {', '.join(self.groups)}",
                    )


def load(settings: Settings) -> Topology:
    """topics.yaml for the settings' project and platforms. Raises ConfigError, naming the line."""
    return _build(yamlfile.read(settings.path("topics")), settings, platform_files.names(settings))


def _is_skipped(group: Group, platform: Platform) -> bool:
    skip = platform.processing.fast_mode
    return (
        (skip.skip_sentiment and group.facet == "sentiment")
        or (skip.skip_semantic and group.semantic)
        or (skip.skip_vectorization and group.facet == "embeddings")
    )


# topics.yaml as it is written.


class _Defaults(Section):
    partitions: Positive = 4
    timestamps: Literal["create", "append"] = "create"
    max_message_bytes: Positive = 4 * 2**20


class _Topic(Section):
    description: str
    key: str
    schema_: str | None = Field(default=None, alias="schema")
    cleanup: Cleanup
    retention: str | None = None
    partitions: Positive | None = None
    timestamps: Literal["create", "append"] | None = None
    max_message_bytes: Positive | None = None

    @field_validator("retention")
    @classmethod
    def _is_duration(cls, value: str | None) -> str | None:
        if value not in (None, "forever"):
            schedule.duration_ms(str(value))
        return value

    @property
    def retention_ms(self) -> int:
        if self.retention in (None, "forever"):
            return -1
        return schedule.duration_ms(str(self.retention))


class _Batch(Section):
    records: Positive | None = None
    bytes: Positive | None = None
    milliseconds: Positive | None = None


class _DeadLetters(Section):
    count: Positive | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    of_at_least: Positive | None = None


class _GroupDefaults(Section):
    batch: _Batch = _Batch()
    when: str | None = None
    workers: Positive | None = None
    nice: Annotated[int, Field(ge=0, le=19)] | None = None
    dead_letters: _DeadLetters = _DeadLetters()

    @field_validator("when")
    @classmethod
    def _is_schedule(cls, value: str | None) -> str | None:
        if value is not None:
            schedule.parse(value)
        return value


class _Group(_GroupDefaults):
    description: str
    kind: Literal["stage", "store", "projector", "job", "app"]
    module: str
    reads: tuple[str, ...] = ()
    writes: str | None = None
    version: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    rank: Positive | None = None
    facet: str | None = None
    semantic: bool = False
    paid: bool = False
    options: dict[str, Any] = Field(default_factory=dict)


class _File(Section):
    defaults: _Defaults = _Defaults()
    topics: dict[str, _Topic]
    groups: dict[str, _Group]
    group_defaults: _GroupDefaults = _GroupDefaults()
    modes: dict[Mode, Literal["all"] | tuple[str, ...]] = Field(default_factory=dict)


_BATCH = Batch(records=2000, bytes=4 * 2**20, milliseconds=200)
_LIMITS = DeadLetterLimits(count=1000, share=0.5, of_at_least=200)
_OF_KAFKA = ("stage", "store")  # kinds that are consumer groups
_NAME = re.compile(r"^[a-z][a-z0-9_]{0,39}$")


def _build(document: yamlfile.Document, settings: Settings, platforms: tuple[str, ...]) -> Topology:
    file = document.check(_File)
    for name in file.groups:
        if not _NAME.match(name):
            raise document.error(
                ("groups", name), "a group's name is lower-case letters, digits and underscores"
            )
    project = settings.project
    fillings = {
        "platform": platforms,
        "group": tuple(name for name, group in file.groups.items() if group.kind in _OF_KAFKA),
        "stage": tuple(name for name, group in file.groups.items() if group.kind == "stage"),
    }
    topics: dict[str, Topic] = {}
    for template, written in file.topics.items():
        for topic in _fill(document, file.defaults, project, template, written, fillings):
            if topic.short in topics:
                raise document.error(("topics", template), f"{topic.short} stands here twice")
            topics[topic.short] = topic
    groups = {
        name: _group(document, file, project, name, topics, platforms)
        for name, written in file.groups.items()
        if written.kind in _OF_KAFKA
    }
    projectors = {
        name: _projector(document, file, project, name)
        for name, written in file.groups.items()
        if written.kind == "projector"
    }
    jobs = {
        name: _job(document, file, project, name)
        for name, written in file.groups.items()
        if written.kind == "job"
    }
    apps = {
        name: _app(document, file, project, name, topics)
        for name, written in file.groups.items()
        if written.kind == "app"
    }
    _check_graph(document, groups)
    modes = {
        str(mode): (*groups, *projectors, *jobs) if members == "all" else tuple(members)
        for mode, members in file.modes.items()
    }
    for mode, members in modes.items():
        for member in members:
            if member not in file.groups:
                raise document.error(("modes", mode), f"there is no group {member}")
            if member in apps:
                raise document.error(("modes", mode), f"{member} runs in every mode")
    by_name = {topic.name: topic for topic in topics.values()}
    default_batch = Batch(**(_given(_BATCH) | _given(file.group_defaults.batch)))
    return Topology(
        project, topics, groups, projectors, jobs, apps, modes, platforms, default_batch, by_name
    )


def _fill(
    document: yamlfile.Document,
    defaults: _Defaults,
    project: str,
    template: str,
    written: _Topic,
    fillings: Mapping[str, tuple[str, ...]],
) -> Iterable[Topic]:
    variables = re.findall(r"\{(\w*)\}", template)
    if len(variables) > 1 or (variables and variables[0] not in fillings):
        raise document.error(
            ("topics", template), f"one of {{{'}, {'.join(fillings)}}} can stand in a name, once"
        )
    variable = variables[0] if variables else None
    for value in fillings[variable] if variable else ("",):
        short = template.replace(f"{{{variable}}}", value)
        if not re.match(r"^[a-z0-9_.]{1,200}$", short):
            raise document.error(
                ("topics", template),
                "a topic's name is lower-case letters, digits, dots and underscores",
            )
        yield Topic(
            name=f"{project}.{short}",
            short=short,
            template=template,
            platform=value if variable == "platform" else None,
            description=written.description,
            key=written.key,
            schema=written.schema_,
            partitions=written.partitions or defaults.partitions,
            cleanup=written.cleanup,
            retention_ms=written.retention_ms,
            timestamps=written.timestamps or defaults.timestamps,
            max_message_bytes=written.max_message_bytes or defaults.max_message_bytes,
        )


def _group(
    document: yamlfile.Document,
    file: _File,
    project: str,
    name: str,
    topics: Mapping[str, Topic],
    platforms: tuple[str, ...],
) -> Group:
    at = ("groups", name)
    written, defaults = file.groups[name], file.group_defaults
    for key in ("reads", "version", "rank"):
        if not getattr(written, key):
            raise document.error((*at, key), "is required")
    assert written.version is not None and written.rank is not None
    assert written.kind == "stage" or written.kind == "store"

    def named(short: str, key: str) -> Topic:
        if short not in topics:
            raise document.error((*at, key), f"there is no topic {short}")
        return topics[short]

    own = {f"{name}.redo", f"{name}.dlt"}
    reads: dict[str, Topic] = {}
    for index, pattern in enumerate(written.reads):
        glob = pattern.replace("{platform}", "*")
        found = [
            topic
            for topic in topics.values()
            if fnmatchcase(topic.short, glob) and topic.short not in own
        ]
        if "{platform}" in pattern:
            found = [topic for topic in found if topic.template == pattern]
        if not found:
            raise document.error((*at, "reads", index), f"there is no topic {pattern}")
        if written.kind == "store" and "*" in pattern:
            found = [topic for topic in found if not _is_orphan(topic, file)]
        reads.update((topic.short, topic) for topic in found)
    if written.kind == "stage" and written.writes is None:
        raise document.error(at, "a stage writes a topic: `writes` is required")
    if written.kind == "store" and written.writes is not None:
        raise document.error((*at, "writes"), "a store group writes to its database only")
    outputs: tuple[Topic, ...] = ()
    if written.writes is not None and "{platform}" in written.writes:
        outputs = tuple(t for t in topics.values() if t.template == written.writes)
        if not outputs:
            raise document.error((*at, "writes"), f"there is no topic {written.writes}")
        if any(topic.platform is None for topic in reads.values()):
            raise document.error(
                (*at, "writes"), "one topic a platform is possible only where it reads such topics"
            )
    elif written.writes is not None:
        outputs = (named(written.writes, "writes"),)
    return Group(
        short=name,
        name=f"{project}.{name}",
        kind=written.kind,
        module=written.module,
        description=written.description,
        reads=tuple(reads.values()),
        outputs=outputs,
        redo=named(f"{name}.redo", "kind"),
        dlt=named(f"{name}.dlt", "kind") if written.kind == "stage" else None,
        batch=Batch(**(_given(_BATCH) | _given(defaults.batch) | _given(written.batch))),
        when=schedule.parse(written.when or defaults.when or "always"),
        workers=written.workers or defaults.workers or 1,
        nice=(written.nice if written.nice is not None else defaults.nice) or 0,
        dead_letters=DeadLetterLimits(
            **(_given(_LIMITS) | _given(defaults.dead_letters) | _given(written.dead_letters))
        ),
        version=written.version,
        rank=written.rank,
        facet=written.facet,
        semantic=written.semantic,
        paid=written.paid,
        options=written.options,
    )


def _is_orphan(topic: Topic, file: _File) -> bool:
    """Whether a topic is left of a stage that has been removed: no store knows what stands there.
    It stays unread, so that the stage, when it comes back, finds its readers where they were."""
    written = {group.writes for group in file.groups.values()}
    own = not topic.is_raw and not re.search(r"\{(group|stage)\}", topic.template)
    return own and not written & {topic.short, topic.template}


def _projector(document: yamlfile.Document, file: _File, project: str, name: str) -> Projector:
    written, defaults = file.groups[name], file.group_defaults
    for key in ("reads", "writes", "when", "dead_letters"):
        if key in written.model_fields_set:
            raise document.error((*("groups", name), key), "a projector reads PostgreSQL, always")
    return Projector(
        short=name,
        name=f"{project}.{name}",
        module=written.module,
        description=written.description,
        batch=Batch(**(_given(_BATCH) | _given(defaults.batch) | _given(written.batch))),
        workers=written.workers or defaults.workers or 1,
    )


def _job(document: yamlfile.Document, file: _File, project: str, name: str) -> Job:
    written = file.groups[name]
    for key in ("reads", "writes", "rank", "batch", "workers", "nice", "dead_letters"):
        if key in written.model_fields_set:
            raise document.error((*("groups", name), key), "a job works on all of PostgreSQL")
    for key in ("version", "when"):
        if not getattr(written, key):
            raise document.error((*("groups", name), key), "is required")
    when = schedule.parse(str(written.when))
    if when.always:
        raise document.error((*("groups", name), "when"), "a job runs now and then, not always")
    return Job(
        short=name,
        name=f"{project}.{name}",
        module=written.module,
        description=written.description,
        when=when,
        version=str(written.version),
    )


def _app(
    document: yamlfile.Document, file: _File, project: str, name: str, topics: Mapping[str, Topic]
) -> App:
    at, written = ("groups", name), file.groups[name]
    for key in sorted(written.model_fields_set - {"description", "kind", "module", "reads"}):
        raise document.error((*at, key), "an app runs itself: it is told what it reads only")
    if not written.reads:
        raise document.error((*at, "reads"), "is required")
    for index, short in enumerate(written.reads):
        if short not in topics:
            raise document.error((*at, "reads", index), f"there is no topic {short}")
    reads = tuple(topics[short] for short in written.reads)
    return App(name, f"{project}.{name}", written.module, written.description, reads)


def _given(values: Batch | DeadLetterLimits | Section) -> dict[str, Any]:
    names = type(values).model_fields if isinstance(values, Section) else values.__slots__
    return {name: value for name in names if (value := getattr(values, name)) is not None}


def _check_graph(document: yamlfile.Document, groups: Mapping[str, Group]) -> None:
    """One writer a topic, and no group that reads what comes of its own output."""
    writers: dict[Topic, str] = {}
    for name, group in groups.items():
        for topic in group.outputs:
            if topic in writers:
                raise document.error(
                    ("groups", name, "writes"),
                    f"{topic.short} is written by {writers[topic]} already",
                )
            writers[topic] = name
    order = TopologicalSorter(
        {
            name: {writers[topic] for topic in group.reads if topic in writers}
            for name, group in groups.items()
        }
    )
    try:
        order.prepare()
    except CycleError as error:
        circle = " → ".join(error.args[1])
        raise ConfigError(f"{document.path}: groups read in a circle: {circle}") from None
