"""docs/adding-a-stage.md, followed to the letter."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PAGE = Path(__file__).parent.parent / "docs" / "adding-a-stage.md"


@pytest.fixture(scope="module")
def blocks():
    found = {"python": [], "yaml": [], "console": []}
    for kind, text in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.M | re.S):
        found[kind].append(text)
    return found


def test_the_page(worlds, blocks):
    stage, trial = blocks["python"]
    (entries,) = map(yaml.safe_load, blocks["yaml"])

    def add(content):
        for key, values in entries.items():
            content[key].update(values)

    world = worlds(change=add)
    (file,) = re.findall(r"`(stages/\w+\.py)`:$", PAGE.read_text(), re.M)
    (world.home / "stages").mkdir()
    (world.home / file).write_text(stage)

    subprocess.run(
        [sys.executable, "-c", trial], cwd=world.home, env=world.env(), timeout=60, check=True
    )
    world.post(texts=["Is it any good?", "It is.", "", "هل هو جيد؟"], n=8)
    outputs = [
        world.command(*shlex.split(line.removeprefix("$ headrace "))).stdout
        for line in blocks["console"][0].splitlines()
    ]
    assert "questions: 6 ok, 2 dropped" in outputs[0]
    assert re.search(r"\b6\b", outputs[1])
    results = [value.get("result") for value in world.values("enriched.questions")]
    assert results.count({"question": True, "marks": 1}) == 4


def test_the_stage_is_as_short_as_promised(blocks):
    code = [line for line in blocks["python"][0].splitlines() if line.strip()]
    assert len(code) <= 15
