"""Whole files: a file appears under its final name only when it is complete.

It is written beside it under a temporary name and renamed. Line files (`.jsonl`) grow by whole lines instead. What a
command prints for another program, at its end, is whole too or an error.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

import msgspec

from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.text.escape import encodable

_Record = TypeVar("_Record")

NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises: also for invalid UTF-8, and for brackets nested too deep."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside *path* to write; rename it to *path* when the block ends well, else remove it.

    The temporary name keeps the suffix, so libraries that look at it still work. Raises `ArtifactError` with one line
    where *path* cannot be written, on a full disk, say, or is a device or a pipe, which the rename would remove.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ArtifactError(f"cannot write {path}: it is not a regular file")
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}{''.join(path.suffixes[-2:])}")
    try:
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write *data* to *path* as a whole file."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write *text* to *path* in UTF-8 as a whole file (a lone surrogate becomes "?")."""
    write_bytes(path, text.encode("utf-8", "replace"))


def write_json(path: Path, value: Any) -> None:
    """Write *value* to *path* as indented JSON, as `encode_json` gives it."""
    write_bytes(path, msgspec.json.format(encode_json(value), indent=2) + b"\n")


def write_output(text: str, stdout: TextIO) -> None:
    """Write *text* to standard output. Raises `BrokenPipeError` where its reader has gone, and `ArtifactError` with one
    line where it cannot be written, as on a full disk."""
    try:
        stdout.write(text)
        stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())  # else Python tries again when it ends
        if isinstance(error, BrokenPipeError):
            raise
        raise ArtifactError(f"cannot write standard output: {error.strerror}") from error


def encode_json(value: Any) -> bytes:
    """*value* as one line of JSON. Not-a-number floats become null, a lone surrogate becomes U+FFFD.

    All texts of records go through here: file names, arguments and exceptions may hold bytes that are not UTF-8.
    """
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(encodable(msgspec.to_builtins(value)))


def read_bytes(path: Path) -> bytes:
    """Read a file. Raises `ArtifactError` naming it where it cannot be read."""
    try:
        if path.is_fifo():  # reading it would wait for a writer
            raise ArtifactError(f"cannot read {path}: it is a pipe")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise ArtifactError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error


def read_json(path: Path) -> Any:
    """Read a JSON file as plain data. Raises `ArtifactError` naming the file where it is missing or not JSON."""
    return decode(read_bytes(path), path, Any)


class _Version(msgspec.Struct):
    schema: int


def decode_record(data: bytes, kind: type[_Record], newest: int, path: Path | str) -> _Record:
    """Decode *data*, which *path* names, as a *kind*.

    Raises `ArtifactError` with one line where it is no JSON, is of a schema newer than *newest*, or has another shape.
    """
    schema = decode(data, path, _Version).schema
    if schema > newest:
        raise ArtifactError(
            f"{path} has schema {schema}, and this pytest-llmprof reads up to {newest}: install a newer pytest-llmprof"
        )
    return decode(data, path, kind)


def decode(data: bytes, path: Path | str, kind: type[_Record]) -> _Record:
    """Decode *data*, which *path* names, as a *kind*. Raises `ArtifactError` where it is none."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise ArtifactError(f"{path} is not a file of this kind: {error}") from error
    except NOT_JSON as error:
        raise ArtifactError(f"{path} is not JSON: {error}") from error
