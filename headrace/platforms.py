"""A platform's YAML file: what it is called, what its records must have, how they are processed.

One file a platform under config/platforms; its name is the platform's name and makes its topic.
`mappings` says how files become records and is left as written: producers.mapping reads it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from headrace import schedule
from headrace.config import Mode, Section, Settings
from headrace.errors import ConfigError, HeadraceError
from headrace.yamlfile import Document, read

_NAME = re.compile(r"^[a-z][a-z0-9_]{0,39}$")


class FastMode(Section):
    """What fast mode leaves for later."""

    skip_sentiment: bool = False
    skip_semantic: bool = False  # groups marked `semantic: true` in topics.yaml
    skip_vectorization: bool = False
    conservative_entities_only: bool = False


class Batch(Section):
    """Settings of one stage for this platform alone."""

    enabled: bool = True
    schedule: str | None = None  # none: the group's own, in topics.yaml
    batch_size: int | None = Field(default=None, ge=1)
    min_new_records: int | None = Field(default=None, ge=1)  # fewer: the group need not start

    @field_validator("schedule")
    @classmethod
    def _is_schedule(cls, value: str | None) -> str | None:
        if value is not None:
            schedule.parse(value)
        return value


class Processing(Section):
    mode: Literal["fast", "full"] | None = None  # none: processing.default_mode
    fast_mode: FastMode = FastMode()
    batch_processing: dict[str, Batch] = Field(default_factory=dict)


class Platform(Section):
    name: str = ""  # the file's name; if written, the same
    title: str = ""
    description: str = ""
    dictionary: str | None = None  # a file of config/dictionaries with this platform's own terms
    required: tuple[str, ...] = ()  # fields that a record must have
    processing: Processing = Processing()
    mappings: Any = None
    path: Path = Path()

    def mode(self, settings: Settings) -> Mode:
        """`processing.mode` of the settings, else of this file, else the default mode."""
        return settings.processing.mode or self.processing.mode or settings.processing.default_mode


def names(settings: Settings) -> tuple[str, ...]:
    """The platforms there are: one file each, read by name only."""
    return tuple(path.stem for path in _files(settings))


def load(settings: Settings) -> dict[str, Platform]:
    """Every platform by name. Raises ConfigError naming file, line and key."""
    return {path.stem: _read(path) for path in _files(settings)}


class Watched:
    """Every platform by name, for whoever asks again and again: read anew when a file changed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seen: list[tuple[Path, int, int]] = []
        self._platforms: dict[str, Platform] = {}

    def load(self) -> dict[str, Platform]:
        """As `load`."""
        stats = [(path, path.stat()) for path in _files(self._settings)]
        seen = [(path, stat.st_mtime_ns, stat.st_size) for path, stat in stats]
        if seen != self._seen:
            self._platforms = load(self._settings)
            self._seen = seen
        return self._platforms


def get(settings: Settings, name: str) -> Platform:
    """One platform. Raises HeadraceError naming the known ones."""
    for path in _files(settings):
        if path.stem == name:
            return _read(path)
    known = ", ".join(names(settings))
    raise HeadraceError(f"platform {name} is not known; there are: {known}")


def document(settings: Settings, name: str) -> Document:
    """The platform's file with its line numbers, for whoever checks its mappings."""
    return read(get(settings, name).path)


def _files(settings: Settings) -> list[Path]:
    folder = settings.path("platforms")
    files = sorted(path for path in folder.glob("*.yaml") if path.is_file())
    for path in files:
        if not _NAME.match(path.stem):
            raise ConfigError(
                f"{path}: a platform's name is lower-case letters, digits and underscores"
            )
    if not files:
        raise ConfigError(f"{folder}: there is no platform file (*.yaml) in it")
    return files


def _read(path: Path) -> Platform:
    file = read(path)
    platform = file.check(Platform)
    if platform.name not in ("", path.stem):
        raise file.error(("name",), f"should be {path.stem}, as the file is called")
    return platform.model_copy(
        update={"name": path.stem, "title": platform.title or path.stem, "path": path}
    )
