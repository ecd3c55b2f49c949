"""Asking Weaviate: by words, by meaning, or both, with filters.

Each alias is asked by itself and the answers are put together: by words the better score comes
first, by meaning the smaller distance. A hybrid answer weighs both, each from 0 to 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from headrace import schedule
from headrace.config import Settings
from headrace.errors import HeadraceError, ServerUnavailable
from headrace.models import embedding
from headrace.search import collections
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
_CANDIDATES = 100  # of each way, for a hybrid answer


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
    """`score`: of words as Weaviate counts them; of meaning the cosine; of hybrid 0 to 1."""

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


class Searcher:
    """Searches on one connection; the model is loaded with the first question by meaning."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: WeaviateClient = weaviate.connect(settings)
        self._model: embedding.Embedder | None = None

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
                return self._by_words(known, words, filters, limit)
            if mode == "semantic":
                return self._by_meaning(known, words, filters, limit)
            most = max(limit, _CANDIDATES)
            return fused(
                self._by_words(known, words, filters, most),
                self._by_meaning(known, words, filters, most),
                self._settings.search.semantic_share,
            )[:limit]
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
        there = self._client.alias.list_all()
        every = collections.aliases(self._settings, filters.platforms, filters.kinds)
        found = [of for of in every if of in there]
        if not found and not any(of in there for of in collections.aliases(self._settings)):
            raise HeadraceError(
                f"search: nothing of project {self._settings.project} is in Weaviate yet:"
                " `headrace run search` projects what is stored"
            )
        return found

    def _by_words(
        self, aliases: Iterable[str], words: str, filters: Filters, limit: int
    ) -> list[Hit]:
        from weaviate.classes.query import MetadataQuery

        chosen = _filter(filters)
        hits: list[Hit] = []
        for of in aliases:
            said = self._client.collections.use(of).query.bm25(
                words,
                query_properties=list(_WORDS),
                filters=chosen,
                limit=limit,
                return_metadata=MetadataQuery(score=True),
                return_properties=list(_SHOWN),
            )
            hits += [_hit(o.properties, o.metadata.score or 0.0) for o in said.objects]
        return _best(hits, limit)

    def _by_meaning(
        self, aliases: Iterable[str], words: str, filters: Filters, limit: int
    ) -> list[Hit]:
        from weaviate.classes.query import MetadataQuery

        aliases = list(aliases)
        if not aliases:
            return []
        wanted = embedding.space_of(self._settings.embeddings)
        for of in aliases:
            space = collections.space_in(self._client, of)
            if space != wanted:
                raise NoVectors(
                    f"search: the vectors behind {of} are of {space}, the settings' model makes"
                    f" {wanted}: `headrace search rebuild`, or --mode keyword"
                )
        vector = self._vector(words)
        chosen = _filter(filters)
        hits: list[Hit] = []
        for of in aliases:
            said = self._client.collections.use(of).query.near_vector(
                vector,
                filters=chosen,
                limit=limit,
                return_metadata=MetadataQuery(distance=True),
                return_properties=list(_SHOWN),
            )
            hits += [_hit(o.properties, 1.0 - (o.metadata.distance or 0.0)) for o in said.objects]
        return _best(hits, limit)

    def _vector(self, words: str) -> list[float]:
        try:
            self._model = self._model or embedding.load(self._settings.embeddings)
            numbers: list[float] = self._model.embed([words])[0].tolist()
        except (Retry, Pause, HeadraceError) as error:
            raise NoVectors(f"search: no vector for these words: {error}") from None
        return numbers


def fused(words: Sequence[Hit], meaning: Sequence[Hit], share: float) -> list[Hit]:
    """Both answers in one, each score from 0 (the last) to 1 (the first), weighed. Pure."""
    scores: dict[str, float] = {}
    hits: dict[str, Hit] = {}
    for found, weight in ((words, 1 - share), (meaning, share)):
        if not found or weight == 0:
            continue
        high, low = found[0].score, found[-1].score
        for hit in found:
            part = (hit.score - low) / (high - low) if high > low else 1.0
            scores[hit.id] = scores.get(hit.id, 0.0) + weight * part
            hits[hit.id] = hit
    order = sorted(scores, key=lambda record_id: (-scores[record_id], record_id))
    return [_scored(hits[record_id], scores[record_id]) for record_id in order]


def _scored(hit: Hit, score: float) -> Hit:
    return replace(hit, score=score)


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
            return found if found.tzinfo else found.replace(tzinfo=UTC)
    else:
        try:
            return datetime.now(UTC) - timedelta(milliseconds=schedule.duration_ms(text))
        except (HeadraceError, ValueError, OverflowError):
            pass
    raise HeadraceError(f"{name} {text}: write a date (2026-01-31), a time, or an age (7 days)")
