"""Taking forgotten records out of snapshots: their files are written anew without the rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.graph import record_of
from headrace.snapshots import folder, tables
from headrace.snapshots.manifest import File, Manifest
from headrace.stores.copying import escaped, unescaped

Row = list[bytes]  # fields as COPY writes them
Doomed = Callable[[Row], bool]
Letters = Callable[[str | None, str, bytes | None], bool]

_AUTHOR_NAME = 500  # characters that dim_author keeps


@dataclass(frozen=True)
class _Wanted:
    """What is to be forgotten, as COPY writes it. `deletions`: by id the offset of the deletion (or
    of the first revision that may stay), None where it is not known."""

    deletions: Mapping[bytes, int | None]
    authors: Collection[tuple[str, str]]
    platforms: frozenset[bytes]
    letters: Letters | None
    anew: frozenset[bytes]


def forget(
    settings: Settings,
    record_ids: Iterable[str] | Mapping[str, int | None],
    *,
    authors: Collection[tuple[str, str]] = (),
    platforms: Collection[str] = (),
    letters: Letters | None = None,
    anew: Collection[str] = (),
    dry_run: bool = False,
) -> dict[str, int]:
    """Rows taken out of each snapshot of the project that held some, by the snapshot's name.

    record_ids  records whose content goes: their rows in every table that tables.INCLUDED says
                holds some, but for those of a deletion. A mapping gives the deletions' offsets on
                the raw topics, or those of revisions that may stay: a snapshot that holds
                such a one, or a newer, keeps it
    authors     (platform, name): their rows of dim_author go
    platforms   every record of these, by its id
    letters     further dead letters, asked by (record key, topic, value)
    anew        those of the records that were only published anew: what people decided stays
    dry_run     only count

    Call it when the stores have passed the deletions: a snapshot made later holds nothing then. A
    restored snapshot has no row of a forgotten record; its deletion comes by catching up.
    Killed at any time each snapshot is whole, as it was or without the rows; call it again. What
    a killed `create` left behind is thrown away. Memory: the ids. Raises HeadraceError, when all
    others are done, where a snapshot cannot be read.
    """
    known = record_ids if isinstance(record_ids, Mapping) else dict.fromkeys(record_ids)
    wanted = _Wanted(
        {_copied(record_id): offset for record_id, offset in known.items()},
        authors,
        frozenset(name.encode() for name in platforms),
        letters,
        frozenset(map(_copied, anew)),
    )
    taken = {}
    unreadable = []
    with folder.locked(settings) as place:
        if not dry_run:
            folder.sweep(place)
        for listed in folder.listed(settings):
            try:
                if listed.manifest is not None:
                    gone = _rewrite(place / listed.name, listed.manifest, wanted, dry_run)
                    if gone:
                        taken[listed.name] = gone
                elif not listed.name.endswith(folder.PARTIAL):
                    unreadable.append(listed.fault)
            except HeadraceError as error:
                unreadable.append(str(error))
    if unreadable:
        raise HeadraceError(
            f"a snapshot may still hold what is to be forgotten: {unreadable[0]}; delete it, and"
            " do this again"
        )
    return taken


def _rewrite(path: Path, manifest: Manifest, wanted: _Wanted, dry_run: bool) -> int:
    """The files that hold doomed rows, beside the old ones; then the manifest, which makes them
    the snapshot's; then the old ones go."""
    changed: dict[str, File] = {}
    gone = 0
    spared = _newer(path, manifest, wanted)
    for table, file in manifest.files.items():
        doomed = _doomed(path, manifest, table, wanted, spared)
        if doomed is None:
            continue
        found = sum(doomed(row.split(b"\t")) for row in _rows(path, file))
        gone += found
        if not found or dry_run:
            continue
        new = path / _next_name(table, file.name)
        new.unlink(missing_ok=True)
        kept = (row + b"\n" for row in _rows(path, file) if not doomed(row.split(b"\t")))
        changed[table] = folder.pack(new, _blocks(kept), file.columns)
    if changed:
        folder.write(path, manifest.with_files(changed))
        for table in changed:
            (path / manifest.files[table].name).unlink()
    return gone


def _newer(path: Path, manifest: Manifest, wanted: _Wanted) -> frozenset[bytes]:
    """Records of which this snapshot has what came later, or in the very place of the deletion
    content that may stay (a community that no longer quotes)."""
    if not any(offset is not None for offset in wanted.deletions.values()):
        return frozenset()
    file = manifest.files["records"]
    columns = [file.columns.index(name) for name in ("id", "offset", "deleted")]
    found = set()
    for row in _rows(path, file):
        fields = row.split(b"\t")
        record, offset, deleted = (fields[column] for column in columns)
        deletion = wanted.deletions.get(record)
        if deletion is not None and int(offset) + (deleted != b"t") > deletion:
            found.add(record)
    return frozenset(found)


def _doomed(
    path: Path, manifest: Manifest, table: str, wanted: _Wanted, spared: frozenset[bytes]
) -> Doomed | None:
    """Which rows of a table go; None: none can."""
    columns = manifest.files[table].columns
    content = tables.INCLUDED.get(table)
    if content is not None:
        at = columns.index(content.record)
        name, value = content.tombstone or ("", "")
        mark = columns.index(name) if name else None
        of_node, stays = content.of_node, content.stays
        letters = _of_letters(columns, wanted.letters) if table == "dead_letters" else None

        def of_record(row: Row) -> bool:
            key = row[at]  # kind:platform:…
            if of_node:
                key = record_of(key.decode()).encode()
            if stays and key in wanted.anew:
                return False
            if key in wanted.deletions:
                if key in spared:
                    return False
            elif not any(part in wanted.platforms for part in key.split(b":", 2)[1:2]):
                return letters is not None and letters(row)
            return mark is None or row[mark] != value.encode()

        return of_record
    if table == "dim_author" and (wanted.authors or wanted.platforms):
        numbers = _platforms(path, manifest)
        named = {
            (numbers.get(platform.encode()), _copied(name[:_AUTHOR_NAME]))
            for platform, name in wanted.authors
        }
        whole = {numbers[platform] for platform in wanted.platforms if platform in numbers}
        of, name_at = columns.index("platform_id"), columns.index("name")
        return lambda row: row[of] in whole or (row[of], row[name_at]) in named
    return None


def _of_letters(columns: tuple[str, ...], letters: Letters | None) -> Doomed | None:
    if letters is None:
        return None
    ask = letters
    key, topic, value = (columns.index(name) for name in ("record_key", "topic", "value"))

    def of_letter(row: Row) -> bool:
        content = unescaped(row[value].decode())
        written = bytes.fromhex(content.removeprefix("\\x")) if content is not None else None
        return ask(unescaped(row[key].decode()), unescaped(row[topic].decode()) or "", written)

    return of_letter


def _copied(text: str) -> bytes:
    """As COPY writes a field, which escapes more than it has to."""
    written = escaped(text)
    for sign, name in (("\b", "\\b"), ("\f", "\\f"), ("\v", "\\v")):
        written = written.replace(sign, name)
    return written.encode()


def _platforms(path: Path, manifest: Manifest) -> dict[bytes, bytes]:
    """Numbers of platforms by their names."""
    file = manifest.files["dim_platform"]
    number, name = file.columns.index("id"), file.columns.index("name")
    rows = (row.split(b"\t") for row in _rows(path, file))
    return {row[name]: row[number] for row in rows}


def _rows(path: Path, file: File) -> Iterator[bytes]:
    rest = b""
    for piece in folder.unpack(path / file.name):
        *rows, rest = (rest + piece).split(b"\n")
        yield from rows


def _blocks(rows: Iterable[bytes], size: int = 1 << 17) -> Iterator[bytes]:
    block: list[bytes] = []
    length = 0
    for row in rows:
        block.append(row)
        length += len(row)
        if length > size:
            yield b"".join(block)
            block, length = [], 0
    yield b"".join(block)


def _next_name(table: str, name: str) -> str:
    """records.copy.zst → records.1.copy.zst → records.2.copy.zst"""
    number = name.removeprefix(f"{table}.").partition(".")[0]
    return f"{table}.{int(number) + 1 if number.isdigit() else 1}.copy.zst"
