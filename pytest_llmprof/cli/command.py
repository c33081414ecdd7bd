"""The parser and the exit codes: 0 all well, 1 slower, worse or not able to run, 3 unclear, 4 bad input."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from pytest_llmprof.cli import ab, compare, doctor, init, merge, report, runs, submit, trend
from pytest_llmprof.cli.processes import interruptible
from pytest_llmprof.errors import LlmprofError, error_line, nearest
from pytest_llmprof.text.escape import visible

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
    try:
        with interruptible():
            code: int = options.command(options)
        sys.stdout.flush()
    except LlmprofError as error:
        print(f"ERROR: {visible(error_line(error))}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("ERROR: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code
