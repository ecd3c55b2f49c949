"""Headrace from Python: publish, run, wait, read, search, for notebooks and scripts.

    from headrace import Headrace

    hr = Headrace()
    run = hr.publish("posts.csv", platform="reddit")
    hr.run()
    table = hr.read("sentiment", platform="reddit").to_pandas()

Everything here does what the command of that name does. A mistake is a HeadraceError, one line; a
server that is not there a ServerUnavailable, which is one too. Signals are left alone, so Ctrl-C
(or a notebook's stop button) is a KeyboardInterrupt, raised when what was begun is finished.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from headrace import config as configuration
from headrace.config import Mode as RunMode
from headrace.config import Settings
from headrace.errors import HeadraceError, ServerUnavailable
from headrace.log import get

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.backlog.coverage import Coverage
    from headrace.backlog.model import GroupLag
    from headrace.backlog.wait import Waited
    from headrace.reading import Reading
    from headrace.search.query import Hit, Mode, Searcher
    from headrace.supervisor import Report

log = get(__name__)
T = TypeVar("T")
Several = str | Sequence[str] | None


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """`state`: done, known (it was published before), limited, stopped, superseded or failed."""

    path: str
    state: str
    mapping: str
    rows: int
    published: int
    rejected: int
    rejects_file: str | None
    message: str | None


@dataclass(frozen=True, slots=True)
class Published:
    """One publish: its run, which `wait` takes, and what became of each file."""

    run: str
    state: str
    records: int
    rejected: int
    files: tuple[PublishedFile, ...]


class PublishFailed(HeadraceError):
    """Some file is not out; `published` says what is."""

    def __init__(self, message: str, published: Published) -> None:
        super().__init__(message)
        self.published = published


class Headrace:
    """One project, with the settings that its commands have.

    config   another file than config/headrace.yaml (or settings that are loaded already)
    project  another project than the settings'
    flags    settings over the file's: `kafka__bootstrap_servers="…"`

    Nothing is connected until something is asked. Only `search` keeps a connection; `close`, or a
    `with` statement, ends it.
    """

    def __init__(
        self,
        config: str | Path | Settings | None = None,
        project: str | None = None,
        **flags: Any,
    ) -> None:
        """Raises ConfigError naming the file and key, the variable or the flag."""
        if isinstance(config, Settings):
            if project is not None or flags:
                raise HeadraceError("settings that are loaded already take no flags")
            self.settings = config
        else:
            given = {name.replace("__", "."): value for name, value in flags.items()}
            self.settings = configuration.load({"config": config, "project": project, **given})
        self._searcher: Searcher | None = None

    def __repr__(self) -> str:
        return f"Headrace(project={self.settings.project!r})"

    def __enter__(self) -> Headrace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._searcher is not None:
            self._searcher.close()
            self._searcher = None

    # -- records in

    def publish(
        self,
        *paths: str | Path,
        platform: str | None = None,
        kind: Literal["posts", "communities"] | None = None,
        mapping: str | None = None,
        limit: int | None = None,
        again: bool = False,
        progress: bool = False,
    ) -> Published:
        """Publish files, folders or patterns as `headrace publish` does; returns when all is out.

        limit     only so many rows of each file
        again     publish what was published already
        progress  show how it goes

        A publish that was broken off goes on when it is called again. Raises HeadraceError for a
        path or platform that is not known, PublishFailed where some file is not out.
        """
        from producers import display, receipts, sources
        from producers.publish import Publish
        from producers.transfer import Order

        if not paths:
            raise HeadraceError("publish: name at least one file, folder or pattern")
        files = sources.expand(map(str, paths))
        if sources.STDIN in files:
            raise HeadraceError("publish: standard input is the command's; name a file")
        self._ask_kafka()
        order = Order(
            run=receipts.new_run(),
            kind=kind or "posts",
            platform=platform,
            mapping=mapping,
            limit=limit,
            again=again,
        )
        # One after the other: a crew's processes would import the caller's own program again.
        publishing = self.settings.publishing.model_copy(update={"workers": 1})
        settings = self.settings.model_copy(update={"publishing": publishing})
        shown = display.choose(False) if progress else display.Silent()
        stop = threading.Event()
        work = Publish(settings, order, files, shown, stop.is_set)
        receipt = _apart(work.go, stop.set)
        value = receipt.value()
        published = Published(
            run=receipt.run,
            state=receipt.state,
            records=value["records"],
            rejected=value["rejected"],
            files=tuple(
                PublishedFile(
                    path=file.path,
                    state=file.state,
                    mapping=file.mapping,
                    rows=file.rows,
                    published=file.published,
                    rejected=file.rejected,
                    rejects_file=file.rejects_file,
                    message=file.message,
                )
                for file in receipt.files
            ),
        )
        wrong = [file for file in published.files if file.state in ("failed", "superseded")]
        if wrong:
            more = f" (and {len(wrong) - 1:,} more)" if len(wrong) > 1 else ""
            said = wrong[0].message or wrong[0].state
            raise PublishFailed(f"publish: {wrong[0].path}: {said}{more}", published)
        return published

    # -- work

    def run(self, *groups: str, mode: RunMode | None = None, workers: int | None = None) -> Report:
        """Run groups until nothing is left for them, each in processes of its own, as `headrace
        run --until-caught-up` does; without a name all that the mode runs.

        The report counts records by group and outcome; `waiting` names the groups that have work
        left which they cannot do, and why: look at it. Raises HeadraceError for an unknown group.
        """
        from headrace.stream import commands
        from headrace.supervisor import Report

        self._ask_kafka()
        supervisor = commands.supervised(
            commands.in_mode(self.settings, mode),
            groups,
            workers=workers,
            until_caught_up=True,
            say=log.info,
        )
        if supervisor is None:
            return Report(0, 0.0)
        return _apart(supervisor.run, supervisor.stop)

    def wait(
        self,
        run: str | Published = "latest",
        stages: Sequence[str] = (),
        timeout: float | None = None,
    ) -> Waited:
        """Wait until a run has reached the last store, whoever works on it; with `stages` only
        those groups and what they need. Raises HeadraceError after `timeout` seconds, saying who
        waits for whom."""
        from headrace.backlog import wait

        self._ask_kafka()
        name = run.run if isinstance(run, Published) else run
        found = wait.wait(self.settings, name, stages, timeout=timeout)
        if not found.arrived:
            said = "; ".join(found.reasons())
            raise HeadraceError(f"run {found.receipt.run} has not arrived in {timeout:g} s: {said}")
        return found

    def lag(self, *groups: str) -> list[GroupLag]:
        """What waits in front of every group, or of those named."""
        from headrace.backlog.lag import Reader

        self._ask_kafka()
        with Reader(self.settings) as reader:
            return reader.read(groups, times=True, projectors=True)

    def coverage(self) -> list[Coverage]:
        """Which share of the records each stage has answered, by platform."""
        from headrace.backlog import coverage

        return coverage.read(self.settings)

    # -- records out

    def read(
        self,
        what: str,
        platform: str | None = None,
        chunk: int = 10_000,
        columns: Sequence[str] | None = None,
        since: str | date | None = None,
    ) -> Reading:
        """Posts, or one facet of them, as Arrow record batches: iterate over it, or take
        `.to_table()` or `.to_pandas()`.

        what      "posts" (with what is served of the quick facets), or a facet: "text",
                  "sentiment", "entities" (a row a mention), "embeddings" (the settings' model's), …
        chunk     records looked at for a batch: memory is a batch's, whatever is stored
        columns   only these; also the record's own that a facet does not show unasked (`text`)
        since     records created since then: a date, a time, or an age ("7 days")

        Each record comes once, with what is served of it: the highest-ranked result of its newest
        revision that has one, `stale` while that is not its current revision. Raises HeadraceError
        for what is not known.
        """
        from headrace.models import embedding
        from headrace.reading import Reading
        from headrace.stream import topology

        space = embedding.space_of(self.settings.embeddings) if what == "embeddings" else None
        return Reading(
            self.settings,
            topology.load(self.settings),
            what,
            platform=platform,
            chunk=chunk,
            columns=columns,
            since=since,
            space=space,
        )

    def search(
        self,
        words: str,
        mode: Mode | None = None,
        platform: Several = None,
        *,
        kind: Several = None,
        sentiment: str | None = None,
        entity: Several = None,
        community: str | None = None,
        author: str | None = None,
        language: str | None = None,
        since: str | None = None,
        until: str | None = None,
        limit: int = 10,
    ) -> list[Hit]:
        """The best hits, best first, by `mode`: "keyword", "semantic" or "hybrid"; left out: hybrid
        or, where there are no vectors to ask, the words alone. Filters as `headrace search` has
        them. Raises HeadraceError where there is nothing to ask yet, ServerUnavailable."""
        from headrace.search.query import Filters, Searcher

        filters = Filters(
            platforms=_several(platform),
            kinds=_several(kind),
            sentiment=sentiment,
            entities=_several(entity),
            community=community,
            author=author,
            language=language,
            since=since,
            until=until,
        )
        if self._searcher is None:
            self._searcher = Searcher(self.settings)
        try:
            return self._searcher.search_as_can_be(words, mode, filters, limit)
        except ServerUnavailable:
            self.close()  # the next question connects anew
            raise

    def sql(self, query: str) -> pa.Table:
        """The answer to a query, as a table; nothing can be changed by it. `posts`, `entities`,
        `coverage` and the other views are documented in docs/postgres.md."""
        from headrace.stores import arrow

        return arrow.query(self.settings, query)

    def _ask_kafka(self) -> None:
        from headrace.backlog import reach

        reach.kafka(self.settings)


def _several(names: Several) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())


def _apart(work: Callable[[], T], stop: Callable[[], object]) -> T:
    """The work's result, done in a thread of its own: signals stay Python's. Interrupted, it is
    asked to stop and waited for."""
    future: Future[T] = Future()
    begun = threading.Event()

    def run() -> None:
        begun.set()
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    try:
        threading.Thread(target=run, name="headrace").start()
        return future.result()
    except KeyboardInterrupt:
        stop()
        if begun.wait(5):  # else the interrupt came before the thread did
            wait([future])
        raise
