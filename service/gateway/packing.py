"""Compressed request bodies, unpacked piece by piece: whoever counts the pieces can stop at any."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Protocol

import zstandard

# Never more than this is unpacked at once (bytes), however little it was before.
PIECE = 1 << 18
# A block of zstd makes 128 KiB of four bytes, so few are given to it at a time: 8 MiB at most.
ZSTD_STEP = 256
# What a sender may ask us to remember of zstd (bytes); more is not for HTTP (RFC 9659).
ZSTD_WINDOW = 1 << 23


class Unreadable(Exception):
    """A body that cannot be unpacked; `status` is what its sender is told."""

    def __init__(self, status: int, message: str, *, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class _Unpacker(Protocol):
    """Undoes one coding. Raises `zlib.error` or `ZstdError` for what is none."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What the next bytes hold, in pieces that are made as they are taken."""

    @property
    def ended(self) -> bool:
        """Whether the end that the coding announces was there."""


class _Zlib:
    """gzip, also in several parts, and deflate, with zlib's header and without."""

    def __init__(self, *, gzip: bool) -> None:
        self._gzip = gzip
        self._inner = zlib.decompressobj(zlib.MAX_WBITS | 16) if gzip else None

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._inner is None:
                # Some senders leave out the header that the standard wants.
                raw = data[0] & 0x0F != 8
                self._inner = zlib.decompressobj(-zlib.MAX_WBITS if raw else zlib.MAX_WBITS)
            elif self._inner.eof and self._gzip:
                self._inner = zlib.decompressobj(zlib.MAX_WBITS | 16)
            elif self._inner.eof:
                raise zlib.error("there is something behind the end")
            yield self._inner.decompress(data, PIECE)
            data = self._inner.unconsumed_tail or self._inner.unused_data

    @property
    def ended(self) -> bool:
        return self._inner is not None and self._inner.eof


class _Zstd:
    """Frames of zstd, one after the other."""

    def __init__(self) -> None:
        self._codec = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
        self._inner = self._codec.decompressobj()

    def feed(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), ZSTD_STEP):
            step = data[start : start + ZSTD_STEP]
            while step:
                if self._inner.eof:
                    self._inner = self._codec.decompressobj()
                yield self._inner.decompress(step)
                step = self._inner.unused_data if self._inner.eof else b""

    @property
    def ended(self) -> bool:
        return self._inner.eof


CODINGS: Mapping[str, Callable[[], _Unpacker]] = {
    "gzip": lambda: _Zlib(gzip=True),
    "x-gzip": lambda: _Zlib(gzip=True),
    "deflate": lambda: _Zlib(gzip=False),
    "zstd": _Zstd,
}


async def unpacked(parts: AsyncIterator[bytes], coding: str) -> AsyncIterator[bytes]:
    """A body without its content-encoding, in small pieces. Raises `Unreadable`.

    Others have their turn between the pieces: what is small here may be large there.
    """
    coding = coding.strip().lower()
    if coding in ("", "identity"):
        async for part in parts:
            yield part
        return
    if coding not in CODINGS:
        raise Unreadable(
            415,
            f"the body's content-encoding is none that this gateway reads: {', '.join(CODINGS)}",
            code="unsupported_content_encoding",
        )
    unpacker = CODINGS[coding]()
    try:
        async for part in parts:
            for piece in unpacker.feed(part):
                yield piece
                await asyncio.sleep(0)
    except (zlib.error, zstandard.ZstdError):
        raise _broken(coding) from None
    if not unpacker.ended:
        raise _broken(coding)


def _broken(coding: str) -> Unreadable:
    return Unreadable(
        400, f"the body is not whole or is no {coding} at all", code="malformed_request"
    )
