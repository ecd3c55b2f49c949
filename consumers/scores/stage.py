"""The stage `scores`: how much of each dimension a post has, from 0 to 10, as a language model sees
it. Many posts go into a call; an answer is a post's own, whatever stood beside it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.config import Scores
from headrace.llm import asking, prompts
from headrace.log import get
from headrace.stream.stage import Context, Outcome, Process, Record, dead, deferred, drop, ok

log = get(__name__)

SCALE = 10
_TOKENS = 12  # of an answer, for each dimension of each post


def build(context: Context) -> Process:
    return ScoresStage(context.settings.scores, asking.open(context))


class ScoresStage:
    def __init__(self, settings: Scores, asker: asking.Asker) -> None:
        self._settings = settings
        self._asker = asker
        self._prompt = prompts.load("consumers.scores", "scores")
        self._missed: set[str] = set()  # told once
        self.version = f"{self._prompt.version}-{asker.model}"

    def __call__(self, batch: Sequence[Record]) -> list[Outcome]:
        began = time.monotonic()
        outcomes: dict[int, Outcome] = {}
        asked: dict[tuple[str, ...], list[int]] = {}
        for place, record in enumerate(batch):
            wanted = self._wanted(record.parts)
            if not record.text.strip():
                outcomes[place] = drop("empty")
            elif not wanted:
                outcomes[place] = drop("no such dimension")
            else:
                asked.setdefault(wanted, []).append(place)
        for names, places in asked.items():
            items = [self._item(batch[place], names) for place in places]
            answers = self._asker.ask(self._task(names), items, since=began)
            for place, answer in zip(places, answers, strict=True):
                parts = names if batch[place].parts else ()
                outcomes[place] = _outcome(answer, names, parts)
        return [outcomes[place] for place in range(len(batch))]

    def _wanted(self, parts: Sequence[str]) -> tuple[str, ...]:
        """The dimensions to ask for, in the settings' order; those that are none any more are
        left out."""
        for unknown in set(parts) - self._settings.dimensions.keys() - self._missed:
            self._missed.add(unknown)
            log.warning(
                "dimension %s is asked for, and scores.dimensions does not name it: it was taken"
                " out, or this worker is to be restarted with the newer settings",
                unknown,
            )
        return tuple(name for name in self._settings.dimensions if not parts or name in parts)

    def _task(self, names: Sequence[str]) -> asking.Task:
        described = {name: self._settings.dimensions[name].description for name in names}
        return asking.Task(
            self._prompt,
            schema(names),
            pack=self._settings.together,
            output_tokens=_TOKENS * len(names),
            values={"dimensions": described, "scale": SCALE},
        )

    def _item(self, record: Record, names: Sequence[str]) -> asking.Item:
        content = self._content(record.value, record.text)
        return asking.Item(record.id, ",".join(names), content, alone=record.parts)

    def _content(self, value: Mapping[str, Any], text: str) -> dict[str, str]:
        shown = {"platform": value.get("platform"), "community": value.get("community")}
        content = {name: str(found) for name, found in shown.items() if found}
        return content | {"text": text[: self._settings.max_characters]}


def schema(names: Sequence[str]) -> dict[str, Any]:
    """JSON Schema of one post's answer."""
    score = {"type": "number", "minimum": 0, "maximum": SCALE}
    return {
        "type": "object",
        "properties": dict.fromkeys(names, score),
        "required": list(names),
        "additionalProperties": False,
    }


def _outcome(answer: asking.Outcome, names: Sequence[str], parts: Sequence[str]) -> Outcome:
    if isinstance(answer, asking.Deferred):
        return deferred(answer.reason)
    if isinstance(answer, asking.Failed):
        return dead(answer.reason)
    return ok({name: round(float(answer.value[name]), 2) for name in names}, parts)
