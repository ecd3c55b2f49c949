"""The command `headrace`: names of commands and where each of them lives, imported when called."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace import __version__
from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.config import Settings

# name: (module:command, one line of help, which `headrace --help` shows without an import)
COMMANDS = {
    "demo": ("headrace.demo:demo", "Show the whole way once, on samples"),
    "init": ("headrace.setup:init", "Make a working folder outside the clone"),
    "up": ("headrace.servers.commands:up", "Start Kafka, PostgreSQL and Weaviate on this machine"),
    "down": ("headrace.servers.commands:down", "Stop them"),
    "servers": ("headrace.servers.commands:servers", "The same servers: up, down, status"),
    "topics": ("headrace.stream.topics_commands:topics", "Topics: apply, list, asyncapi"),
    "migrate": ("headrace.stores.commands:migrate", "Bring the database schema up to date"),
    "publish": ("producers.commands:publish", "Publish files as records"),
    "run": ("headrace.stream.commands:run", "Run groups until stopped, or until caught up"),
    "worker": ("headrace.stream.commands:worker", "Run one group in this process"),
    "schedule": ("headrace.scheduling.commands:schedule", "What runs next, and why each waits"),
    "scheduler": ("headrace.scheduling.commands:scheduler", "Open the windows of scheduled groups"),
    "lag": ("headrace.backlog.commands:lag", "What waits in front of every group"),
    "status": ("headrace.status.commands:status", "Rates, lag and alerts of every group"),
    "progress": ("headrace.backlog.commands:progress", "How far a run has come"),
    "wait": ("headrace.backlog.commands:wait", "Wait until a run has reached the stores"),
    "coverage": ("headrace.backlog.commands:coverage", "Which share of the records is done"),
    "job": ("headrace.jobs.commands:job", "Jobs over the whole corpus: list, run"),
    "gates": ("headrace.gates.commands:gates", "Whether what is stored is as good as it should be"),
    "trace": ("headrace.backlog.commands:trace", "Everything that is known of one record"),
    "doctor": ("headrace.backlog.commands:doctor", "What is wrong, and what to do about it"),
    "dead": ("headrace.redo.commands:dead", "Dead letters: list, show, redrive, dismiss"),
    "requeue": ("headrace.redo.commands:requeue", "Have a stage do again what it misses"),
    "upgrade": ("headrace.redo.commands:upgrade", "Have a stage do again what is older"),
    "scores": ("consumers.scores.commands:scores", "Scores: list, recompute, backfill"),
    "top": ("consumers.scores.commands:top", "The posts with the highest score"),
    "forget": ("headrace.forget.commands:forget", "Take records out of everything"),
    "personas": (
        "consumers.personas.commands:personas",
        "Personas of communities: list, show, progress, check, export, regenerate, edit, …",
    ),
    "llm": (
        "headrace.llm.commands:llm",
        "Language models: what they cost, how things stand, estimates, batches",
    ),
    "search": ("headrace.search.commands:search", "Search the records by words and by meaning"),
    "snapshot": (
        "headrace.snapshots.commands:snapshot",
        "Snapshots of the database: create, list, verify, restore, delete",
    ),
    "reset": ("headrace.snapshots.commands:reset", "Let a stage begin again from the start"),
    "sql": ("headrace.stores.commands:sql", "Ask the database"),
    "config": ("headrace.config_commands:config", "Settings: get, show"),
}


class Lazy(click.Group):
    """A group of commands that are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            close = get_close_matches(name, COMMANDS, 1)
            if close and not ctx.resilient_parsing:
                ctx.fail(f"No such command '{name}'; did you mean {close[0]}?")
            return None
        module, _, attribute = COMMANDS[name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration file, instead of config/headrace.yaml.",
)
@click.option("--project", help="Prefix of topics, groups and the database schema.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.version_option(__version__, package_name="headrace", message="headrace %(version)s")
@click.pass_context
def headrace(
    ctx: click.Context, file: Path | None, project: str | None, log_level: str | None
) -> None:
    """Raw text records on Kafka, enriched by independent groups, queryable in PostgreSQL."""

    def load(flags: Mapping[str, Any] | None = None) -> Settings:
        """The settings in force, with a command's own flags over them."""
        from headrace import config, log

        own = {"config": file, "project": project, "log.level": log_level}
        settings = config.load(own | dict(flags or {}))
        log.setup(settings)
        return settings

    ctx.obj = load


def main(arguments: Sequence[str] | None = None) -> int:
    """The whole program; returns its exit status (a command may return one as a number)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # Not headrace.main(): it answers a broken pipe by itself, with exit status 1.
        with headrace.make_context("headrace", given) as context:
            result = headrace.invoke(context)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except HeadraceError as error:
        return _say(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        _quietly(error.show)
        return error.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "headrace"
        return _say(f"{error.format_message()} (`{path} --help` tells more)")
    except click.ClickException as error:
        _quietly(error.show)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt, EOFError):
        return 130
    except BrokenPipeError:
        # Whoever read us has gone (`| head`); nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _PLACES:
            raise
        return _say(f"{error.filename or 'writing'}: {error.strerror}")
    except UnicodeEncodeError:
        if all(map(_is_text, given)):
            raise
        return _say("an argument holds bytes that are not UTF-8")
    except Exception as error:
        for kind in type(error).__mro__:
            if (server := _SERVERS.get(f"{kind.__module__}.{kind.__name__}")) is not None:
                return _say(f"{server}: {error}")
        raise


# What a path or a disk may answer; any other error of the system is a mistake of ours.
_PLACES = {
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EROFS,
    errno.ENOSPC,
    errno.ENAMETOOLONG,
}

# Errors of servers that nobody foresaw, by name: no import for them.
_SERVERS = {"cimpl.KafkaException": "Kafka", "psycopg.OperationalError": "PostgreSQL"}


def _is_text(argument: str) -> bool:
    return not any("\ud800" <= sign <= "\udfff" for sign in argument)


def _say(message: str) -> int:
    line = " ".join(message.split())
    _quietly(lambda: print(f"headrace: {line}", file=sys.stderr))
    return 2


def _quietly(write: Callable[[], object]) -> None:
    with suppress(OSError):  # standard error may be gone as well
        write()
