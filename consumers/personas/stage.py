"""Describes each community and makes its personas: a whole set or nothing.

What is asked next depends only on the record and on what the ledger holds, so a set that was
interrupted goes on with its next call, and one that is whole is never asked for again: a community
that merely grew keeps it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from consumers.personas import asked, making, watching
from consumers.personas.making import Body, Call, Draft, Pair, Plan
from headrace.config import Settings
from headrace.errors import Retry
from headrace.graph import persona_id
from headrace.llm import asking, prompts
from headrace.llm.asking import Asker
from headrace.llm.ledger import Order
from headrace.llm.prompts import Prompt
from headrace.log import get
from headrace.models import embedding
from headrace.models.embedding import Embedder, Vectors
from headrace.stream.stage import Context, Outcome, Process, Record, dead, deferred, drop, ok

log = get(__name__)


def build(context: Context) -> Process:
    settings = context.settings
    prompt = prompts.load("consumers.personas", "personas")
    model = embedding.load(settings.embeddings, settings.llm)
    watch = watching.Watch(None if "asker" in context.options else context)  # an estimate is silent
    return Personas(settings, asking.open(context), prompt, model, watch)


def calls(settings: Settings) -> int:
    """Of one community: each follows from the one before. An estimate goes by it."""
    return -(-settings.personas.count // asked.together(settings))


# What an upgrade is told to come to, in place of what all of it would cost anew.
kept = (
    "each set stays as it is, and calls are made only for what one lacks;"
    " `headrace personas regenerate` makes it anew"
)


class Personas:
    def __init__(
        self,
        settings: Settings,
        asker: Asker,
        prompt: Prompt,
        model: Embedder,
        watch: watching.Watch | None = None,
    ) -> None:
        own = settings.personas
        self._plan = Plan(own.count, asked.together(settings), own.similarity, own.again)
        self._posts = own.posts
        self._wanted = asked.wanted(settings)
        self._asker = asker
        self._prompt = prompt
        self._model = model
        self._watch = watch or watching.Watch(None)
        self.version = f"prompt{prompt.version}-{model.version}"

    def __call__(self, batch: Sequence[Record]) -> list[Outcome]:
        self._watch.batch()
        return [self._outcome(record) for record in batch]

    def committed(self) -> None:
        """The last batch is in Kafka for good."""
        self._watch.committed()

    def _outcome(self, record: Record) -> Outcome:
        posts = making.shown(record.value, record.platform, self._posts)
        if not posts:
            return drop("no posts")
        try:
            return self._made(record, posts)
        except making.Unusable as error:
            return dead(str(error))

    def _made(self, record: Record, posts: Sequence[Body]) -> Outcome:
        began = time.monotonic()
        order = self._asker.order(record.id)
        held = dict(self._asker.kept(record.id, order.set, self._prompt))
        vectors: dict[str, Vectors] = {}
        draft = self._draft(order, held)
        self._watch.begins(record, draft, len(held))
        asked_for = 0
        while True:
            call = draft.missing
            if call is None:
                self._embed(record, draft, vectors)
                call = draft.again(self._alike(draft, vectors))
            if call is None:
                break
            item = self._item(record, order.set, posts, draft, call)
            # All calls together keep to what a batch may take: then it goes on with the next.
            (answer,) = self._asker.ask(self._task(posts, call), [item], since=began)
            if isinstance(answer, asking.Failed):
                return dead(f"{call.part}: {answer.reason}")
            if isinstance(answer, asking.Deferred):
                return deferred(answer.reason)
            asked_for += 1
            held[call.part] = answer.value
            draft = self._draft(order, held)
            self._watch.answered(call, answer.value, draft)
        if self._asker.order(record.id).set != order.set:
            # Else the earlier set could come to stand behind the one that was ordered meanwhile.
            raise Retry(1.0, f"another set of {record.id} was ordered meanwhile")
        self._watch.made(len(draft.entries), kept=not asked_for)
        changed = not self._is_of(record, order, posts)
        return ok(self._result(record, order.set, draft, vectors, changed))

    # -- asking

    def _draft(self, order: Order, held: Mapping[str, Mapping[str, Any]]) -> Draft:
        return making.draft(self._plan, order.keep, held)

    def _task(self, posts: Sequence[Body], call: Call) -> asking.Task:
        return asking.Task(
            self._prompt,
            schema=asked.schema(call, posts, asked.HELD),
            wanted=asked.schema(call, posts, self._wanted),
            output_tokens=asked.tokens(call),
        )

    def _item(
        self, record: Record, set: int, posts: Sequence[Body], draft: Draft, call: Call
    ) -> asking.Item:
        content = asked.content(record.value, record.platform, posts, draft, call)
        return asking.Item(record.id, call.part, content, set=set, reason=call.reason)

    def _is_of(self, record: Record, order: Order, posts: Sequence[Body]) -> bool:
        """Whether the set was begun from what stands in the record now."""
        nothing = self._draft(order, {})
        if nothing.missing is None:
            return True
        item = self._item(record, order.set, posts, nothing, nothing.missing)
        return self._asker.known(self._task(posts, nothing.missing), item)

    # -- vectors

    def _embed(self, record: Record, draft: Draft, vectors: dict[str, Vectors]) -> None:
        """All in one batch; what came instead of others later on by itself."""
        texts = [_text(record, draft), *(making.text_of(entry.body) for entry in draft.entries)]
        missing = [text for text in dict.fromkeys(texts) if text not in vectors]
        if missing:
            vectors.update(zip(missing, self._model.embed(missing), strict=True))
            log.debug("embedded %d texts", len(missing))

    def _alike(self, draft: Draft, vectors: Mapping[str, Vectors]) -> list[Pair]:
        if not draft.entries:
            return []
        rows = np.stack([vectors[making.text_of(entry.body)] for entry in draft.entries])
        return making.near(draft.entries, rows, self._plan.similarity)

    # -- the result

    def _result(
        self,
        record: Record,
        set: int,
        draft: Draft,
        vectors: Mapping[str, Vectors],
        changed: bool,
    ) -> dict[str, Any]:
        def vector(text: str) -> str:
            return embedding.encoded(vectors[text])

        def persona(entry: making.Entry) -> dict[str, Any]:
            kept = entry.round == 0
            id = entry.body["id"] if kept else persona_id(record.id, set, entry.place)
            evidence = [making.full(name, record.platform) for name in entry.body["evidence"]]
            own = {"id": id, "vector": vector(making.text_of(entry.body)), "evidence": evidence}
            return {**entry.body, **own}

        # Not only the model in force: answers that were there may be another's.
        models = self._asker.models(record.id, set, self._prompt)
        return {
            "set": set,
            "changed": changed,
            "model": ", ".join(models) or self._asker.model,
            "community": {
                "name": record.value["name"],
                **(draft.profile or {}),
                "vector": vector(_text(record, draft)),
            },
            "vectors": {"model": self._model.name, "dimensions": self._model.dimensions},
            "personas": [persona(entry) for entry in draft.in_places],
            "kept": [str(e.body["id"]) for e in draft.in_places if e.round == 0],
        }


def _text(record: Record, draft: Draft) -> str:
    return making.text_of_community(record.value["name"], draft.profile or {})
