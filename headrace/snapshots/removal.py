"""Taking forgotten records out of snapshots: their files are written anew without the rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from headrace.config import Settings
from headrace.errors import HeadraceError
from headrace.snapshots import folder, tables
from headrace.snapshots.manifest import File, Manifest
from headrace.stores.copying import escaped

Doomed = Callable[[list[bytes]], bool]  # a row's fields, as COPY writes them

_AUTHOR_NAME = 500  # characters that dim_author keeps


def forget(
    settings: Settings,
    record_ids: Iterable[str],
    *,
    authors: Collection[tuple[str, str]] = (),
    platforms: Collection[str] = (),
    dry_run: bool = False,
) -> dict[str, int]:
    """Rows taken out of each snapshot of the project that held some, by the snapshot's name.

    record_ids  records whose content goes: their rows in every table that tables.INCLUDED names
                a record of
    authors     (platform, name): their rows of dim_author go
    platforms   every record of these, by its id
    dry_run     only count

    Call it when the stores have passed the deletions: a snapshot made later holds nothing then. A
    restored snapshot has no row of a forgotten record; the deletion comes again by catching up.
    Killed at any time each snapshot is whole, as it was or without the rows; call it again. What
    a killed `create` left behind is thrown away. Memory: the ids.
    """
    ids = {escaped(record_id).encode() for record_id in record_ids}
    every = {name.encode() for name in platforms}
    if not ids and not every and not authors:
        return {}
    taken = {}
    with folder.locked(settings) as place:
        if not dry_run:
            folder.sweep(place)
        unreadable = []
        for listed in folder.listed(settings):
            if listed.manifest is None:
                if not listed.name.endswith(folder.PARTIAL):
                    unreadable.append(listed.fault)
                continue
            try:
                gone = _rewrite(
                    place / listed.name, listed.manifest, ids, every, authors, dry_run
                )
            except HeadraceError as error:
                unreadable.append(str(error))
                continue
            if gone:
                taken[listed.name] = gone
    if unreadable:
        raise HeadraceError(
            f"a snapshot may still hold what is to be forgotten: {unreadable[0]}; delete it, and"
            " do this again"
        )
    return taken


def _rewrite(
    path: Path,
    manifest: Manifest,
    ids: set[bytes],
    platforms: set[bytes],
    authors: Collection[tuple[str, str]],
    dry_run: bool,
) -> int:
    """The files that hold doomed rows, beside the old ones; then the manifest, which makes them
    the snapshot's; then the old ones go."""
    changed: dict[str, File] = {}
    gone = 0
    for table, file in manifest.files.items():
        doomed = _doomed(path, manifest, table, ids, platforms, authors)
        if doomed is None:
            continue
        if not any(doomed(row.split(b"\t")) for row in _rows(path, file)):
            continue
        if dry_run:
            gone += sum(doomed(row.split(b"\t")) for row in _rows(path, file))
            continue
        new = path / _next_name(table, file.name)
        new.unlink(missing_ok=True)
        kept = (row + b"\n" for row in _rows(path, file) if not doomed(row.split(b"\t")))
        changed[table] = folder.pack(new, _blocks(kept), file.columns)
        gone += file.rows - changed[table].rows
    if changed:
        folder.write(path, manifest.with_files(changed))
        for table in changed:
            (path / manifest.files[table].name).unlink()
    return gone


def _doomed(
    path: Path,
    manifest: Manifest,
    table: str,
    ids: set[bytes],
    platforms: set[bytes],
    authors: Collection[tuple[str, str]],
) -> Doomed | None:
    """Which rows of a table go; None: none can."""
    columns = manifest.files[table].columns
    record = tables.INCLUDED.get(table)
    if record is not None and (ids or platforms):
        at = columns.index(record)

        def of_record(row: list[bytes]) -> bool:
            key = row[at]  # kind:platform:…
            return key in ids or any(name in platforms for name in key.split(b":", 2)[1:2])

        return of_record
    if table == "dim_author" and (authors or platforms):
        numbers = _platforms(path, manifest)
        named = {
            (numbers.get(platform.encode()), escaped(name[:_AUTHOR_NAME]).encode())
            for platform, name in authors
        }
        whole = {numbers[platform] for platform in platforms if platform in numbers}
        of, name = columns.index("platform_id"), columns.index("name")
        return lambda row: row[of] in whole or (row[of], row[name]) in named
    return None


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
