"""The channels that an alert goes out on besides its topic: the log, a webhook, mail. Blocking."""

from __future__ import annotations

import smtplib
import ssl
import urllib.request
from collections.abc import Mapping
from email.message import EmailMessage
from typing import Any

import orjson

from headrace.config import Settings
from headrace.log import get

log = get(__name__)

TOPIC = "topic"
SECONDS = 15.0


def channels(settings: Settings) -> tuple[str, ...]:
    """Those that are set up; each notice is told on all of them."""
    own = settings.status
    found = [TOPIC, "log"]
    if own.webhook_url is not None:
        found.append("webhook")
    if own.mail_to:
        found.append("mail")
    return tuple(found)


def tell(settings: Settings, channel: str, message: Mapping[str, Any]) -> None:
    """Raises OSError (smtplib's and urllib's errors are such) or ValueError where it cannot."""
    if channel == "log":
        _log(message)
    elif channel == "webhook":
        _webhook(settings, message)
    elif channel == "mail":
        _mail(settings, message)
    # One that was set up when the notice was made, and is not any more, is done with.


def _log(message: Mapping[str, Any]) -> None:
    say = log.warning if message["state"] == "firing" else log.info
    say(f"alert {message['state']}: {message['text']}", alert=message["alert"])


def _webhook(settings: Settings, message: Mapping[str, Any]) -> None:
    url = settings.status.webhook_url
    if url is None:
        return
    request = urllib.request.Request(
        url.get_secret_value(),
        data=orjson.dumps({"project": settings.project, **message}),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        answer.read()


def _mail(settings: Settings, message: Mapping[str, Any]) -> None:
    own = settings.status
    if not own.mail_to:
        return
    mail = EmailMessage()
    mail["Subject"] = f"[{settings.project}] {message['alert']} {message['state']}"
    mail["From"] = own.mail_from
    mail["To"] = ", ".join(own.mail_to)
    mail["Message-ID"] = f"<{message['event_id']}@headrace>"
    lines = [message["text"], f"since {message['since']}"]
    mail.set_content("\n".join([*lines, message["do"]]).rstrip() + "\n")
    context = ssl.create_default_context()
    if own.smtp_security == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(
            own.smtp_host, own.smtp_port, timeout=SECONDS, context=context
        )
    else:
        server = smtplib.SMTP(own.smtp_host, own.smtp_port, timeout=SECONDS)
    with server:
        if own.smtp_security == "starttls":
            server.starttls(context=context)
        if own.smtp_username is not None and own.smtp_password is not None:
            server.login(own.smtp_username, own.smtp_password.get_secret_value())
        server.send_message(mail)
