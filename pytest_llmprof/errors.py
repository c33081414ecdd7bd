"""The exceptions of pytest-llmprof. Each carries one line that a user can act on; none needs a traceback.

::

    LlmprofError
    ├── ConfigError      an option, a key, a preset or a value (exit code 4, or the marked test fails)
    ├── DatasetError     a dataset that cannot be read as a whole
    ├── PageError        one page that cannot be read (that page fails, the others go on)
    ├── ModelError       a model that cannot be loaded or run
    │   └── EngineUnavailable  an engine that this machine cannot run (the test is skipped with the reason)
    ├── StageError       a stage that could not do its work (an empty trace, say)
    └── ArtifactError    a directory or file that cannot be used
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LlmprofError(Exception):
    """A failure whose text is one clear line: what, where it was set, what is allowed, the nearest name."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())  # a path or a value in it may hold line breaks


class ConfigError(LlmprofError):
    """An option, key, preset or value that is not allowed."""


class DatasetError(LlmprofError):
    """A dataset that cannot be read: a missing root, no page, an unreadable subset list."""


class PageError(LlmprofError):
    """One page that cannot be read; names the page. The other pages go on."""

    def beside(self, page: str) -> str:
        """The line where *page* is named already."""
        return str(self).removeprefix(f"page {page!r}: ")


class ModelError(LlmprofError):
    """A model that cannot be loaded or run as configured."""


class EngineUnavailable(ModelError):
    """`infer.engine` names an engine that this machine lacks something for: a compiler, say. Its tests are skipped
    with the reason."""


class StageError(LlmprofError):
    """A stage that could not do its work."""


class ArtifactError(LlmprofError):
    """A directory or file that cannot be used for output."""


def error_line(error: BaseException) -> str:
    """An error as one line; the name of its type comes first where it is not an `LlmprofError`."""
    text = " ".join(text_of(error).split())
    return text if isinstance(error, LlmprofError) else f"{type(error).__name__}: {text}"


def text_of(value: object) -> str:
    """`str(value)`, also for an exception or another object whose own `__str__` fails."""
    try:
        return str(value)
    except Exception as failure:  # noqa: BLE001 - a stranger's code
        return f"(its text cannot be read: {type(failure).__name__})"


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the allowed name closest to *name*, or an empty string."""
    found = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean {found[0]!r}?)" if found else ""
