"""Directories and files of a run: safe names, whole files, stage directories and save_dirs.

Nothing here knows pytest. A file appears under its final name only when it is whole: it is written beside it
under a temporary name and renamed. Line files (`.jsonl`) grow by whole lines instead.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec

from pytest_llmprof.errors import ArtifactError

__all__ = [
    "MAX_NAME_BYTES",
    "Artifacts",
    "GzipWriter",
    "atomic_path",
    "read_json",
    "safe_name",
    "unique_names",
    "write_bytes",
    "write_json",
    "write_text",
]

MAX_NAME_BYTES = 255
"""Longest file name of the usual file systems, in bytes."""

_UNSAFE = re.compile(r"[^\w.\-+=@,\[\]]+")
# Names that mean something to a file system or a shell, or to Windows where a run directory may be copied.
_RESERVED = re.compile(r"(?i)^(con|prn|aux|nul|com\d|lpt\d)(\..*)?$")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:10]


def safe_name(name: str, limit: int = 200) -> str:
    """Make one file-name part of *name*: no separators, no control characters, at most *limit* bytes.

    Equal names give equal results. A name that had to be cut or is reserved ends in a digest of the whole.
    """
    safe = _UNSAFE.sub("_", name).strip("._ ") or "_"
    if _RESERVED.match(safe) or safe.startswith("-"):
        safe = f"_{safe}"
    if len(safe.encode("utf-8")) > limit:
        tail = f"-{_digest(name)}"
        safe = safe.encode("utf-8")[: limit - len(tail)].decode("utf-8", "ignore") + tail
    return safe


def unique_names(names: list[str], limit: int = 200) -> dict[str, str]:
    """Safe names for *names*, kept apart: where two would clash (also by case alone) both carry a digest."""
    safe = {name: safe_name(name, limit) for name in names}
    folded: dict[str, list[str]] = {}
    for name, value in safe.items():
        folded.setdefault(value.casefold(), []).append(name)
    for clash in folded.values():
        if len(clash) > 1:
            for name in clash:
                safe[name] = f"{safe_name(name, limit - 11)}-{_digest(name)}"
    return safe


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside *path*; rename it to *path* when the block ends well, else remove it.

    The temporary name keeps the suffix, so libraries that look at it still work.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix="".join(path.suffixes[-2:]))
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write *data* to *path* as a whole file."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


class GzipWriter:
    """Packs *data* as one gzip member in threads that begin at once; a context that waits for them at its end.

    Every block is packed by itself (at level 1) and ends on a whole byte, so that joined they are one deflate stream
    (RFC 1951, 3.2.3).
    """

    BLOCK = 1 << 22

    def __init__(self, data: bytes) -> None:
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        self._size = len(data)
        view = memoryview(data)
        self._sum = self._pool.submit(zlib.crc32, data)
        self._blocks = [
            self._pool.submit(self._pack, view[start : start + self.BLOCK])
            for start in range(0, len(data), self.BLOCK)
        ]

    @staticmethod
    def _pack(block: memoryview) -> bytes:
        packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        return packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)

    def data(self) -> bytes:
        """The whole gzip file."""
        header = b"\x1f\x8b\x08" + bytes(5) + b"\x04\xff"
        end = b"\x03\x00" + struct.pack("<II", self._sum.result(), self._size & 0xFFFFFFFF)
        return b"".join([header, *(block.result() for block in self._blocks), end])

    def __enter__(self) -> GzipWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def write_text(path: Path, text: str) -> None:
    """Write *text* to *path* in UTF-8 as a whole file (a lone surrogate becomes "?")."""
    write_bytes(path, text.encode("utf-8", "replace"))


def write_json(path: Path, value: Any) -> None:
    """Write *value* to *path* as indented JSON. Not-a-number floats become null."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises `ArtifactError` naming the file where it is missing or not JSON."""
    try:
        return msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ArtifactError(f"{path} is not JSON: {error}") from error


_TABLES = ("kernels.csv", "kernels.md", "operators.csv", "operators.md")
STAGE_FILES = frozenset(
    ("config.yaml", "environment.json", "inputs.jsonl", "metrics.json", "report.md", "trace.json.gz", *_TABLES)
)
"""What a stage writes beside its outputs."""


class Artifacts:
    """The directories of one test: `<run>/<module>/<test>/`, one directory a stage inside.

    `out_dir('torch_profiler')` is the stage directory that a relative `save_dir` resolves against.
    """

    def __init__(self, test_dir: Path) -> None:
        self.test_dir = test_dir

    def out_dir(self, stage: str) -> Path:
        """The directory of *stage* for this test (it exists once the stage has begun)."""
        return self.test_dir / stage

    def save_dir(self, stage: str, save_dir: str | None, default: str, key: str) -> Path:
        """Resolve a configured `save_dir` of *stage* to an absolute path.

        None, empty or blank is *default*; absolute stays as it is, `~` is the home directory; relative lies under the
        stage directory. *key* names the setting in the message. Raises `ArtifactError` where a relative path climbs
        out of the stage directory, by ``..`` or through a link, or where a file of the stage has its name.
        """
        stage_dir = self.out_dir(stage).resolve()
        try:
            wanted = Path(save_dir).expanduser() if save_dir and save_dir.strip() else Path(default)
        except RuntimeError as error:
            raise ArtifactError(f"{key}: {save_dir!r}: {error}") from error
        if wanted.is_absolute():
            return Path(os.path.normpath(wanted))
        lexical = Path(os.path.normpath(stage_dir / wanted))
        if not lexical.is_relative_to(stage_dir) or not lexical.resolve().is_relative_to(stage_dir):
            raise ArtifactError(
                f"{key}: {save_dir!r} leaves the stage directory {stage_dir}: "
                "give a path below it, or an absolute path"
            )
        if (taken := lexical.relative_to(stage_dir).parts[:1]) and taken[0] in STAGE_FILES:
            raise ArtifactError(f"{key}: {save_dir!r}: {taken[0]} is a file of the stage, set another directory")
        return lexical

    def begin(self, stage: str) -> Path:
        """Make an empty stage directory, replacing what an earlier run of this test left there."""
        path = self.out_dir(stage)
        try:
            if path.is_symlink() or path.is_file():
                path.unlink()
            elif path.exists():
                shutil.rmtree(path)
            path.mkdir(parents=True)
        except OSError as error:
            raise ArtifactError(f"cannot make the stage directory {path}: {error.strerror}") from error
        return path


def append_line(stream: IO[bytes], value: Any) -> None:
    """Append *value* as one whole JSON line and flush it, so that a killed run keeps what it had."""
    stream.write(msgspec.json.encode(value) + b"\n")
    stream.flush()
