"""Compress a trace in threads while it is being read."""

from __future__ import annotations

import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor


class GzipWriter:
    """Compresses *data* as one gzip member in threads that begin at once; as a context it waits for them at its end.

    Each block is compressed by itself (at level 1) and ends on a whole byte, so the joined blocks are one deflate
    stream (RFC 1951, 3.2.3).
    """

    BLOCK = 1 << 22
    """Bytes."""

    def __init__(self, data: bytes) -> None:
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        self._size = len(data)
        view = memoryview(data)
        self._checksum = self._pool.submit(zlib.crc32, data)
        self._blocks = [
            self._pool.submit(self._compress, view[start : start + self.BLOCK])
            for start in range(0, len(data), self.BLOCK)
        ]

    @staticmethod
    def _compress(block: memoryview) -> bytes:
        compressor = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        return compressor.compress(block) + compressor.flush(zlib.Z_FULL_FLUSH)

    def data(self) -> bytes:
        """The whole gzip file."""
        header = b"\x1f\x8b\x08" + bytes(5) + b"\x04\xff"
        end = b"\x03\x00" + struct.pack("<II", self._checksum.result(), self._size & 0xFFFFFFFF)
        return b"".join([header, *(block.result() for block in self._blocks), end])

    def __enter__(self) -> GzipWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
