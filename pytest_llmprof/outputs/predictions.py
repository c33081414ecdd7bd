"""predictions.jsonl: one line of JSON a page, written as soon as the page is there."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.records.files import decode_record, encode_json, read_bytes
from pytest_llmprof.records.predictions import SCHEMA, Prediction

# JSON allows these in a string, but terminals obey the first ones as controls, and many programs (str.splitlines) read
# the others as line ends. JSON itself escapes U+0000 to U+001F.
_ESCAPE = re.compile("[\x7f-\x9f\u2028\u2029]")


class PredictionWriter:
    """Writes predictions.jsonl, replacing an earlier file, or a link but not what it leads to. A context manager.

    A killed run keeps the lines of the pages that were done. Raises `ArtifactError` with one line where the file cannot
    be written; a line that was written only in part, on a full disk, is removed again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            # Unbuffered, so that a line is in the file as soon as `add` returns, also when the process is killed.
            self._file = open(path, "xb", buffering=0)  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise ArtifactError(f"cannot write {path}: {error.strerror}") from error
        self._size = 0

    def add(self, record: Prediction) -> None:
        """Append the line of *record*."""
        text = encode_json(record).decode()
        line = _ESCAPE.sub(lambda match: f"\\u{ord(match.group()):04x}", text).encode() + b"\n"
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with suppress(OSError):  # the first error is raised below
                self._file.truncate(self._size)
                self._file.seek(self._size)
            raise ArtifactError(f"cannot write {self.path}: {error.strerror}") from error
        self._size += len(line)

    def close(self) -> None:
        """Flush the file to the disk and close it; a second call does nothing. Raises `ArtifactError`."""
        if not self._file.closed:
            try:
                with self._file:
                    os.fsync(self._file.fileno())
            except OSError as error:
                raise ArtifactError(f"cannot write {self.path}: {error.strerror}") from error

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_predictions(path: Path) -> list[Prediction]:
    """The lines of a predictions.jsonl, without a last line that a killed run wrote only in part.

    Raises `ArtifactError` where the file cannot be read, or naming a line that is no prediction or of a newer schema.
    """
    *lines, rest = read_bytes(path).split(b"\n")
    found = [decode_record(line, Prediction, SCHEMA, f"{path}, line {number},") for number, line in enumerate(lines, 1)]
    if rest:
        with suppress(ArtifactError):
            found.append(decode_record(rest, Prediction, SCHEMA, path))
    return found
