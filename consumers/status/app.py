"""The status group: Faust reads topic `status` and keeps what `headrace.status.fold` makes of it in
one table; beside it one looks at lag, tells what is wrong, and shows everything as web views.

    event    folded, written to the table's changelog, and acknowledged when that is on the broker
    look     lag, conditions, alerts that change; then minutes whose time is over are closed
    tell     what an alert has to tell, channel by channel, until each has got it

Faust commits in its own time, and after a kill events come again: the fold counts each once. Faust
runs in a thread with an event loop of its own, under `headrace.stream.worker.serve` as any worker.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from typing import Any

import faust
import orjson
import psycopg
from confluent_kafka import KafkaException
from faust.transport.drivers import aiokafka as driver

from consumers.status import telling
from headrace import home
from headrace.backlog.model import GroupLag
from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.log import get
from headrace.status import alerts, view
from headrace.status.alerts import MINUTE_MS, Alert, Movement, Notice
from headrace.status.fold import DAY_MS, HOUR_MS, NOTHING, Entries, Fold, parse
from headrace.status.reading import Looker
from headrace.stream import clients, topics
from headrace.stream.topology import App, Topology
from headrace.stream.worker import Post

log = get(__name__)

SESSION_SECONDS = 6.0  # after a kill nobody reads for so long
UNWRITTEN = 2_000  # events on their way to the changelog; then reading waits
SETTLE_SECONDS = 45.0  # to join the group, or to read more of the table; else it begins anew
_TICK = 0.1
_STOP_SECONDS = 8.0


def build(post: Post, topology: Topology, app: App) -> StatusLoop:
    return StatusLoop(post, topology, app)


class StatusLoop:
    """See `headrace.stream.worker.Loop`."""

    def __init__(self, post: Post, topology: Topology, app: App) -> None:
        self._post = post
        self._status = StatusApp(post, topology, app)
        self._thread = threading.Thread(target=self._main, name="faust", daemon=True)
        self._failure: BaseException | None = None

    def open(self) -> None:
        topics.ensure(self._post.settings)
        self._thread.start()
        while not (self._status.started.wait(0.2) or self._failure or self._post.stopping()):
            pass

    def work(self) -> bool:
        if self._failure is not None:
            raise self._failure
        busy = self._status.counted.wait(0.25)
        self._status.counted.clear()
        return busy

    def rest(self, seconds: float) -> None:
        time.sleep(min(seconds, 0.25))

    def close(self) -> None:
        self._status.stop()
        if self._thread.ident is not None:
            self._thread.join(_STOP_SECONDS)

    def _main(self) -> None:
        try:
            asyncio.run(self._status.run())
        except BaseException as error:
            self._failure = error


class StatusApp:
    """Everything here is called in Faust's event loop, but `stop` and the two events."""

    def __init__(self, post: Post, topology: Topology, app: App) -> None:
        self.started = threading.Event()
        self.counted = threading.Event()
        self._post = post
        self._settings: Settings = post.settings
        self._topology = topology
        self._app = app
        own = self._settings.status
        self._fold = Fold(
            minutes_ms=round(own.minutes_kept_hours * HOUR_MS),
            hours_ms=round(own.hours_kept_days * DAY_MS),
            now=_now,
        )
        self._alerts: dict[str, Alert] = {}
        self._safe: set[str] = set()  # notices, by event id, that a restart would find
        self._lags: dict[str, GroupLag] = {}
        self._movement = Movement()
        self._unreadable = 0
        self._ready = False  # the table is ours, and whole
        self._settled = False  # it is known whether it is ours
        self._unwritten: list[tuple[Any, list[Awaitable[Any]]]] = []
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        """Until `stop`; raises what Faust, or anything beside it, cannot get over."""
        _quieten(self._settings)
        self._faust = _faust(self._settings, self._app, self._post.slot, self._web())
        self._declare()
        beside = [self._start, self._acknowledge, self._look_on, self._tell_on]
        tasks = [asyncio.create_task(work()) for work in beside]
        read, since = 0, time.monotonic()
        try:
            while not self._stopping.is_set():
                await asyncio.sleep(_TICK)
                if self._settled or len(self._table.data) != read:
                    read, since = len(self._table.data), time.monotonic()
                if time.monotonic() - since > SETTLE_SECONDS:
                    raise RuntimeError("Faust stands still before it has read its table")
                if self._faust.crashed:
                    raise RuntimeError("Faust crashed") from self._faust.crash_reason
                for task in tasks:
                    if task.done():
                        task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._faust.stop(), _STOP_SECONDS - 1)

    async def _start(self) -> None:
        await self._faust.start()  # returns when the table has been read
        self.started.set()
        await asyncio.Event().wait()

    # -- Faust: the stream and the table

    def _declare(self) -> None:
        app = self._faust
        raw: dict[str, Any] = {
            "key_type": bytes,
            "value_type": bytes,
            "key_serializer": "raw",
            "value_serializer": "raw",
            "partitions": 1,
        }
        own = {"internal": True, "acks": False, "allow_empty": True, "maxsize": 131_072}
        self._changelog = app.topic(self._topology.topic("status.table").name, **raw, **own)
        self._table = app.Table(
            "table",
            key_type=bytes,
            value_type=bytes,
            partitions=1,
            use_partitioner=True,
            changelog_topic=self._changelog,
        )
        self._told = app.topic(self._topology.topic("alerts").name, **raw, internal=True)
        self._source = self._app.reads[0].name
        app.agent(app.topic(self._source, **raw), name=f"{self._app.name}.fold")(self._read)
        app.on_rebalance_complete.connect(self._recovered)
        app.on_partitions_revoked.connect(self._revoked)
        pages: dict[str, Callable[..., Awaitable[Any]]] = {
            "/status": self._show,
            "/status/": self._show,
            "/status/groups/{group}": self._show_group,
            "/status/history": self._show_history,
            "/status/alerts": self._show_alerts,
        }
        for path, show in pages.items():
            app.page(path, name=path)(_handler(show))

    async def _read(self, stream: Any) -> None:
        async for event in stream.noack().events():
            try:
                entries = self._fold.add(parse(event.value))
            except ValueError as error:
                self._unreadable += 1
                log.warning("a message on topic status is no event", reason=str(error))
                entries = {}
            self._unwritten.append((event, self._write(entries)))
            while len(self._unwritten) >= UNWRITTEN:
                await asyncio.sleep(_TICK)

    async def _acknowledge(self) -> None:
        """An event may be committed when what became of it is on the broker, and not before."""
        while True:
            await asyncio.sleep(_TICK)
            if not self._unwritten:
                continue
            began = time.perf_counter()
            batch, self._unwritten = self._unwritten, []
            await asyncio.gather(*(future for _, futures in batch for future in futures))
            for event, _ in batch:
                event.ack()
            self._post.metrics.committed({"ok": len(batch)}, time.perf_counter() - began)
            self.counted.set()

    def _write(self, entries: Entries) -> list[Awaitable[Any]]:
        """Into the table and, in this order, its changelog. Not by the table's own way, which does
        not say when the broker has it."""
        sent: list[Awaitable[Any]] = []
        for key, content in entries.items():
            name = key.encode()
            sent.append(
                self._changelog.send_soon(
                    key=name, value=content, partition=0,
                    key_serializer="raw", value_serializer="raw",
                )
            )  # fmt: skip
            if content is None:
                self._table.data.pop(name, None)
            else:
                self._table.data[name] = content
        return sent

    async def _recovered(self, *_: Any, **__: Any) -> None:
        """The table has been read; whatever we thought before, it says how things are."""
        mine = {tp.topic for tp in self._faust.consumer.assignment()}
        self._unwritten = []
        entries = [(key.decode(), content) for key, content in self._table.data.items()]
        self._fold.restore((key, content) for key, content in entries)
        self._alerts = {
            alert.id: alert
            for key, content in entries
            if key.startswith("alert/")
            for alert in [Alert.unpack(content)]
        }
        self._safe = {n.event for alert in self._alerts.values() for n in alert.notices}
        self._ready = self._source in mine
        self._settled = True
        log.info("the table has been read", entries=len(entries), ours=self._ready)

    async def _revoked(self, *_: Any, **__: Any) -> None:
        self._ready = self._settled = False

    # -- looking

    async def _look_on(self) -> None:
        thread = ThreadPoolExecutor(1, "lag")
        looker: Looker | None = None
        try:
            while True:
                await asyncio.sleep(_TICK)
                if not (self._ready and self.started.is_set()):
                    continue
                began = time.monotonic()
                try:
                    ask = asyncio.get_running_loop().run_in_executor
                    if looker is None:
                        looker = await ask(thread, Looker, self._settings)
                    found = await ask(thread, looker.look, _now())
                except (HeadraceError, KafkaException, psycopg.Error) as error:
                    log.warning("cannot look at lag", reason=str(error))
                else:
                    await self._looked(*found)
                await asyncio.gather(*self._write(self._fold.close() if self._ready else {}))
                took = time.monotonic() - began
                await asyncio.sleep(max(self._settings.status.look_seconds - took, 0))
        finally:
            thread.shutdown(wait=False, cancel_futures=True)

    async def _looked(self, lags: list[GroupLag], readings: list[alerts.Reading]) -> None:
        if not self._ready:  # not ours any more
            return
        own, now = self._settings.status, _now()
        self._lags = {lag.group: lag for lag in lags}
        since = now - round(own.dead_minutes * MINUTE_MS)
        lately = self._fold.window(since, now + 1).groups
        found = [
            condition
            for reading in readings
            for condition in alerts.conditions(
                own,
                reading,
                self._movement.look(reading, now),
                lately.get(reading.group, NOTHING),
            )
        ]
        searching = self._settings.search.enabled
        changed = alerts.decide(
            self._alerts,
            found,
            {*self._topology.groups, *(self._topology.projectors if searching else ())},
            telling.channels(self._settings),
            now,
            round(own.cooldown_minutes * MINUTE_MS),
        )
        await self._keep(*changed)

    async def _keep(self, *changed: Alert) -> None:
        """On the broker before anybody is told: a restart tells neither twice nor not at all."""
        self._alerts |= {alert.id: alert for alert in changed}
        await asyncio.gather(*self._write({f"alert/{a.id}": a.pack() for a in changed}))
        waiting = {n.event for alert in self._alerts.values() for n in alert.notices}
        self._safe = (self._safe | {n.event for a in changed for n in a.notices}) & waiting

    # -- telling

    async def _tell_on(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            for id in list(self._alerts) if self._ready else ():
                for notice in self._alerts[id].notices:
                    due = notice.event in self._safe and notice.next_ms <= _now()
                    if not due or not await self._tell(id, notice):
                        break  # what came later is told later

    async def _tell(self, id: str, notice: Notice) -> bool:
        """Whether every channel has it now."""
        own, whole = self._settings.status, True
        for channel in notice.channels:
            try:
                if channel == telling.TOPIC:
                    key, value = id.encode(), orjson.dumps(notice.message)
                    await (await self._told.send(key=key, value=value, partition=0))
                else:
                    await asyncio.to_thread(telling.tell, self._settings, channel, notice.message)
            except (OSError, ValueError, HTTPException) as error:
                # Not its text: that might show the address, which is a secret.
                whole = False
                log.warning("an alert is not told", channel=channel, how=type(error).__name__)
            else:
                await self._keep(alerts.delivered(self._alerts[id], notice.event, channel))
        if not whole:
            wait_ms = round(own.look_seconds * 1000)
            later = alerts.failed(self._alerts[id], notice.event, _now(), wait_ms, own.tries)
            if notice.tries + 1 >= own.tries:
                log.error("an alert is given up on", alert=id, tries=own.tries)
            await self._keep(later)
        return whole

    # -- showing

    def _web(self) -> bool:
        """Whether the port is free; a status group that cannot be watched still works."""
        own = self._settings.status
        try:
            with _bound(own.host, own.port):
                return True
        except OSError as error:
            log.warning("no web views", address=f"{own.host}:{own.port}", reason=error.strerror)
            return False

    async def _show(self, web: Any, request: Any) -> Any:
        opened = [alert.message() for alert in self._alerts.values() if alert.open]
        found = view.overview(
            self._settings.project, self._fold, self._lags.values(), opened, _now()
        )
        events = {
            "newest": alerts.clock(self._fold.newest) if self._fold.newest else None,
            "ignored": self._fold.ignored,
            "unreadable": self._unreadable,
        }
        return web.json({**found, "ready": self._ready, "events": events})

    async def _show_group(self, web: Any, request: Any, group: str) -> Any:
        found = view.group(group, self._fold, self._lags.get(group), _now())
        return self._answer(web, found, f"nothing is known of group {group}")

    async def _show_history(self, web: Any, request: Any) -> Any:
        own = self._settings.status
        group, by = request.query.get("group"), request.query.get("by", "minute")
        if not group or by not in ("minute", "hour"):
            return self._answer(web, {}, "ask for ?group=GROUP&by=minute or by=hour")
        kept = own.minutes_kept_hours * HOUR_MS if by == "minute" else own.hours_kept_days * DAY_MS
        rows = view.history(group, self._fold, by, _now(), round(kept))
        return self._answer(web, {"group": group, "by": by, "history": rows}, "")

    async def _show_alerts(self, web: Any, request: Any) -> Any:
        rows = [
            {**alert.message(), "told": alert.told, "waiting": len(alert.notices)}
            for alert in self._alerts.values()
        ]
        return self._answer(web, {"alerts": rows}, "")

    def _answer(self, web: Any, found: Mapping[str, Any], otherwise: str) -> Any:
        body = {"project": self._settings.project, "at": alerts.clock(_now())}
        if not found:
            return web.json({**body, "error": otherwise}, status=404)
        return web.json({**body, **found})


# -- Faust as we need it


_logger = logging.getLogger("faust.headrace")  # else they would speak in this module's name


class _Thread(driver.AIOKafkaConsumerThread):
    logger = _logger

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Faust reads what is committed in its own transactions only; stages write in theirs.
        consumer._isolation_level = "read_committed"
        return consumer


class _Consumer(driver.Consumer):
    logger = _logger

    def _new_consumer_thread(self) -> Any:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    def _new_offset(self, tp: Any) -> int | None:
        # We acknowledge in the order of reading, so the last one stands for all. Faust looks for a
        # row without holes instead, and notes the holes that transactions leave as it reads. What
        # a start reads twice, before and after its seek, leaves holes among what is committed:
        # it then goes on by one of them a second; and behind offset 0 it notes none and stops.
        acked = self._acked[tp]
        last = max(acked, default=None)
        acked.clear()
        self._acked_index[tp].clear()
        return None if last is None else last + 1

    async def _add_gap(self, tp: Any, offset_from: int, offset_to: int) -> None:
        pass


class _Transport(driver.Transport):
    Consumer = _Consumer


class _Faust(faust.App):
    logger = _logger

    def _new_transport(self) -> Any:
        return _Transport(self.conf.broker_consumer, self)


def _faust(settings: Settings, app: App, slot: int, web: bool) -> Any:
    own = settings.status
    folder = home.data_dir() / "status" / settings.project / str(slot)
    folder.mkdir(parents=True, exist_ok=True)
    return _Faust(
        app.name,
        broker=[f"kafka://{one.strip()}" for one in clients.bootstrap(settings).split(",")],
        broker_credentials=_credentials(settings),
        broker_session_timeout=SESSION_SECONDS,
        broker_heartbeat_interval=SESSION_SECONDS / 3,
        broker_commit_interval=1.0,
        consumer_auto_offset_reset="earliest",
        key_serializer="raw",
        value_serializer="raw",
        store="memory://",
        datadir=str(folder),
        # Topics are made by `headrace topics apply` alone.
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_partitions=1,
        table_standby_replicas=0,
        stream_wait_empty=False,
        web_enabled=web,
        web_bind=own.host,
        web_host=own.host,
        web_port=own.port,
        web_stats_enabled=False,
        web_graph_enabled=False,
        web_router_enabled=False,
        web_tables_enabled=False,
        web_metrics_enabled=False,
    )


def _credentials(settings: Settings) -> Any:
    kafka = settings.kafka
    context: ssl.SSLContext | None = None
    if kafka.security_protocol in ("SSL", "SASL_SSL"):
        authority = kafka.ssl_ca_location
        context = ssl.create_default_context(cafile=str(authority) if authority else None)
        if kafka.ssl_certificate_location is not None:
            secret = kafka.ssl_key_password
            context.load_cert_chain(
                kafka.ssl_certificate_location,
                kafka.ssl_key_location,
                secret.get_secret_value() if secret else None,
            )
    if kafka.security_protocol.startswith("SASL"):
        password = kafka.sasl_password
        return faust.SASLCredentials(
            username=kafka.sasl_username,
            password=password.get_secret_value() if password else None,
            mechanism=kafka.sasl_mechanism,
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context is not None else None


def _handler(show: Callable[..., Awaitable[Any]]) -> Any:
    """Faust makes a view's method of a function."""

    async def get(web: Any, request: Any, **found: str) -> Any:
        return await show(web, request, **found)

    return get


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    own = socket.socket(family, socket.SOCK_STREAM)
    try:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind((host, port))
    except OSError:
        own.close()
        raise
    return own


def _quieten(settings: Settings) -> None:
    """Faust tells of every step, and its client many times a second that a broker is away, which
    we say ourselves."""
    if settings.log.level != "debug":
        levels = {"faust": logging.WARNING, "mode": logging.ERROR, "aiokafka": logging.CRITICAL}
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _now() -> int:
    return int(time.time() * 1000)
