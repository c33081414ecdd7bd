"""The parser and the exit codes: 0 all well, 1 slower, worse or not able to run, 3 unclear, 4 bad input."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import NoReturn, TextIO

from pytest_llmprof.cli import ab, compare, doctor, init, merge, report, runs, submit, trend
from pytest_llmprof.cli.processes import interruptible
from pytest_llmprof.errors import LlmprofError, error_line, nearest
from pytest_llmprof.records.files import write_output
from pytest_llmprof.text.escape import shorten, visible

BAD_INPUT = 4
_INVALID_CHOICE = re.compile(r"invalid choice: '(?P<given>[^']*)' \(choose from (?P<allowed>.*)\)")
"""What argparse says of a word that is none of those allowed."""
INTERRUPTED = 130
"""As a shell has it."""
COMMANDS = (compare, ab, merge, submit, runs, trend, report, init, doctor)
"""Modules with `add(subparsers)`, which sets `command` to a function from the options to the exit code, and may set
`passed_on` to the beginning of options that it passes on."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Argparse's own code, 2, would look like pytest's interrupted."""
        if wrong := _INVALID_CHOICE.search(message):
            message += nearest(wrong["given"], re.findall(r"[\w-]+", wrong["allowed"]))
        self.exit(BAD_INPUT, f"ERROR: {visible(message)} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command *arguments* (default: the process's own). Gives the exit code."""
    parser = _Parser(prog="llmprof", description="Compare, join and show runs, start a project, check a machine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for module in COMMANDS:
        module.add(commands)
    options, unknown = parser.parse_known_args(arguments)
    passed_on = getattr(options, "passed_on", None)
    options.passed_on_words = [word for word in unknown if passed_on and word.startswith(passed_on)]
    unknown = [word for word in unknown if word not in options.passed_on_words]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{getattr(options, 'hint', '')}")
    output, stdout = io.StringIO(), sys.stdout
    try:
        with interruptible(), redirect_stdout(output):
            code: int = options.command(options)
    except LlmprofError as error:
        code, problem = BAD_INPUT, visible(error_line(error))
    except KeyboardInterrupt:
        code, problem = INTERRUPTED, "interrupted"
    except OSError as error:
        if error.filename is None:
            raise
        # A path that was given: too long, or below a directory that this user may not enter.
        path = shorten(visible(os.fsdecode(error.filename)), 300)
        code, problem = BAD_INPUT, f"cannot use {path}: {str(error.strerror).lower()}"
    else:
        problem = ""
    # Written once the exit code is known: a reader that goes away, such as `head`, does not change it.
    lost = _write(output.getvalue(), stdout)
    for line in filter(None, (problem, lost)):
        print(f"ERROR: {line}", file=sys.stderr)
    return BAD_INPUT if lost else code


def _write(text: str, stdout: TextIO | None) -> str:
    """Write *text* to *stdout*, with escapes for what its encoding lacks.

    Gives why it is lost: nothing where the reader has gone, or there is none.
    """
    if stdout is None:
        return ""
    if not _has(stdout.encoding, text):
        text = "".join(one if _has(stdout.encoding, one) else json.dumps(one)[1:-1] for one in text)
    try:
        write_output(text, stdout)
    except BrokenPipeError:
        return ""
    except LlmprofError as error:
        return str(error)
    return ""


def _has(encoding: str | None, text: str) -> bool:
    """Whether *encoding* has all of *text*."""
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
