"""The bytes of one file: opened, unpacked within limits, with a head to look at first."""

from __future__ import annotations

import io
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Literal

import zstandard

from headrace.errors import HeadraceError
from producers.formats.base import MIB, ReadOptions

HEAD_BYTES = MIB
_PIPE_HEAD_BYTES = 64 * 1024
_CHUNK = 256 * 1024
# A zstd block of a few bytes may unpack to 128 KiB: small pieces in keep what comes out bounded.
_ZSTD_PIECE = 1024
_ZSTD_WINDOW = 128 * MIB

_OTHER_PACKERS = {
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "7-Zip",
    b"Rar!": "RAR",
    b"\x04\x22\x4d\x18": "lz4",
}


class Source:
    """One opened file, read once from front to back.

    `head` holds its first (unpacked) bytes, `whole` says whether that is all of it; `chunks()`
    gives everything from the start. Errors met behind the head are raised where they stand.
    """

    def __init__(self, path: Path | str, options: ReadOptions) -> None:
        self.is_stdin = str(path) == "-"
        self.name = "standard input" if self.is_stdin else str(path)
        self.path = None if self.is_stdin else Path(path)
        self._options = options
        self._file = _standard_input() if self.is_stdin else _open(Path(path))
        self.size = None if self.is_stdin else _size(self._file)
        self.read = 0
        packed = self._raw()
        first = next(packed, b"")
        self.compression = _compression(first, self.name)
        chunks = _chain(first, packed)
        if self.compression:
            chunks = self._guarded(_UNPACK[self.compression](chunks, self.name))
        # A pipe may be slow: what has come of it should not wait for much more.
        wanted = _PIPE_HEAD_BYTES if self.is_stdin else HEAD_BYTES
        self._head, self._failure, self._rest = _take(chunks, wanted)
        self.head = b"".join(self._head)
        self.whole = self._rest is None and self._failure is None
        if not self.head:
            if self._failure:
                raise self._failure
            raise HeadraceError(f"{self.name} is empty: there is nothing to read")

    def chunks(self) -> Iterator[bytes]:
        """Everything, unpacked; raises HeadraceError where it is damaged or too large."""
        yield from self._head
        self._head = []
        if self._failure:
            raise self._failure
        if self._rest:
            yield from self._rest

    def stream(self) -> io.BufferedReader:
        """Everything, as a file to read (not to seek in)."""
        return io.BufferedReader(_ChunkFile(self.chunks()), _CHUNK)

    def seekable(self) -> IO[bytes]:
        """Everything, as a file to seek in: itself, or a temporary copy where it must be."""
        if self.path and not self.compression and self._file.seekable():
            self._file.seek(0)
            return self._file
        copy = tempfile.TemporaryFile(prefix="headrace-")  # noqa: SIM115  (handed on)
        try:
            for chunk in self.chunks():
                copy.write(chunk)
        except BaseException:
            copy.close()
            raise
        copy.seek(0)
        return copy

    def fraction(self) -> float | None:
        return min(1.0, self.read / self.size) if self.size else None

    def close(self) -> None:
        if not self.is_stdin:
            self._file.close()

    def _raw(self) -> Iterator[bytes]:
        while True:
            try:
                chunk = self._file.read(_CHUNK)
            except OSError as error:
                raise HeadraceError(
                    f"{self.name} cannot be read on: {error.strerror or error}"
                ) from None
            if not chunk:
                return
            self.read += len(chunk)
            yield chunk

    def _guarded(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Stop what grows without measure (a zip bomb)."""
        out, ratio, free = 0, self._options.max_expansion, self._options.max_expansion_free_bytes
        for chunk in chunks:
            out += len(chunk)
            if out > free and out > ratio * self.read:
                raise HeadraceError(
                    f"{self.name} grows more than {ratio} times when unpacked "
                    f"({self.read:,} bytes became {out:,} and more): it looks like a zip bomb. "
                    "If it is meant, raise publishing.max_expansion"
                )
            yield chunk


def _standard_input() -> IO[bytes]:
    """Unbuffered, so that a read gives what a slow pipe holds and waits for no more."""
    try:
        number = sys.stdin.fileno()
    except (OSError, ValueError):  # replaced by something that is no file
        return sys.stdin.buffer
    return io.FileIO(number, "rb", closefd=False)


class _ChunkFile(io.RawIOBase):
    """Chunks as a raw file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb", buffering=0)
    except FileNotFoundError:
        raise HeadraceError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise HeadraceError(f"{path} is a folder: name a file in it") from None
    except PermissionError:
        raise HeadraceError(
            f"{path} may not be read by this user: change its permissions"
        ) from None
    except (OSError, ValueError) as error:
        raise HeadraceError(f"{path} cannot be opened: {error}") from None


def _size(file: IO[bytes]) -> int | None:
    try:
        return file.seek(0, io.SEEK_END) if file.seekable() else None
    finally:
        if file.seekable():
            file.seek(0)


def _compression(first: bytes, name: str) -> Literal["gz", "zst"] | None:
    """By the bytes, not the name: a wrong ending is common."""
    if first.startswith(b"\x1f\x8b"):
        return "gz"
    if first.startswith(b"\x28\xb5\x2f\xfd"):
        return "zst"
    for magic, packer in _OTHER_PACKERS.items():
        if first.startswith(magic):
            raise HeadraceError(f"{name} is packed by {packer}: unpack it, or use .gz or .zst")
    return None


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _take(
    chunks: Iterator[bytes], size: int
) -> tuple[list[bytes], HeadraceError | None, Iterator[bytes] | None]:
    """(the first chunks up to `size` bytes, the error that came meanwhile, what is left)."""
    taken: list[bytes] = []
    while size > 0:
        try:
            chunk = next(chunks, None)
        except HeadraceError as error:
            return taken, error, None
        if chunk is None:
            return taken, None, None
        taken.append(chunk)
        size -= len(chunk)
    return taken, None, chunks


def _truncated(name: str) -> HeadraceError:
    return HeadraceError(
        f"{name} ends in the middle of its compressed data: the file is truncated. "
        "What came before the cut was read; fetch the file again for the rest"
    )


def _damaged(name: str, error: Exception) -> HeadraceError:
    return HeadraceError(
        f"{name} is damaged and cannot be unpacked further ({error}). "
        "What came before was read; fetch the file again for the rest"
    )


def _gunzip(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(31)
    begun = False  # inside a member
    try:
        for chunk in chunks:
            data = chunk
            while data:
                if unpacker.eof:
                    data = unpacker.unused_data + data if not begun else data
                    data = data.lstrip(b"\0")  # padding after a member
                    if not data:
                        break
                    unpacker = zlib.decompressobj(31)
                begun = True
                out = unpacker.decompress(data, MIB)
                if out:
                    yield out
                data = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
                if unpacker.eof:
                    begun = False
                    unpacker = _Ended()  # type: ignore[assignment]
        if begun:
            yield unpacker.flush()
    except zlib.error as error:
        raise _damaged(name, error) from None
    if not unpacker.eof:
        raise _truncated(name)


class _Ended:
    """Between two members of a gzip file."""

    eof = True
    unused_data = b""


def _unzstd(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    maker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    unpacker = maker.decompressobj()
    begun = False
    try:
        for chunk in chunks:
            for start in range(0, len(chunk), _ZSTD_PIECE):
                data = chunk[start : start + _ZSTD_PIECE]
                while data:
                    if not begun:
                        unpacker, begun = maker.decompressobj(), True
                    out = unpacker.decompress(data)
                    if out:
                        yield out
                    data = b""
                    if unpacker.eof:
                        data, begun = unpacker.unused_data, False
    except zstandard.ZstdError as error:
        raise _damaged(name, error) from None
    if begun:
        raise _truncated(name)


_UNPACK: dict[str, Callable[[Iterator[bytes], str], Iterator[bytes]]] = {
    "gz": _gunzip,
    "zst": _unzstd,
}
