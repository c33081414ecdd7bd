"""The outputs of one test: each prediction's line is written at once, the gallery at the end."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from pytest_llmprof.datasets.base import Page
from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.outputs.gallery import check_gallery, write_gallery
from pytest_llmprof.outputs.options import output_options
from pytest_llmprof.outputs.predictions import PredictionWriter
from pytest_llmprof.records.predictions import Prediction


def check_writable(directory: Path, key: str = "save_dir") -> None:
    """Make *directory* and write a file in it as a test, before anything expensive starts.

    *key* is the setting that names the directory, for the message. Raises `ArtifactError` with one line where that
    fails: no permission, a file of that name, a read-only or full disk.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
    except FileExistsError as error:
        raise ArtifactError(f"{key}: {directory} is not a directory") from error
    except OSError as error:
        raise ArtifactError(f"{key}: cannot write in {directory}: {error.strerror}") from error
    except ValueError as error:  # a NUL character in the path
        raise ArtifactError(f"{key}: {str(directory)!r} is not a path: {error}") from error


class Outputs:
    """The outputs of one test in one stage.

    A directory of None turns that output off. predictions.jsonl grows with each `add`. `close` writes the gallery of
    all that was added, also after an interruption::

        outputs = Outputs(prediction_dir, visualization_dir, title=…, prompt_kind=…, extra=…)
        try:
            for …:
                outputs.add(record, parsed.plain)
        finally:
            outputs.close(pages)
    """

    def __init__(
        self,
        prediction_dir: Path | None,
        visualization_dir: Path | None,
        *,
        title: str,
        prompt_kind: str,
        extra: Any = None,
    ) -> None:
        """*prompt_kind* is the model's ("markdown", "free" or "other"); *extra* the model's own output block.

        Raises `ArtifactError` where a directory cannot be used.
        """
        if prediction_dir is not None:
            check_writable(prediction_dir)
        if visualization_dir is not None:
            check_writable(visualization_dir)
            check_gallery(visualization_dir)
        self._title = title
        self._prompt_kind = prompt_kind
        self._visualization_dir = visualization_dir
        self._options = output_options(extra).visualization
        self._records: dict[str, Prediction] = {}
        self._plain: dict[str, str] = {}
        self._closed = False
        self._predictions = (
            None if prediction_dir is None else PredictionWriter(prediction_dir / "predictions.jsonl")
        )

    def add(self, record: Prediction, plain: str) -> None:
        """Write *record*. *plain* is its answer as scored (`ParsedOutput.plain`), empty for a failed page."""
        if self._predictions is not None:
            self._predictions.add(record)
        if self._visualization_dir is None:
            return
        limit = self._options.max_images
        if limit is None or record.page in self._plain or len(self._plain) < limit:
            self._plain[record.page] = plain
        else:
            # It only gets a row of the table, so its texts are not kept: there may be ten thousand pages.
            record = replace(record, text_raw="", text_clean="", boxes=())
        self._records[record.page] = record

    def close(self, pages: Iterable[Page], facts: Mapping[str, str] | None = None) -> None:
        """Close predictions.jsonl and write the gallery; *facts* is shown below its title. Once only."""
        if self._closed:
            return
        self._closed = True
        if self._predictions is not None:
            self._predictions.close()
        if self._visualization_dir is None:
            return
        write_gallery(
            self._visualization_dir,
            title=self._title,
            records=list(self._records.values()),
            pages={page.name: page for page in pages},
            prompt_kind=self._prompt_kind,
            max_images=self._options.max_images,
            thumbnail_width=self._options.thumbnail_width,
            plain=self._plain,
            facts=facts or {},
        )
