"""`headrace init`: a working folder outside the clone."""

from __future__ import annotations

import re
from pathlib import Path

import click

from headrace import config
from headrace.errors import ConfigError, HeadraceError

_README = """# {project}

A working folder of Headrace. Run its commands here:

    headrace up                  # Kafka and PostgreSQL on this machine
    headrace publish data/*.csv --platform reddit
    headrace run --until-caught-up
    headrace sql "SELECT * FROM coverage"

`config/headrace.yaml` holds the settings, `config/platforms/` one file a platform.
"""
_GITIGNORE = "/data/\n/rejects/\n.env\n"


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option("--project", help="Prefix of topics, groups and tables; default: the folder's name.")
@click.option("--topics", is_flag=True, help="Copy topics.yaml too, to change topics and groups.")
def init(folder: Path, project: str | None, topics: bool) -> None:
    """Make DIR a working folder: settings, platforms, a place for data."""
    for path in create(folder, project, topics=topics):
        click.echo(f"made {path}")
    click.echo(f"next: cd {folder} && headrace up")


def create(folder: Path, project: str | None = None, *, topics: bool = False) -> list[Path]:
    """Fill a working folder; what is in it already stays. Returns the files made.

    Raises HeadraceError where the folder has a configuration, ConfigError for a bad project name.
    """
    settings = folder / "config" / "headrace.yaml"
    if settings.exists():
        raise HeadraceError(f"{settings} exists: {folder} is a working folder already")
    name = project or _name_of(folder)
    if not re.match(r"^[a-z][a-z0-9_]{0,39}$", name):
        raise ConfigError(f"--project {name}: lower-case letters, digits and underscores only")
    made: list[Path] = []

    def write(path: Path, text: str) -> None:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            made.append(path)

    try:
        template = _shipped("config/headrace.yaml").read_text()
        write(settings, re.sub(r"(?m)^#?project:.*$", f"project: {name}", template, count=1))
        for platform in sorted(_shipped("config/platforms").glob("*.yaml")):
            write(folder / "config" / "platforms" / platform.name, platform.read_text())
        if topics:
            write(folder / "topics.yaml", _shipped("topics.yaml").read_text())
        write(folder / ".gitignore", _GITIGNORE)
        write(folder / "README.md", _README.format(project=name))
        (folder / "data").mkdir(exist_ok=True)
    except OSError as error:
        raise HeadraceError(f"{error.filename or folder}: {error.strerror}") from None
    return made


def _name_of(folder: Path) -> str:
    name = re.sub(r"[^a-z0-9]+", "_", folder.absolute().name.lower()).strip("_")[:40]
    return name if name[:1].isalpha() else "headrace"


def _shipped(path: str) -> Path:
    found = config.shipped(Path(path))
    if found is None:
        raise HeadraceError(f"{path} is missing from this installation; install Headrace again")
    return found
