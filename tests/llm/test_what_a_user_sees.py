"""What a user sees where a language model gives no answer: one clear line, the same wherever one
looks, no secret in it; and everybody else goes on."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from headrace import config
from headrace.backlog import progress as progresses
from headrace.backlog import report
from headrace.backlog.lag import Reader
from headrace.backlog.progress import Progress, Step
from headrace.backlog.receipts import Receipt
from headrace.config import Status
from headrace.errors import ConfigError, Pause
from headrace.status.alerts import Quiet, Reading, conditions
from tests.llm import desk, provider
from tests.llm.conftest import Say
from tests.llm.desk import Desk
from tests.llm.provider import Provider
from tests.world import World, wait_for

KEY = "sk-very-secret-0815"


@pytest.fixture(scope="module")
def served() -> Iterator[Provider]:
    with provider.serve() as found:
        yield found


@pytest.fixture
def p(served: Provider) -> Provider:
    served.calls.clear()
    served.judge = None
    return served


@pytest.fixture(scope="module")
def project(postgres: str) -> Iterator[tuple[str, str]]:
    with desk.project(postgres) as name:
        yield postgres, name


@dataclass(frozen=True)
class Situation:
    """line: with WHERE for host and port. url: of what is asked, given the provider's own."""

    line: str
    llm: dict[str, Any] = field(default_factory=dict)
    meets: provider.Step | None = None
    url: Callable[[str], str] = lambda url: url
    budget: bool = False


_DOWN = {"circuit_failures": 2, "circuit_seconds": 300.0}
SITUATIONS = {
    "no key": Situation(
        "llm: the key for WHERE is missing (status 401, invalid_api_key): set llm.api_key"
        " (HEADRACE_LLM__API_KEY)",
        {"api_key": None},
        provider.status(401),
    ),
    "wrong key": Situation(
        "llm: the key for WHERE is refused (status 401, invalid_api_key): set llm.api_key"
        " (HEADRACE_LLM__API_KEY)",
        meets=provider.status(401, message=f"Incorrect API key provided: {KEY}"),
    ),
    "unknown model": Situation(
        "llm: WHERE knows no model gpt-4.1-mini (status 404, model_not_found): correct llm.model",
        meets=provider.status(404, error="model_not_found"),
    ),
    "unknown model, said by 400": Situation(
        "llm: WHERE knows no model gpt-4.1-mini (status 400, bad_request): correct llm.model",
        meets=provider.status(400, message="Invalid model: gpt-4.1-mini"),
    ),
    "a field refused": Situation(
        "llm: WHERE does not take temperature as it is sent (status 400, bad_request): not with"
        " ***; look at llm.temperature and llm.request",
        meets=provider.status(400, message=f"not with {KEY}", param="temperature"),
    ),
    "no /v1": Situation(
        "llm: WHERE has nothing at /, or no model gpt-4.1-mini (status 404, not_found): look at"
        " llm.base_url (most end with /v1) and llm.model",
        url=lambda url: url.removesuffix("/v1"),
    ),
    "no TLS": Situation(
        "llm: WHERE does not speak TLS: write http:// in llm.base_url",
        url=lambda url: url.replace("http:", "https:"),
    ),
    "over budget": Situation(
        "budget: $0.00 of $0.000010 spent today, and the next call may cost $0.00097; goes on"
        " tomorrow 00:00 UTC, or started again with a higher llm.daily_budget",
        {"daily_budget": 0.00001},
        budget=True,
    ),
    "provider down": Situation(
        "circuit: WHERE did not answer 2 calls in a row, the last with: WHERE cannot be reached:"
        " Connection refused; tried again every 300 s",
        _DOWN,
        url=lambda url: f"http://127.0.0.1:{_nobody()}/v1",
    ),
    "provider overloaded": Situation(
        "circuit: WHERE did not answer 2 calls in a row, the last with: WHERE asks to wait"
        " (status 503",
        _DOWN,
        provider.status(503, retry_after=0.01),
    ),
    "no such host": Situation(
        "circuit: WHERE did not answer 2 calls in a row, the last with: WHERE cannot be reached:"
        " Name or service not known; tried again every 300 s",
        _DOWN,
        url=lambda url: "http://models.example/v1",
    ),
    "local only": Situation(
        "llm.local_only: 192.0.2.1 is beyond this machine; nothing was sent. Set llm.base_url to"
        " an endpoint of this machine, or llm.local_only to false",
        {"local_only": True},
        url=lambda url: "http://192.0.2.1/v1",
    ),
}


_taken: list[socket.socket] = []  # so that nobody else can listen there


def _nobody() -> int:
    _taken.append(socket.socket())
    _taken[-1].bind(("127.0.0.1", 0))
    return int(_taken[-1].getsockname()[1])


@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)
def test_one_line_wherever_one_looks(
    situation: Situation,
    project: tuple[str, str],
    p: Provider,
    say: Say,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = socket.getaddrinfo

    def resolve(host: Any, *rest: Any, **more: Any) -> Any:
        if host in ("models.example", b"models.example"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    p.judge = lambda call: situation.meets
    url = situation.url(p.url)
    line = situation.line.replace("WHERE", url.split("/")[2])
    mine = Desk(*project, url, **{"api_key": KEY, **situation.llm})
    mine.sql("TRUNCATE llm_calls, llm_answers, llm_claims, llm_providers, llm_refusals, llm_spent")
    with pytest.raises((Pause, ConfigError)) as raised:
        mine.asker().ask(desk.packed(), desk.many(4))
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)
    seen = say(mine.settings, "llm", "status")
    assert line in seen
    if not isinstance(raised.value, ConfigError):  # the group's worker has ended
        waits = progresses.paid(mine.settings, _progress()).waits
        assert waits["scores"].startswith(line)
        assert f"Waits: scores: {line}" in report.progress_text(
            progresses.paid(mine.settings, _progress())
        )
        kept = mine.sql("SELECT reason IS NULL FROM llm_refusals")
        assert kept == [(situation.budget,)]
    for text in (seen, caplog.text, *_ledger(mine)):
        assert KEY not in text
        assert "Traceback" not in text
    # It is mended: nothing is said of it any more.
    p.judge = None
    mine.sql("TRUNCATE llm_providers")
    mended = Desk(*project, p.url, api_key=KEY)
    mended.asker().ask(desk.packed(), desk.many(4))
    assert mine.sql("SELECT * FROM llm_refusals") == []
    mine.close()
    mended.close()


def _progress() -> Progress:
    receipt = Receipt("r1", "done", "post", "reddit", 5, 0, "", None, {}, {}, None, {})
    return Progress(receipt, (Step("text", "", 5, 5), Step("scores", "", 0, 5)))


def _ledger(mine: Desk) -> list[str]:
    tables = ("llm_calls", "llm_refusals", "llm_providers")
    return [row for table in tables for (row,) in mine.sql(f"SELECT t::text FROM {table} t")]


def test_the_embedded_model_is_called_what_it_is(project: tuple[str, str], say: Say) -> None:
    mine = Desk(*project, None)
    assert "No endpoint is configured: this embedded model shows the way, and its content is" in (
        say(mine.settings, "llm", "status")
    )


def test_a_key_that_cannot_be_one_is_not_repeated() -> None:
    assert config.load({"llm.api_key": f" {KEY}\n"}).llm.api_key is not None
    assert config.load({"llm.api_key": " \n"}).llm.api_key is None
    with pytest.raises(ConfigError, match=r"llm\.api_key.*copy it once more") as raised:
        config.load({"llm.api_key": f"{KEY} and more"})
    assert KEY not in str(raised.value)


def test_an_alert_says_why_nothing_is_done() -> None:
    paused = Reading("scores", 5, 0, True, 1, members=1, paused="llm: the key is refused")
    found = {one.kind: one for one in conditions(Status(), paused, Quiet(1_200_000, True))}
    assert found["stalled"].wrong
    assert found["stalled"].text.endswith(
        "nothing was committed in 20 min: llm: the key is refused"
    )


def test_a_group_that_cannot_ask_pauses_and_nobody_else_does(
    worlds: Callable[..., World], p: Provider, say: Say
) -> None:
    flags = {
        "llm.base_url": p.url,
        "llm.api_key": KEY,
        "llm.requests_per_minute": 0,
        "llm.circuit_failures": 2,
        "llm.circuit_seconds": 1.0,
        "llm.retry_seconds": 0.05,
        "processing.retry_max_seconds": 0.2,
    }
    world = worlds(platforms=("reddit",), partitions=1, flags=flags)
    where = p.url.split("/")[2]
    p.judge = lambda call: provider.status(401)
    world.post("reddit", n=30)
    run = world.start("run", "text", "scores", "--only")

    reader = Reader(world.settings)

    def stands(group: str) -> tuple[str, str]:
        (found,) = reader.read([group])
        return str(found.state), found.reason

    refused = f"llm: the key for {where} is refused (status 401, invalid_api_key)"
    told = f"{refused}: set llm.api_key (HEADRACE_LLM__API_KEY)"
    wait_for(lambda: stands("scores") == ("PAUSED", told), message=lambda: world.log_of(run))
    for words in (("lag",), ("status",), ("llm", "status"), ("doctor",)):
        assert refused in say(world.settings, *words), words
    p.judge = lambda call: provider.status(503, retry_after=0.01)
    wait_for(lambda: stands("scores")[1].startswith(f"circuit: {where} did not answer"))
    # Meanwhile the others work.
    world.post("reddit", ids=["later"])
    wait_for(lambda: stands("text")[0] == "OK", message=lambda: world.log_of(run))
    assert len(world.values("enriched.text")) == 31
    assert world.values("enriched.scores") == []
    p.judge = None
    wait_for(lambda: stands("scores")[0] == "OK", message=lambda: world.log_of(run))
    reader.close()
    log = world.log_of(run)
    assert len(world.values("enriched.scores")) == 31
    lines = [line for line in log.splitlines() if "paused" in line and refused in line]
    assert 1 <= len(lines) <= 2  # it was tried far more often
    assert "goes on" in log
    for text in (log, say(world.settings, "llm", "status"), say(world.settings, "doctor")):
        assert KEY not in text
        assert "Traceback" not in text
        assert "could not ask" not in text
