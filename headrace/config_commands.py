"""`headrace config`: get, show."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click
import orjson
import yaml
from pydantic import SecretStr

from headrace.config import Section, Settings, is_secret, leaves
from headrace.errors import ConfigError
from headrace.log import Mask

Loader = Callable[[], Settings]


@click.group()
def config() -> None:
    """The settings in force: file, environment and flags together."""


@config.command()
@click.argument("key")
@click.option("--default", help="What to print where nothing is set.")
@click.pass_obj
def get(loader: Loader, key: str, default: str | None) -> None:
    """Print one setting, such as processing.batch_size, or a section of them."""
    settings = loader()
    value = find(settings, key)
    if value is None:
        value = default if default is not None else implied(settings, key)
    if isinstance(value, dict | list):
        click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
    elif isinstance(value, bool):
        click.echo(str(value).lower())
    else:
        click.echo("" if value is None else str(value))


@config.command()
@click.option("--json", "as_json", is_flag=True, help="JSON, for programs.")
@click.pass_obj
def show(loader: Loader, as_json: bool) -> None:
    """Print every setting; secrets are masked."""
    value = shown(loader())
    if as_json:
        click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
    else:
        click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip())


def find(settings: Settings, key: str) -> Any:
    """The value under a dotted key, plain and masked. Raises ConfigError for an unknown key."""
    value: Any = settings
    for name in key.split("."):
        if isinstance(value, Section) and name in type(value).model_fields:
            value = getattr(value, name)
        elif isinstance(value, dict) and name in value:
            value = value[name]
        else:
            known = [".".join(location) for location, _ in leaves(settings)]
            close = get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]}?" if close else "`headrace config show` lists all"
            raise ConfigError(f"there is no setting {key}; {hint}")
    return shown(value)


def implied(settings: Settings, key: str) -> Any:
    """What holds where a setting is left to another place; None where that is not known here."""
    if key == "processing.mode":
        return settings.processing.default_mode
    if key == "processing.batch_size":
        from headrace.stream import topology

        return topology.load(settings).default_batch.records
    return None


def shown(value: Any) -> Any:
    """A setting or section as plain values, without secrets."""
    if isinstance(value, Section):
        return {name: shown(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, SecretStr):
        secret = value.get_secret_value()
        # An address is worth reading, its password is not.
        return Mask()(secret) if "://" in secret else "***"
    if isinstance(value, dict):
        return {key: "***" if is_secret(key) else shown(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [shown(inner) for inner in value]
    if isinstance(value, str) and "://" in value:
        return Mask()(value)
    return str(value) if isinstance(value, Path) else value
