"""Weaviate's collections: their names, what they hold, and the aliases in front of them.

People and programs ask an alias (`Headrace_RedditPost`); behind it stands a collection with a
number (`Headrace_RedditPost_v1`). `headrace search rebuild` makes the next number beside it and
turns the alias over when it holds everything. Table search_collections says which there are;
whoever changes that holds the lock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import psycopg

from headrace import platforms
from headrace.config import Settings
from headrace.errors import ConfigError
from headrace.log import get
from headrace.models import embedding
from headrace.search import marks
from headrace.stream import topology

if TYPE_CHECKING:
    from weaviate import WeaviateClient
    from weaviate.collections.classes.config import Property

log = get(__name__)

_VALID = re.compile(r"^[A-Z][_0-9A-Za-z]{0,180}$")


class Collection(NamedTuple):
    name: str
    alias: str
    building: bool
    space: str | None


def alias(settings: Settings, platform: str, kind: str) -> str:
    """The name under which records of a platform and kind are searched."""
    templates = settings.search.collections
    template = templates.get(kind) or templates.get("default") or "{platform}Post"
    try:
        filled = template.format(platform=_camel(platform))
    except (KeyError, IndexError, ValueError):
        filled = ""
    name = f"{settings.project[:1].upper()}{settings.project[1:]}_{filled}"
    if not filled or not _VALID.match(name):
        raise ConfigError(
            f"search.collections: {template!r} gives {name!r}; write letters, digits and"
            " underscores, and {platform}, as in {platform}Post"
        )
    return name


def aliases(settings: Settings, chosen: Sequence[str] = (), kinds: Sequence[str] = ()) -> list[str]:
    """Every alias that records of the platforms (all, if none is named) and kinds may stand in."""
    every = chosen or platforms.names(settings)
    found = [
        alias(settings, platform, kind)
        for platform in every
        for kind in kinds or ("default", *settings.search.collections)
    ]
    return list(dict.fromkeys(found))


def _camel(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def read(connection: psycopg.Connection) -> dict[str, list[Collection]]:
    """The collections behind each alias, the serving one first."""
    found: dict[str, list[Collection]] = {}
    for name, of, state, space in connection.execute(
        "SELECT name, alias, state, space FROM search_collections ORDER BY alias, state DESC"
    ):
        found.setdefault(of, []).append(Collection(name, of, state == "building", space))
    return found


def lock(connection: psycopg.Connection) -> None:
    """Held until the transaction ends. Take it after shards, never before."""
    connection.execute(
        "SELECT pg_advisory_xact_lock(hashtext('headrace search ' || current_schema()), -1)"
    )


def lock_shards(connection: psycopg.Connection) -> None:
    """The same of every shard: no projector is at work meanwhile."""
    connection.execute(
        "SELECT pg_advisory_xact_lock(hashtext('headrace search ' || current_schema()), shard)"
        " FROM generate_series(0, %s) AS shard",
        [marks.SHARDS - 1],
    )


def make(
    connection: psycopg.Connection, client: WeaviateClient, settings: Settings, of: str
) -> Collection:
    """The serving collection of an alias that has none, and the alias, in the caller's transaction.

    What stands there under the same name is of a project that is gone, or of a transaction that
    did not end: it is replaced.
    """
    lock(connection)
    there = read(connection).get(of)
    if there:
        return there[0]
    made = Collection(f"{of}_v1", of, False, embedding.space_of(settings.embeddings))
    _create(client, settings, made)
    if client.alias.exists(alias_name=of):
        client.alias.update(alias_name=of, new_target_collection=made.name)
    else:
        client.alias.create(alias_name=of, target_collection=made.name)
    _note(connection, made)
    log.info("made a collection", collection=made.name)
    return made


def begin_rebuild(
    connection: psycopg.Connection, client: WeaviateClient, settings: Settings
) -> list[Collection]:
    """A new collection beside each serving one, and a mark for each record, in the caller's
    transaction. A rebuild that goes on already begins again. Nobody projects meanwhile: a record
    that is newer than the marks would go to the serving collection only."""
    lock_shards(connection)
    lock(connection)
    space = embedding.space_of(settings.embeddings)
    connection.execute("DELETE FROM search_collections WHERE state = 'building'")
    connection.execute("DELETE FROM search_dirty WHERE rebuild")
    made = []
    for of, (serving, *_) in read(connection).items():
        number = int(serving.name.rpartition("_v")[2]) + 1
        new = Collection(f"{of}_v{number}", of, True, space)
        _create(client, settings, new)
        _note(connection, new)
        made.append(new)
    connection.execute(
        "INSERT INTO search_dirty (record_id, rebuild)"
        " SELECT id, true FROM searched WHERE NOT deleted"
    )
    return made


def turn_over(connection: psycopg.Connection, client: WeaviateClient) -> list[Collection]:
    """Let the new collections serve, once everything is in them; returns those that nobody needs
    any more. The caller holds every shard (`lock_shards`)."""
    lock(connection)
    old = []
    for of, (first, *rest) in read(connection).items():
        if not rest:
            continue
        (new,) = rest
        client.alias.update(alias_name=of, new_target_collection=new.name)
        connection.execute("DELETE FROM search_collections WHERE name = %s", [first.name])
        connection.execute(
            "UPDATE search_collections SET state = 'serving' WHERE name = %s", [new.name]
        )
        old.append(first)
        log.info("a rebuilt collection serves", alias=of, collection=new.name)
    return old


def missing(connection: psycopg.Connection, client: WeaviateClient) -> list[Collection]:
    """Forget the collections that Weaviate does not have (its data are gone): they are made anew
    with the next record. A rebuilt one goes with the serving one that it was to follow. In the
    caller's transaction."""
    lock(connection)
    there = client.collections.list_all(simple=True)
    gone: list[Collection] = []
    for serving, *rest in read(connection).values():
        gone += [c for c in (serving, *rest) if serving.name not in there or c.name not in there]
    for collection in gone:
        connection.execute("DELETE FROM search_collections WHERE name = %s", [collection.name])
    return gone


def sweep_out(connection: psycopg.Connection, client: WeaviateClient, known: Iterable[str]) -> None:
    """Delete the collections of these aliases that the table does not know. In the caller's
    transaction, which holds the lock afterwards."""
    lock(connection)
    kept = {c.name for found in read(connection).values() for c in found}
    own = re.compile("|".join(f"{re.escape(of)}_v[0-9]+" for of in known))
    for name in client.collections.list_all(simple=True):
        if own.fullmatch(name) and name not in kept:
            client.collections.delete(name)
            log.info("deleted a collection that nobody needs", collection=name)


def space_in(client: WeaviateClient, of: str) -> str:
    """The space of the vectors behind an alias."""
    config = client.collections.use(of).config.get(simple=True)
    return (config.description or "").removeprefix(_SPACE)


_SPACE = "vectors: "


def _note(connection: psycopg.Connection, made: Collection) -> None:
    connection.execute(
        "INSERT INTO search_collections (name, alias, state, space) VALUES (%s, %s, %s, %s)",
        [made.name, made.alias, "building" if made.building else "serving", made.space],
    )


def _create(client: WeaviateClient, settings: Settings, made: Collection) -> None:
    from weaviate.classes.config import Configure, VectorDistances

    if client.collections.exists(made.name):
        client.collections.delete(made.name)
    client.collections.create(
        made.name,
        description=f"{_SPACE}{made.space}",
        properties=_properties(settings),
        vector_config=Configure.Vectors.self_provided(
            quantizer=Configure.VectorIndex.Quantizer.none(),
            vector_index_config=Configure.VectorIndex.hnsw(distance_metric=VectorDistances.COSINE),
        ),
        inverted_index_config=Configure.inverted_index(index_null_state=False),
    )


def _properties(settings: Settings) -> list[Property]:
    """What an object holds; `consumers.search.objects` fills it."""
    from weaviate.classes.config import DataType, Property, Tokenization

    def words(name: str) -> Property:
        return Property(name=name, data_type=DataType.TEXT, index_filterable=False,
                        tokenization=Tokenization.WORD)  # fmt: skip

    def exact(name: str, many: bool = False) -> Property:
        return Property(
            name=name, data_type=DataType.TEXT_ARRAY if many else DataType.TEXT,
            tokenization=Tokenization.FIELD, index_filterable=True, index_searchable=False,
        )  # fmt: skip

    def shown(name: str, many: bool = False) -> Property:
        return Property(
            name=name, data_type=DataType.TEXT_ARRAY if many else DataType.TEXT,
            index_filterable=False, index_searchable=False,
        )  # fmt: skip

    def when(name: str) -> Property:
        return Property(name=name, data_type=DataType.DATE, index_filterable=True,
                        index_range_filters=True)  # fmt: skip

    def number(name: str, kind: DataType = DataType.NUMBER) -> Property:
        return Property(name=name, data_type=kind, index_filterable=False,
                        index_range_filters=True)  # fmt: skip

    return [
        words("title"), words("text"), words("community"),
        exact("record_id"), exact("platform"), exact("kind"), exact("author"),
        exact("community_key"), exact("language"), exact("sentiment"),
        exact("entity_keys", many=True), exact("hashtags", many=True),
        shown("entities", many=True), shown("url"), shown("metrics"),
        when("created_at"), when("ingested_at"),
        number("sentiment_score"), number("sentiment_confidence"),
        Property(name="sentiment_stale", data_type=DataType.BOOL),
        number("row_version", DataType.INT),
        *(exact(f"{stage.short}_status") for stage in topology.load(settings).stages()),
    ]  # fmt: skip
