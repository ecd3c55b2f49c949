"""One call to an endpoint by the openai client, its errors sorted by what is to be done.

Passing   may go well later: 429, 408, 409, 425, 5xx, time-outs, connections, answers cut short
Refused   the request itself is to blame: 400, 413, 422
Pause     a person has to act: key, model, quota, a field that the endpoint does not take
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from headrace.config import LLM, Settings
from headrace.errors import Pause
from headrace.llm.admission import Limits
from headrace.llm.endpoint import Endpoint, beyond

if TYPE_CHECKING:
    import openai
    from httpx2 import Headers, Request

_CONNECT_SECONDS = 10.0
_LONGEST_HOLD = 3600.0
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_SHOWN = 200
_NO_MODEL = re.compile(
    r"\bmodel\b.{0,80}\b(not found|(does )?not exist|not a valid|unknown)"
    r"|\b(invalid|unknown|no such) model\b|\bnot a valid model",
    re.IGNORECASE | re.DOTALL,
)
_UNREACHED = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError")
_SYSTEM = re.compile(r"^\[Errno -?\d+\] ")
_CERTIFICATE = re.compile(r"CERTIFICATE_VERIFY_FAILED\] (.*?)( \(_ssl\.c:\d+\))?$")


@dataclass(frozen=True)
class Answer:
    """What came back.

    text     None where the model refused
    finish   "stop", "length", "content_filter"
    seconds  from sending to the whole answer
    """

    text: str | None
    refusal: str | None
    finish: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    seconds: float
    request_id: str | None
    limits: Limits | None


class Passing(Exception):
    """The same call may go well later.

    hold    seconds that the endpoint asks to wait, all callers
    down    whether the endpoint seems to be down, rather than busy
    billed  whether the call may have been done and paid all the same
    """

    def __init__(
        self,
        reason: str,
        *,
        hold: float | None = None,
        down: bool = True,
        billed: bool = False,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(reason)
        self.hold = hold
        self.down = down
        self.billed = billed
        self.limits = limits


class Unfit(Pause):
    """The endpoint does not take a field of the request as it is."""


class Refused(Exception):
    """The endpoint does not take this request, and will not take it later."""


class Client:
    """Calls to one endpoint; safe for threads. `openai` is the client for anything else."""

    def __init__(self, settings: Settings, endpoint: Endpoint) -> None:
        import openai

        if endpoint.base_url is None:
            raise ValueError("the endpoint has no address yet")
        llm = settings.llm
        self._endpoint = endpoint
        self._key = endpoint.key.get_secret_value() if endpoint.key else ""
        self._fields = ("response_format", "json_schema", "temperature", *llm.request)
        local = beyond(endpoint.host) is None
        self.openai = openai.OpenAI(
            # A local endpoint mostly needs no key, but the client insists on one; and without an
            # address of ours it would take one from the environment.
            api_key=self._key or "none",
            base_url=endpoint.base_url,
            timeout=llm.timeout_seconds,
            max_retries=0,  # each try is admitted and written down
            http_client=openai.DefaultHttpxClient(
                timeout=_timeout(llm.timeout_seconds),
                trust_env=not local,  # a proxy is not for loopback
                follow_redirects=not llm.local_only,
                event_hooks=_hooks(llm),
            ),
        )

    def ask(self, body: dict[str, Any]) -> Answer:
        """One chat completion. Raises Passing, Refused or Pause."""
        with self.errors():
            began = time.monotonic()
            # The client knows some fields by name only; an endpoint may know others.
            more = {key: value for key, value in body.items() if key not in ("model", "messages")}
            came = self.openai.chat.completions.with_raw_response.create(
                model=body["model"], messages=body["messages"], extra_body=more
            )
            return self._answer(came.parse(), came.headers, time.monotonic() - began)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """What the openai client raises in the block becomes Passing, Refused or Pause."""
        import httpx2
        import openai

        began = time.monotonic()
        try:
            yield
        except openai.APIStatusError as error:
            raise self._sorted(error) from None
        except openai.APIConnectionError as error:  # time-outs too
            raise self._broken(error, time.monotonic() - began) from None
        except httpx2.HTTPError as error:  # while a file was read
            said = self._line(error)
            raise Passing(f"{self.where} ended the connection: {said}", billed=True) from None
        except (openai.APIResponseValidationError, ValueError, TypeError, AttributeError) as error:
            said = self._line(error)
            raise Passing(f"{self.where} gave no completion: {said}", billed=True) from None

    def close(self) -> None:
        self.openai.close()

    @property
    def where(self) -> str:
        return "the embedded model" if self._endpoint.embedded else self._endpoint.provider

    def _answer(self, came: Any, headers: Headers, seconds: float) -> Answer:
        if isinstance(came, str):  # something else answered: nothing was asked, nor paid
            raise Pause(
                f"llm: {self.where} answers with a text that is no JSON: look at llm.base_url"
                " (most end with /v1)"
            )
        choices = getattr(came, "choices", None)
        if not choices:
            error = getattr(came, "error", None)  # some say so with status 200
            said = error.get("message") if isinstance(error, dict) else None
            raise ValueError(said or "it holds no choice")
        choice = choices[0]
        usage = came.usage
        details = getattr(usage, "prompt_tokens_details", None)
        return Answer(
            text=_text(choice.message.content),
            refusal=_text(getattr(choice.message, "refusal", None)),
            finish=choice.finish_reason or "stop",
            input_tokens=getattr(usage, "prompt_tokens", None) or 0,
            output_tokens=getattr(usage, "completion_tokens", None) or 0,
            cached_tokens=getattr(details, "cached_tokens", None) or 0,
            seconds=seconds,
            request_id=headers.get("x-request-id"),
            limits=limits(headers),
        )

    def _broken(self, error: openai.APIConnectionError, seconds: float) -> Exception:
        import openai

        cause = error.__cause__
        if isinstance(cause, Pause):  # our own look at where it goes
            return cause
        said = self._line(cause or error)
        if found := _CERTIFICATE.search(said):
            return Pause(
                f"llm: the certificate of {self.where} is not trusted ({found[1]}): look at "
                "llm.base_url, or name its authority's file in SSL_CERT_FILE"
            )
        if "WRONG_VERSION_NUMBER" in said or "RECORD_LAYER_FAILURE" in said:
            return Pause(f"llm: {self.where} does not speak TLS: write http:// in llm.base_url")
        if type(cause).__name__ in _UNREACHED:
            return Passing(f"{self.where} cannot be reached: {_SYSTEM.sub('', said)}")
        if isinstance(error, openai.APITimeoutError):
            said = f"within {seconds:.0f} s (llm.timeout_seconds)"
            return Passing(f"{self.where} gave no answer {said}", billed=True)
        return Passing(f"{self.where} ended the connection: {said}", billed=True)

    def _sorted(self, error: openai.APIStatusError) -> Exception:
        status, code = error.status_code, error.code
        said = f"status {status}{f', {code}' if code else ''}"
        if status == 402 or code in (
            "insufficient_quota",
            "billing_hard_limit_reached",
            "billing_not_active",
        ):
            return Pause(f"llm: the account at {self.where} has no credit left ({said})")
        if status in (429, 503):
            hold, found = retry_after(error.response.headers), limits(error.response.headers)
            reason = f"{self.where} asks to wait ({said})"
            return Passing(reason, hold=hold, down=status != 429, limits=found)
        if status in (408, 409, 425) or status >= 500:
            hold = retry_after(error.response.headers)
            late = status in (504, 524)  # of a proxy; who stands behind it may have answered
            reason = f"{self.where} fails ({said})"
            return Passing(reason, hold=hold, down=status >= 500, billed=late)
        if status in (401, 403):
            what = "is refused" if self._endpoint.key else "is missing"
            return Pause(
                f"llm: the key for {self.where} {what} ({said}): set llm.api_key "
                "(HEADRACE_LLM__API_KEY)"
            )
        told = self._said(error)
        if (
            code in ("model_not_found", "invalid_model")
            or error.type == "invalid_model"
            or (status in (400, 404, 422) and _NO_MODEL.search(told))
        ):
            return Pause(
                f"llm: {self.where} knows no model {self._endpoint.model} ({said}): correct "
                "llm.model"
            )
        if status == 404:
            path = urlsplit(self._endpoint.base_url or "").path or "/"
            return Pause(
                f"llm: {self.where} has nothing at {path}, or no model {self._endpoint.model} "
                f"({said}): look at llm.base_url (most end with /v1) and llm.model"
            )
        if status in (400, 413, 422):
            if parameter := self._refused_field(error, told):
                return Unfit(
                    f"llm: {self.where} does not take {parameter} as it is sent ({said}): "
                    f"{told}; look at llm.temperature and llm.request"
                )
            return Refused(f"{said}: {told}")
        return Pause(f"llm: {self.where} answers with {said}: look at llm.base_url")

    def _refused_field(self, error: openai.APIStatusError, told: str) -> str | None:
        """The field of a request that is refused whatever it asks, if it is that."""
        parameter = error.param if isinstance(error.param, str) else None
        if parameter:
            return None if parameter.startswith(("messages", "input", "prompt")) else parameter
        return next((name for name in self._fields if re.search(rf"\b{name}\b", told)), None)

    def _said(self, error: openai.APIStatusError) -> str:
        body = error.body
        return self._line(body.get("message") or error if isinstance(body, dict) else error)

    def _line(self, error: object) -> str:
        """The first line of what went wrong; never the key, which some providers repeat."""
        lines = str(error).strip().splitlines() or [type(error).__name__]
        line = lines[0].replace(self._key, "***") if self._key else lines[0]
        return line[:_SHOWN]


def retry_after(headers: Headers) -> float | None:
    """Seconds that an endpoint asks to wait, within reason; None where it does not say."""
    said = headers.get("retry-after-ms")
    if said is not None and (found := _number(said)) is not None:
        return min(found / 1000, _LONGEST_HOLD)
    said = headers.get("retry-after")
    if said is None:
        return None
    found = _number(said)
    if found is None:
        try:
            at = parsedate_to_datetime(said)
        except ValueError:
            return None
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        found = max(0.0, (at - datetime.now(UTC)).total_seconds())
    return min(found, _LONGEST_HOLD)


def limits(headers: Headers) -> Limits | None:
    """What x-ratelimit-* headers say; None where there are none."""

    def count(name: str) -> int | None:
        found = _number(headers.get(f"x-ratelimit-remaining-{name}"))
        return None if found is None else int(found)

    def seconds(name: str) -> float | None:
        return duration(headers.get(f"x-ratelimit-reset-{name}"))

    found = Limits(count("requests"), seconds("requests"), count("tokens"), seconds("tokens"))
    return None if found == Limits() else found


def duration(text: str | None) -> float | None:
    """Seconds of "6m0s", "20ms", "1.5"; None for what is none, or longer than an hour."""
    if not text:
        return None
    found = _number(text)
    if found is None:
        match = _DURATION.fullmatch(text.strip())
        if match is None or not any(match.groups()):
            return None
        hours, minutes, seconds, thousandths = (float(part or 0) for part in match.groups())
        found = hours * 3600 + minutes * 60 + seconds + thousandths / 1000
    return found if found <= _LONGEST_HOLD else None


def _number(text: str | None) -> float | None:
    try:
        found = float(text or "")
    except ValueError:
        return None
    return found if math.isfinite(found) and found >= 0 else None


def _text(said: Any) -> str | None:
    """Halves of characters, where an answer was cut short within one, can be kept nowhere."""
    return None if said is None else str(said).encode(errors="replace").decode()


def _stay_here(request: Request) -> None:
    """`llm.local_only` at the moment of a call: a name may stand for another address by now."""
    complaint = beyond(request.url.host)
    if complaint:
        raise Pause(f"llm.local_only: {complaint}; nothing was sent")


def _hooks(llm: LLM) -> dict[str, list[Callable[..., None]]]:
    """What is looked at with every request. A completion has `timeout_seconds` as a whole, however
    steadily it trickles: leases and the group's place in Kafka go by that. Files may take longer.
    """
    import httpx2

    class Within(httpx2.SyncByteStream):
        def __init__(self, response: httpx2.Response, ends: float) -> None:
            self._stream: Any = response.stream
            self._request = response.request
            self._ends = ends

        def __iter__(self) -> Iterator[bytes]:
            for part in self._stream:
                if time.monotonic() > self._ends:
                    raise httpx2.ReadTimeout("it trickles", request=self._request)
                yield part

        def close(self) -> None:
            self._stream.close()

    def begin(request: Request) -> None:
        request.extensions["headrace.ends"] = time.monotonic() + llm.timeout_seconds

    def bound(response: httpx2.Response) -> None:
        if response.request.url.path.endswith("/chat/completions"):
            response.stream = Within(response, response.request.extensions["headrace.ends"])

    local = [_stay_here] if llm.local_only else []
    return {"request": [*local, begin], "response": [bound]}


def _timeout(seconds: float) -> Any:
    import httpx2

    return httpx2.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS))
