"""What README.md and docs/ show exists: commands with their options, links, paths, groups, topics,
settings and metrics; and what needs no server answers as the pages say."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from headrace import cli, config
from headrace.stream import topology

CLONE = Path(__file__).resolve().parent.parent
PAGES = [CLONE / "README.md", *sorted((CLONE / "docs").glob("*.md"))]
OURS = {"questions", "mastodon"}  # what the pages invent
FOLDERS = "headrace|producers|consumers|tests|config|docs|bench|schemas|samples"
VARIABLES = {"HEADRACE_CONFIG", "HEADRACE_CACHE_DIR", "HEADRACE_DATA_DIR"}
SECTIONS = "kafka|postgres|weaviate|servers|processing|scheduler|publishing|entities|sentiment|log"

pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def blocks(page: Path, language: str = "") -> list[str]:
    """The fenced blocks of a page; those of one language, if it is given."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.M | re.S)
    return [text for name, text in found if not language or name == language]


def inline(page: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    return [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", prose)]


def shown(page: Path) -> Iterator[list[str]]:
    """Every `headrace …` of the blocks, as the words of a shell; shown output is left out."""
    for block in blocks(page):
        lines = [line.strip() for line in block.replace("\\\n", " ").splitlines()]
        if any(line.startswith("$ ") for line in lines):
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        for line in lines:
            if re.match(r"(\w+=\S+ )*(\.venv/bin/)?headrace ", line):
                yield from _commands(line)


def _commands(line: str) -> Iterator[list[str]]:
    reader = shlex.shlex(line, posix=True, punctuation_chars="|;&<>")
    reader.whitespace_split = True
    command: list[str] = []
    for word in [*reader, ";"]:
        if re.fullmatch(r"[|;&<>]+", word):
            name = Path(command[0]).name if command else ""
            if name == "headrace":
                yield command[1:]
            command = [""] if word in ("<", ">") else []  # what follows them is a file
        elif command or not re.match(r"\w+=", word):
            command.append(word)


def leaf(words: list[str]) -> tuple[list[str], click.Command, list[str]]:
    """(names, command, its own words). Raises UsageError for a name or an option of a group that
    does not exist."""
    command: click.Command = cli.headrace
    names: list[str] = []
    while isinstance(command, click.Group):
        context = click.Context(command, info_name=" ".join(names))
        words = command.make_parser(context).parse_args(args=list(words))[1]
        if not words:
            break
        name, found, words = command.resolve_command(context, words)
        if found is None:
            raise click.UsageError(f"there is no command {name}")
        command = found
        names.append(str(found.name))
    return names, command, words


@pytest.fixture(scope="module")
def known() -> topology.Topology:
    return topology.load(config.load({"config": CLONE / "config" / "headrace.yaml"}))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, and no settings from around it."""
    for name in [name for name in os.environ if name.startswith("HEADRACE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answer(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(words) == 0, capfd.readouterr().err
    return capfd.readouterr().out


@pages
def test_every_command_exists_with_its_options(page: Path, known: topology.Topology) -> None:
    for words in shown(page):
        names, command, rest = leaf(words)
        values = command.make_context(names[-1], list(rest)).params
        named = values.get("groups") or values.get("group") or ()
        for group in [named] if isinstance(named, str) else named:
            there = {*known.groups, *known.projectors, *known.jobs, *known.apps}
            assert group.isupper() or group in there | OURS, words
    for text in inline(page):
        if text.startswith("headrace ") and "…" not in text.split()[:2]:
            words = [w for w in re.sub(r"[\[\]…]", "", text).split() if not re.match(r"\w+=", w)]
            names, command, rest = leaf(words[1:])
            context = click.Context(command, info_name=names[-1] if names else None)
            if names and not isinstance(command, click.Group):
                command.make_parser(context).parse_args(args=rest)


def test_the_commands_are_found_at_all() -> None:
    found = {" ".join(leaf(words)[0]) for page in PAGES for words in shown(page)}
    assert {"publish", "run", "topics apply", "config get", "lag", "sql"} <= found
    with pytest.raises(click.UsageError):
        names, command, rest = leaf(["--project", "a", "publish", "x.csv", "--nonsense"])
        command.make_context(names[-1], rest)


@pages
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), target
            heads = re.findall(r"^#+ (.*)$", file.read_text(), re.M) if anchor else []
            assert not anchor or anchor in [
                re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in heads
            ]
    for text in inline(page):
        if re.fullmatch(rf"({FOLDERS})/[\w./-]+", text):
            assert (CLONE / text).exists() or any(name in text for name in OURS), text


@pages
def test_topics_settings_and_metrics_exist(page: Path, known: topology.Topology) -> None:
    settings = {".".join(location) for location, _ in config.leaves(config.Settings())}
    sections = {name.rpartition(".")[0] for name in settings}
    text = page.read_text()
    for name in re.findall(r"\b(?:raw|enriched)\.[a-z_.]*[a-z]|\b[a-z_]+\.(?:redo|dlt)\b", text):
        plain = name.rstrip(".")
        templates = {topic.template.partition(".{")[0] for topic in known.topics.values()}
        known_name = plain in known.topics or plain in templates or plain == "enriched"
        assert known_name or set(plain.split(".")) & OURS, name
    for text_ in inline(page):
        if re.fullmatch(rf"({SECTIONS})\.[a-z_]+", text_) and not text_.endswith((".py", ".md")):
            assert text_ in settings, text_
    for name in set(re.findall(r"\bHEADRACE_[A-Z_]+[A-Z]", text)) - VARIABLES:
        where = name.removeprefix("HEADRACE_").lower().replace("__", ".")
        assert where in settings or where in sections, name
    sources = "".join(
        (CLONE / "headrace" / name).read_text()
        for name in ("stream/metrics.py", "backlog/exporter.py")
    )
    for name in re.findall(r"`((?:headrace|kafka)_[a-z_]+)", text):
        if name not in ("headrace_reader", "headrace_demo"):
            assert name.removesuffix("_total") in sources, name


def test_configuration_answers_as_shown(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = (CLONE / "docs" / "configuration.md").read_text()
    for key in ("processing.batch_size", "servers"):
        said = answer(capfd, "config", "get", key)
        assert f"$ headrace config get {key}\n{said}" in page


def test_a_working_folder_is_made_as_shown(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = next(w for w in shown(CLONE / "docs" / "configuration.md") if w[0] == "init")
    said = answer(capfd, *words).splitlines()
    page = (CLONE / "docs" / "configuration.md").read_text().splitlines()
    assert all(line in page for line in (said[0], said[-2], said[-1]))


def test_topics_are_listed_as_shown(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = answer(capfd, "topics", "list").splitlines()
    table = next(b for b in blocks(CLONE / "docs" / "topics.md") if "headrace topics list" in b)
    assert [line for line in table.splitlines()[1:] if line != "…" and line not in said] == []


def test_the_group_shown_is_the_one_there_is(known: topology.Topology) -> None:
    written = yaml.safe_load(blocks(CLONE / "docs" / "topics.md", "yaml")[0])["groups"]
    real = yaml.safe_load((CLONE / "topics.yaml").read_text())
    for name, group in written.items():
        there = {**real["group_defaults"], **real["groups"][name]}
        assert group == {key: there[key] for key in group}


def test_the_platform_file_maps_as_shown(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = CLONE / "docs" / "platform-files.md"
    platforms = here / "config" / "platforms"
    shutil.copytree(CLONE / "config" / "platforms", platforms)
    (platforms / "mastodon.yaml").write_text(blocks(page, "yaml")[0])
    (here / "data").mkdir()
    toot = (
        '{"uri":"https://fosstodon.org/users/ada/statuses/1101","account":{"acct":"ada"},'
        '"content":"The new Firefox is a joy on my old laptop","spoiler_text":"",'
        '"favourites_count":12,"reblogs_count":3,"created_at":"2026-05-02T09:12:00Z",'
        '"language":"en","sensitive":false}\n'
    )
    other = toot.replace("1101", "1102")
    (here / "data" / "fosstodon.jsonl").write_text(toot + other + toot.replace("/1101", ""))
    said = answer(capfd, "publish", "data/fosstodon.jsonl", "--check").splitlines()
    table = next(b for b in blocks(page) if "--check" in b).splitlines()[1:]
    assert [line for line in table if line != "…" and line not in said] == []


def test_every_make_target_exists() -> None:
    targets = re.findall(r"^(\w+):", (CLONE / "Makefile").read_text(), re.M)
    for page in PAGES:
        assert set(re.findall(r"^make (\w+)|`make (\w+)", page.read_text())) <= {
            pair for name in targets for pair in ((name, ""), ("", name))
        }
