"""An order carried out: each step does what can be done now and leaves the rest for the next call.

    select     the records that are meant, until the store has seen all that stood when it was made
    publish    their deletions, and communities without the posts that they quoted
    follow     the readers: what each has passed, until no content can come any more
    empty      tables, rejects files; at the end authors' names and snapshots too
    purge      if asked: topics kept by time up to what all have read, raw topics by the cleaner

Steps are done again after a kill; each of them may be done twice. One process at a time works.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from headrace import decisions
from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.forget import orders, purge, reach, sending, tables
from headrace.forget.orders import Order, Selection, Wanted
from headrace.forget.places import TABLES, content_topics
from headrace.log import get
from headrace.redo import sending as redo
from headrace.snapshots import removal as snapshots
from headrace.stores import migrate, postgres
from headrace.stream import clients, topics, topology
from headrace.stream.clients import Admin
from headrace.stream.topology import Topology

log = get(__name__)

POLL_SECONDS = 0.5
_LOOK_SECONDS = 2.0  # between two looks through raw topics
_TOGETHER = 100  # communities
_LEAVE_SECONDS = 5.0  # then what can be purged is purged, whoever is still to come
_LOCK = "SELECT pg_try_advisory_lock(hashtext('headrace forget ' || current_schema()))"


class TakeOut(Protocol):
    """Takes what an order forgets out of files that `headrace` itself knows nothing of; returns
    how many lines. `look`: only count."""

    def __call__(self, settings: Settings, wanted: Wanted, *, look: bool = False) -> int: ...


class Forgetting:
    """Works on orders. Use `with`; raises HeadraceError where another process does."""

    def __init__(self, settings: Settings, rejects: TakeOut) -> None:
        self.settings = settings
        self.topology: Topology = topology.load(settings)
        self._rejects = rejects
        topics.ensure(settings, self.topology)
        migrate.upgrade(settings, self.topology)
        self._connection = postgres.connect(
            settings, autocommit=True, application="headrace forget"
        )
        self._connection.execute("SET statement_timeout = 0")  # a platform may be a million rows
        self._admin: Admin = clients.admin(settings)
        self._stopping: Callable[[], bool] = lambda: False
        self._looker: tuple[str, purge.Looker] | None = None
        self._looked = float("-inf")

    def __enter__(self) -> Forgetting:
        if self._connection.execute(_LOCK).fetchone() != (True,):
            self.close()
            raise HeadraceError("another `headrace forget` works just now; try again later")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()
        self._admin.close()

    def orders(self, number: str | None = None) -> list[Order]:
        return orders.read(self._connection, number)

    def unfinished(self, *, purge: bool = False) -> list[Order]:
        """Orders that are not done, the oldest first; `purge`: all are to be purged."""
        found = []
        for order in reversed(self.orders()):
            if purge and order.state != "purged" and not order.purge:
                order.purge = True
                orders.save(self._connection, order)
            if order.state == "open" or (order.purge and order.state != "purged"):
                found.append(order)
        return found

    def look(self, selection: Selection) -> dict[str, int]:
        """How much there is of it, by place; nothing is changed."""
        with self._connection.transaction(force_rollback=True):
            order = orders.make(self._connection, self.topology, selection, purge=False)
            return self._found(order)

    def make(self, selection: Selection, *, purge: bool) -> Order:
        """A new order. What it found stands in its counts."""
        with self._connection.transaction():
            order = orders.make(self._connection, self.topology, selection, purge=purge)
            raw = [topic.name for topic in self.topology.raw_topics()]
            order.progress["reach"] = self._readers().ends(raw)
            orders.save(self._connection, order)
        return order

    def set_back(self) -> None:
        """Set back what killed purges have left changed on topics; for when none is going on."""
        purge.set_back(self._connection, self._admin)

    def go_on(
        self,
        order: Order,
        *,
        seconds: float,
        stopping: Callable[[], bool] = lambda: False,
        tell: Callable[[Order], object] = lambda order: None,
    ) -> Order:
        """Work on an order until it is done or nothing has moved for so many seconds."""
        self._stopping = stopping
        moved, before, leaving = time.monotonic(), "", False
        while True:
            self.step(order, leaving=leaving)
            tell(order)
            now = "; ".join(order.waits)
            if now != before:
                moved, before = time.monotonic(), now
            if not order.waits or stopping():
                return order
            still = time.monotonic() - moved
            if still > seconds and (leaving or not order.purge):
                return order
            if still > min(seconds, _LEAVE_SECONDS) and order.purge and not leaving:
                moved, leaving = time.monotonic(), True
            time.sleep(POLL_SECONDS)

    def step(self, order: Order, *, leaving: bool = False) -> None:
        """Whatever can be done now; `order.waits` says what is still to come. `leaving`: purge what
        can be purged although some readers are yet to come."""
        if order.state == "purged" or (order.state == "forgotten" and not order.purge):
            order.waits = []
            return
        order.waits = []
        if order.state == "open":
            self._forget(order)
            orders.save(self._connection, order)
        if order.purge and "ends" in order.progress and (order.state != "open" or leaving):
            self._purge(order)
        orders.save(self._connection, order)

    # -- forgetting

    def _forget(self, order: Order) -> None:
        if not self._select(order):
            return
        if not self._publish(order):
            return
        readers = self._readers()
        ends = order.progress["ends"]
        raw = {name: ends[name] for name in ends if name in self._raw()}
        if not order.progress.get("emptied"):
            for store in self.topology.stores():
                if behind := readers.behind(store, raw):
                    order.waits.append(reach.waits_for(readers, store, behind))
            if order.waits:
                return
            self._empty(order)  # what people see goes at once; late comers at the end
            order.progress["emptied"] = True
        if not self._note_redo(order, readers):
            return
        order.waits += reach.follow(readers, order)
        if not order.waits and not order.progress.get("anew"):
            self._have_made_anew(order, readers)
        marked = tables.marked(self._connection, order) if self.settings.search.enabled else 0
        if marked and not order.waits:
            order.waits.append(f"search has {marked:,} marks to work on")
        if not order.waits and self._empty(order):
            order.waits.append("what people had decided meanwhile is to be read")
        if order.waits:
            return
        tables.authors(self._connection, order)
        order.count("snapshots", self._clean_snapshots(order))
        order.state, order.finished_at = "forgotten", datetime.now(UTC)
        order.subject = None

    def _note_redo(self, order: Order, readers: reach.Readers) -> bool:
        """What stands on the redo topics is to be passed as well. All of it is there once no table
        holds content that could be queued, and no command is queueing what it has read before."""
        ends = order.progress["ends"]
        groups = [g for g in self.topology.groups.values() if g.redo.name not in ends]
        for group in groups:
            if not redo.idle(self._connection, self.settings, group):
                order.waits.append(f"another command is queueing work of {group.short}")
        if not order.waits:
            ends.update(readers.ends(group.redo.name for group in groups))
        return not order.waits

    def _select(self, order: Order) -> bool:
        progress = order.progress
        if progress.get("selected"):
            return True
        readers = self._readers()
        behind = 0
        if order.selection["kind"] != "records":
            behind = sum(readers.behind(s, progress["reach"]) for s in self.topology.stores())
        with self._connection.transaction():
            orders.select(self._connection, order)
            for record in tables.letters_of_nobody(self._connection, order):
                orders.add(self._connection, self.topology, order, record)
            progress["selected"] = not behind
            if not behind:
                for place, number in tables.found(self._connection, order).items():
                    order.count(place, number)
            orders.save(self._connection, order)
        if behind:
            order.waits.append(f"the stores have {behind:,} records to read before all are known")
            # What is known already need not wait.
            sending.deletions(self._connection, self._sending(order), order, self._stopping)
        return not behind

    def _publish(self, order: Order) -> bool:
        """True once everything is out, and the ends of what the readers must pass are noted."""
        if "ends" in order.progress:
            return True
        sender = self._sending(order)
        if not sending.deletions(self._connection, sender, order, self._stopping):
            order.waits.append("it was told to stop before all deletions were out")
            return False
        if not self._publish_quotes(order, sender):
            return False
        ends: reach.Ends = {}
        for (topic, partition), end in (
            purge.Looker(self.settings, self._connection, order).places().items()
        ):
            ends.setdefault(topic, {})[str(partition)] = end
        order.progress["ends"] = ends
        sender.receipt(*sending.receipt(self._connection, self.topology, order))
        orders.save(self._connection, order)
        return True

    def _publish_quotes(self, order: Order, sender: sending.Sender) -> bool:
        """Communities anew. Only of their newest revisions, so the store must have them all."""
        name = self.topology.topic("raw.communities").name
        readers = self._readers()
        ends = readers.ends([name])
        behind = sum(readers.behind(store, ends) for store in self.topology.stores())
        if behind:
            order.waits.append(f"the stores have {behind:,} communities to read")
            return False
        now = ends.get(name, {})
        spans = order.progress.get("quotes", {}).get(name, {})
        found = sending.quotes(self._connection, order)
        if not found:
            ours = {at: [span[0], now[at]] for at, span in spans.items() if now[at] > span[0]}
            order.progress["quotes"] = {name: ours} if ours else {}
            return True
        # Where they may come to stand is noted first: after a kill nobody else knows.
        order.progress["quotes"] = {name: {at: [end, end] for at, end in now.items()} | spans}
        order.count("communities", len(found))
        known = {record for _, record, _ in found}.union(order.progress.get("quoting", ()))
        order.progress["quoting"] = sorted(known)
        orders.save(self._connection, order)
        sender.send(found)
        return self._publish_quotes(order, sender)  # waits until these are stored

    def _have_made_anew(self, order: Order, readers: reach.Readers) -> None:
        """What a language model made of communities that quoted. Nobody reads what they were any
        more, so the next answer is about what they are."""
        ids = order.progress.get("quoting", [])
        for first in range(0, len(ids), _TOGETHER):
            part = ids[first : first + _TOGETHER]
            taken = tables.take_back(self._connection, self.settings, order, part)
            for stage, records in taken.items():
                group = self.topology.groups.get(stage)
                if group is not None and not readers.left_out(group):
                    redo.queue(self.settings, self.topology, group, records, f"forget {order.id}")
        order.progress["anew"] = True
        orders.save(self._connection, order)

    def _empty(self, order: Order) -> bool:
        """Whether something of it is still to be read by the stores."""
        tables.empty(self._connection, order)
        topic = self.topology.topic(decisions.TOPIC).name
        taken = sending.decided(self._connection, self.settings, topic, order)
        for (name, partition), end in taken.items():
            order.progress["ends"].setdefault(name, {})[str(partition)] = end
        order.count("rejects", self._rejects(self.settings, Wanted(self._connection, order)))
        return bool(taken)

    def _clean_snapshots(self, order: Order, *, look: bool = False) -> int:
        """Rows taken out of snapshots. A community is there again by catching up."""
        wanted = Wanted(self._connection, order)
        gone: dict[str, int | None] = {}
        for ids in orders.chunks(self._connection, order):
            gone.update(wanted.offsets(ids))
        anew = sending.places_of(self._connection, order)
        gone.update(anew)
        names = {(platform, name) for platform, name in (order.subject or {}).get("gone", ())}
        taken = snapshots.forget(
            self.settings,
            gone,
            authors=names,
            platforms=[wanted.platform] if wanted.whole_platform and wanted.platform else (),
            letters=lambda key, topic, value: tables.is_of(wanted, key, topic, value),
            anew=anew,
            dry_run=look,
        )
        return sum(taken.values())

    def _found(self, order: Order) -> dict[str, int]:
        orders.select(self._connection, order)
        found = tables.found(self._connection, order)
        found["dead_letters"] = tables.letters(self._connection, order, only_look=True)
        found["communities"] = len(sending.quotes(self._connection, order))
        wanted = Wanted(self._connection, order)
        found["rejects"] = self._rejects(self.settings, wanted, look=True)
        found["snapshots"] = self._clean_snapshots(order, look=True)
        return found

    # -- purging

    def _purge(self, order: Order) -> None:
        readers = self._readers()
        ends = order.progress["ends"]
        there = (topic for topic in content_topics(self.topology) if topic.name in ends)
        by_time = [topic for topic in there if topic.cleanup == "delete"]
        upto, kept = reach.removable(readers, order, by_time)
        done = order.progress.setdefault("purged", {})
        raw = {topic for topic, _ in self._look_for(order).places()}
        ended = done.setdefault("upto", {})
        begin = (raw | {topic for topic, _ in upto if topic not in kept}) - ended.keys()
        if begin:
            for (topic, partition), offset in purge.begin_files(
                self.settings, self._connection, self._admin, begin
            ).items():
                ended.setdefault(topic, {})[str(partition)] = offset
            for topic in begin:
                ended.setdefault(topic, {})  # one without messages
            orders.save(self._connection, order)
            upto, kept = reach.removable(readers, order, by_time)
        order.waits += kept.values()
        order.count("messages", purge.delete_before(self._admin, upto))
        if not done.get("compacted"):
            self._look_through(order)
        if order.waits:
            return
        for table in TABLES:  # dead tuples hold content until then
            self._connection.execute(f"VACUUM {table}".encode())
        self._connection.execute("DELETE FROM forget_records WHERE order_id = %s", [order.id])
        order.state, order.purged_at = "purged", datetime.now(UTC)

    def _look_through(self, order: Order) -> None:
        looker = self._look_for(order)
        raw = {topic for topic, _ in looker.places()}
        left = True
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            left = bool(looker.remaining(self._admin))
            self._looked = time.monotonic()
            if left:  # again, since another order may have set it back
                purge.let_clean(self._connection, self._admin, raw)
        if left:
            order.waits.append("Kafka's cleaner is yet to come to the raw topics")
            return
        purge.leave_clean(self._connection, self._admin, raw)
        order.progress["purged"]["compacted"] = True

    def _look_for(self, order: Order) -> purge.Looker:
        if self._looker is None or self._looker[0] != order.id:
            looker = purge.Looker(self.settings, self._connection, order)
            self._looker, self._looked = (order.id, looker), float("-inf")
        return self._looker[1]

    def _readers(self) -> reach.Readers:
        return reach.Readers(self.settings, self._admin, self.topology, self._connection)

    def _sending(self, order: Order) -> sending.Sender:
        return sending.Sender(self.settings, order)

    def _raw(self) -> set[str]:
        return {topic.name for topic in self.topology.raw_topics()}
