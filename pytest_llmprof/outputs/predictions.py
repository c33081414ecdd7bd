"""predictions.jsonl: one line of JSON a page, written as soon as the page is there."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.models.base import Box
from pytest_llmprof.records.predictions import Prediction
from pytest_llmprof.text.escape import whole

__all__ = ["PredictionWriter", "prediction_dict", "read_predictions"]

# Valid inside a JSON string, but a terminal obeys the first and many programs (str.splitlines) end a line
# at the others. JSON itself escapes U+0000 to U+001F.
_ESCAPE = re.compile("[\x7f-\x9f\u2028\u2029]")


def prediction_dict(record: Prediction) -> dict[str, Any]:
    """*record* as plain values in the order of the line: `schema` first, then as `Prediction` has them.

    Text is whole Unicode: a lone surrogate, which JSON's readers refuse, becomes U+FFFD.
    """
    line: dict[str, Any] = {"schema": record.schema}
    for field in fields(record):
        if field.name == "boxes":
            line["boxes"] = [_box_dict(box) for box in record.boxes]
        elif field.name != "schema":
            value = getattr(record, field.name)
            line[field.name] = whole(value) if isinstance(value, str) else value
    return line


def _box_dict(box: Box) -> dict[str, Any]:
    return {"label": whole(box.label), "box": list(box.box), "text": whole(box.text)}


class PredictionWriter:
    """Writes predictions.jsonl, replacing an earlier file. A context manager.

    Each line goes to the file in one piece, so a killed run keeps the pages it had. Raises `ArtifactError`
    with one line where the file cannot be written; a line that didn't fit on a full disk is taken back.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what `add` has written belongs to the file, whatever happens to this process.
            self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise ArtifactError(f"cannot write {path}: {error.strerror}") from error
        self._size = 0

    def add(self, record: Prediction) -> None:
        """Append the line of *record*."""
        text = msgspec.json.encode(prediction_dict(record)).decode()
        line = _ESCAPE.sub(lambda match: f"\\u{ord(match.group()):04x}", text).encode() + b"\n"
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with suppress(OSError):  # what cannot be taken back either is told by the first error
                self._file.truncate(self._size)
                self._file.seek(self._size)
            raise ArtifactError(f"cannot write {self.path}: {error.strerror}") from error
        self._size += len(line)

    def close(self) -> None:
        """Bring the file to the disk and close it; a second call does nothing."""
        if not self._file.closed:
            try:
                os.fsync(self._file.fileno())
            finally:
                self._file.close()

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The lines of a predictions.jsonl.

    A last line that a killed run cut short is left out. Raises `ArtifactError` for a file that cannot be
    read and for any other line that is not a JSON object, naming it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    *lines, rest = data.split(b"\n")
    found = [_decode(line, path, number) for number, line in enumerate(lines, 1)]
    if rest:
        # It doesn't decode where the run was killed while writing it.
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            found.append(msgspec.json.decode(rest, type=dict[str, Any]))
    return found


def _decode(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}, line {number}, is not a JSON object: {error}") from error
