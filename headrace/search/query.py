"""Asking Weaviate: by words, by meaning, or both, with filters.

Each alias is asked by itself and the answers are put together: by words with weights that count
for all of them (`headrace.search.words`), by meaning by distance. A hybrid answer looks at what
either way finds, and weighs both for each of these, each from 0 to 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from headrace import platforms, schedule
from headrace.config import Settings
from headrace.errors import HeadraceError, ServerUnavailable
from headrace.models import embedding
from headrace.search import collections
from headrace.search import words as counting
from headrace.slug import slug
from headrace.stores import weaviate
from headrace.stream.stage import Pause, Retry

if TYPE_CHECKING:
    from weaviate import WeaviateClient

Mode = Literal["keyword", "semantic", "hybrid"]

_SHOWN = (
    "record_id", "platform", "kind", "title", "text", "author", "community", "url", "created_at",
    "language", "sentiment", "sentiment_score", "entities",
)  # fmt: skip
_WORDS = ("title^2", "text", "community")
_CANDIDATES = 100  # of each way and alias, for a hybrid answer
_REMEMBERED = 10_000  # counts
# Weaviate counts nanoseconds; what they do not reach it takes for some other time.
_FIRST, _LAST = datetime(1678, 1, 1, tzinfo=UTC), datetime(2262, 1, 1, tzinfo=UTC)
_AMONG = 3  # times as many of each alias are looked at where several are asked by words


class NoVectors(HeadraceError):
    """Nothing can be asked by meaning; says why."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Times are RFC 3339 or dates, or an age ("7 days")."""

    platforms: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    sentiment: str | None = None
    entities: tuple[str, ...] = ()
    community: str | None = None
    author: str | None = None
    language: str | None = None
    since: str | None = None
    until: str | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """`score`: of words BM25's; of meaning the cosine; of hybrid 0 to 1."""

    score: float
    id: str
    platform: str
    kind: str
    text: str
    title: str | None = None
    author: str | None = None
    community: str | None = None
    url: str | None = None
    created_at: datetime | None = None
    language: str | None = None
    sentiment: str | None = None
    sentiment_score: float | None = None
    entities: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        made = asdict(self)
        made["created_at"] = self.created_at.isoformat() if self.created_at else None
        return made


class _Found(NamedTuple):
    hit: Hit
    vector: Sequence[float] | None = None


class Searcher:
    """Searches on one connection; the model is loaded with the first question by meaning. How many
    records hold a word is asked once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: WeaviateClient = weaviate.connect(settings)
        self._model: embedding.Embedder | None = None
        self._holding: dict[tuple[str, str], int] = {}  # by alias and term; "": all records

    def __enter__(self) -> Searcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def search(
        self,
        words: str,
        mode: Mode = "hybrid",
        filters: Filters = Filters(),
        limit: int = 10,
    ) -> list[Hit]:
        """The best hits, best first. Raises HeadraceError where there is nothing to ask yet, or
        where a filter cannot be read; ServerUnavailable where Weaviate does not answer."""
        if not words.strip():
            raise HeadraceError("search: say what to look for")
        try:
            known = self._aliases(filters)
            if mode == "keyword":
                return self._keyword(known, words, filters, limit)
            if mode == "semantic":
                found = self._by_meaning(known, self._vector(known, words), filters, limit)
                return _best([hit for hit, _ in found], limit)
            return self._hybrid(known, words, filters, limit)
        except Exception as error:
            if isinstance(error, HeadraceError):
                raise
            if weaviate.lost(error):
                raise ServerUnavailable(f"Weaviate: {weaviate.line(error)}") from None
            if weaviate.known(error):
                raise HeadraceError(f"search: {weaviate.line(error)}") from None
            raise

    def search_as_can_be(
        self,
        words: str,
        mode: Mode | None = None,
        filters: Filters = Filters(),
        limit: int = 10,
        say: Callable[[str], object] = lambda why: None,
    ) -> list[Hit]:
        """The same; without a mode hybrid, or by the words alone (`say` hears why) where nothing
        can be asked by meaning."""
        try:
            return self.search(words, mode or "hybrid", filters, limit)
        except NoVectors as error:
            if mode is not None:
                raise
            say(f"by words only: {error}")
            return self.search(words, "keyword", filters, limit)

    def _aliases(self, filters: Filters) -> list[str]:
        for name in filters.platforms:
            platforms.get(self._settings, name)
        there = self._client.alias.list_all()
        every = collections.aliases(self._settings, filters.platforms, filters.kinds)
        found = [of for of in every if of in there]
        if not found and not any(of in there for of in collections.aliases(self._settings)):
            raise HeadraceError(
                f"search: nothing of project {self._settings.project} is in Weaviate yet:"
                " `headrace run search` projects what is stored"
            )
        return found

    def _keyword(
        self, aliases: Sequence[str], words: str, filters: Filters, limit: int
    ) -> list[Hit]:
        if len(aliases) < 2:
            return _best([hit for hit, _ in self._by_words(aliases, words, filters, limit)], limit)
        found = self._by_words(aliases, words, filters, _AMONG * limit)
        hits = [hit for hit, _ in found]
        scores = self._scores(aliases, words, hits)
        return _best([replace(hit, score=s) for hit, s in zip(hits, scores, strict=True)], limit)

    def _hybrid(
        self, aliases: Sequence[str], words: str, filters: Filters, limit: int
    ) -> list[Hit]:
        vector = self._vector(aliases, words)
        most = max(limit, _CANDIDATES)
        meant = self._by_meaning(aliases, vector, filters, most)
        meant = sorted(meant, key=lambda found: -found.hit.score)[:most]
        told = self._by_words(aliases, words, filters, most, with_vectors=True)
        near = {hit.id: hit.score for hit, _ in meant}
        for hit, own in told:
            if own is not None and hit.id not in near:
                near[hit.id] = float(np.dot(own, vector))
        hits = {hit.id: hit for hit, _ in (*told, *meant)}
        scores = self._scores(aliases, words, list(hits.values()))
        by_words = dict(zip(hits, scores, strict=True))
        # Nearer than the last of the nearest is something; whatever is farther is nothing.
        floor = meant[-1].hit.score if len(meant) == most else min(near.values(), default=0.0)
        joined = fused(by_words, near, floor, self._settings.search.semantic_share)
        return _best([replace(hits[name], score=score) for name, score in joined.items()], limit)

    def _by_words(
        self,
        aliases: Sequence[str],
        words: str,
        filters: Filters,
        limit: int,
        with_vectors: bool = False,
    ) -> list[_Found]:
        """So many of each alias, with the scores that they have there."""
        from weaviate.classes.query import MetadataQuery

        chosen = _filter(filters)
        found: list[_Found] = []
        for of in aliases:
            said = self._client.collections.use(of).query.bm25(
                words,
                query_properties=list(_WORDS),
                filters=chosen,
                limit=limit,
                include_vector=with_vectors,
                return_metadata=MetadataQuery(score=True),
                return_properties=list(_SHOWN),
            )
            for item in said.objects:
                vector: Any = item.vector.get("default") if with_vectors else None
                found.append(_Found(_hit(item.properties, item.metadata.score or 0.0), vector))
        return found

    def _scores(self, aliases: Sequence[str], words: str, hits: Sequence[Hit]) -> list[float]:
        terms = counting.terms(words)
        total = sum(self._count(of, "") for of in aliases)
        holding = {term: sum(self._count(of, term) for of in aliases) for term in terms}
        texts = [(hit.title or "", f"{hit.text} {hit.community or ''}") for hit in hits]
        return counting.scores(texts, counting.weights(holding, total))

    def _count(self, of: str, term: str) -> int:
        """How many records behind an alias hold the term; all of them for none."""
        from weaviate.classes.query import Filter

        if (of, term) not in self._holding:
            if len(self._holding) > _REMEMBERED:
                self._holding.clear()
            said = self._client.collections.use(of).aggregate.over_all(
                filters=Filter.by_property("text").equal(term) if term else None,
                total_count=True,
            )
            self._holding[of, term] = said.total_count or 0
        return self._holding[of, term]

    def _by_meaning(
        self, aliases: Sequence[str], vector: Sequence[float], filters: Filters, limit: int
    ) -> list[_Found]:
        """So many of each alias; their scores are cosines."""
        from weaviate.classes.query import MetadataQuery

        chosen = _filter(filters)
        found: list[_Found] = []
        for of in aliases:
            said = self._client.collections.use(of).query.near_vector(
                list(vector),
                filters=chosen,
                limit=limit,
                return_metadata=MetadataQuery(distance=True),
                return_properties=list(_SHOWN),
            )
            found += [
                _Found(_hit(item.properties, 1.0 - (item.metadata.distance or 0.0)))
                for item in said.objects
            ]
        return found

    def _vector(self, aliases: Sequence[str], words: str) -> list[float]:
        """The question's own. Raises NoVectors where it cannot be had or compared."""
        wanted = embedding.space_of(self._settings.embeddings)
        for of in aliases:
            space = collections.space_in(self._client, of)
            if space != wanted:
                raise NoVectors(
                    f"search: the vectors behind {of} are of {space}, the settings' model makes"
                    f" {wanted}: `headrace search rebuild`, or --mode keyword"
                )
        try:
            made = self._model or embedding.load(self._settings.embeddings, self._settings.llm)
            self._model = made
            numbers: list[float] = self._model.embed([words])[0].tolist()
        except (Retry, Pause, HeadraceError) as error:
            raise NoVectors(f"search: no vector for these words: {error}") from None
        return numbers


def fused(
    words: Mapping[str, float], near: Mapping[str, float], floor: float, share: float
) -> dict[str, float]:
    """Both scores in one, by id: words from 0 to the best one's 1, cosines from the floor to the
    best one's 1, weighed. Pure."""
    most = max(words.values(), default=0.0) or 1.0
    span = max(near.values(), default=floor) - floor
    joined = {}
    for name in {**words, **near}:
        close = near.get(name, floor) - floor
        part = max(close / span, 0.0) if span > 0 else float(name in near)
        joined[name] = (1 - share) * words.get(name, 0.0) / most + share * part
    return joined


def _best(hits: list[Hit], limit: int) -> list[Hit]:
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:limit]


def _hit(found: Mapping[str, Any], score: float) -> Hit:
    return Hit(
        score=score if math.isfinite(score) else 0.0,
        id=found["record_id"],
        platform=found["platform"],
        kind=found["kind"],
        text=found.get("text") or "",
        title=found.get("title"),
        author=found.get("author"),
        community=found.get("community"),
        url=found.get("url"),
        created_at=found.get("created_at"),
        language=found.get("language"),
        sentiment=found.get("sentiment"),
        sentiment_score=found.get("sentiment_score"),
        entities=tuple(found.get("entities") or ()),
    )


def _filter(filters: Filters) -> Any:
    from weaviate.classes.query import Filter

    by = Filter.by_property
    parts: list[Any] = []
    if filters.platforms:  # two platforms may share a collection
        parts.append(by("platform").contains_any(list(filters.platforms)))
    if filters.kinds:
        parts.append(by("kind").contains_any(list(filters.kinds)))
    exact = ("sentiment", "author", "language")
    parts += [by(name).equal(value) for name in exact if (value := getattr(filters, name))]
    if filters.community:
        parts.append(by("community_key").equal(slug(filters.community)))
    if filters.entities:
        keys = [entity.casefold() for entity in filters.entities]
        parts.append(by("entity_keys").contains_all(keys))
    if filters.since:
        parts.append(by("created_at").greater_or_equal(moment("--since", filters.since)))
    if filters.until:
        parts.append(by("created_at").less_than(moment("--until", filters.until)))
    return Filter.all_of(parts) if parts else None


def moment(name: str, text: str) -> datetime:
    """A date, a time, or an age before now. Raises HeadraceError."""
    if re.match(r"\d{4}-", text):
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            found = None
        if found is not None:
            found = found if found.tzinfo else found.replace(tzinfo=UTC)
            return min(max(found, _FIRST), _LAST)
    else:
        try:
            age = timedelta(milliseconds=schedule.duration_ms(text))
            return max(datetime.now(UTC) - age, _FIRST)
        except (HeadraceError, ValueError, OverflowError):
            pass
    raise HeadraceError(f"{name} {text}: write a date (2026-01-31), a time, or an age (7 days)")
