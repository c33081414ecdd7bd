"""The command that runs one test of a run again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

FLAGS = frozenset(("--llmprof-strict", "--llmprof-share-gpu", "--llmprof-show-config"))
"""Options of ours without a value."""
_OF_THE_RUN = frozenset(
    (
        *("--llmprof-run-dir", "--llmprof-save", "--llmprof-columns", "--llmprof-share-gpu"),
        *("--llmprof-shard", "--llmprof-durations", "--llmprof-shard-times"),
    )
)
"""Options of ours that are about the run, not about what a test does."""
_PYTEST = frozenset(("-c", "--config-file", "--rootdir", "--confcutdir", "-o", "--override-ini", "-p", "--import-mode"))
"""Options of pytest that can change what a test does, each with a value."""


def repeat_command(argv: Sequence[str], test: str) -> str:
    """pytest with *test* (a node id) and those options of *argv*, the run's own, that change what a test does."""
    return shlex.join(["pytest", test, *_kept(argv)])


def _kept(argv: Sequence[str]) -> Iterator[str]:
    words = iter(argv)
    for word in words:
        name, equals, _ = word.partition("=")
        ours = name.startswith("--llmprof-")
        if not ours and name not in _PYTEST:
            if word[:2] in ("-c", "-o", "-p") and len(word) > 2 and not word.startswith("--"):  # -pno:cacheprovider
                yield word
            continue
        value = [] if equals or name in FLAGS else [one for one in [next(words, None)] if one is not None]
        if name not in _OF_THE_RUN:
            yield from (word, *value)
