"""Run a command in a terminal and save what it showed as an SVG, for README.

    python -m pip install -e ".[docs]"
    python tools/record_terminal.py docs/images/terminal.svg pytest benchmarks --llmprof-stage=torch_profiler

The command runs under a pseudo-terminal, so it shows its colours. pyte plays what it wrote, so only what is on the
screen at the end is in the picture.
"""

from __future__ import annotations

import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from fcntl import ioctl
from io import StringIO
from itertools import groupby
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

WIDTH, LINES = 110, 200


def run(command: list[str]) -> tuple[str, int]:
    """What *command* wrote to its terminal, and its exit code."""
    terminal, inner = pty.openpty()
    ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, WIDTH, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(WIDTH)}
    shown = bytearray()
    with subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment) as process:
        os.close(inner)
        with suppress(OSError):  # Linux says so at the end
            while part := os.read(terminal, 65536):
                shown += part
    os.close(terminal)
    return shown.decode(errors="replace"), process.returncode


def screen(shown: str) -> Text:
    """What is on the screen at the end, with its colours."""
    terminal = pyte.Screen(WIDTH, LINES)
    pyte.Stream(terminal).feed(shown)
    lines = []
    for number in range(LINES):
        line = Text()
        cells = [terminal.buffer[number][column] for column in range(WIDTH)]
        for (colour, bold), same in groupby(cells, key=lambda cell: (cell.fg, cell.bold)):
            name = {"default": None, "brown": "yellow"}.get(colour, colour.replace("bright", "bright_"))
            line.append("".join(cell.data for cell in same), Style(color=name, bold=bold))
        line.rstrip()
        lines.append(line)
    while not lines[-1]:
        lines.pop()
    return Text("\n").join(lines)


def svg(text: Text, title: str) -> str:
    """A picture of *text*. It loads no fonts from elsewhere."""
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True)
    console.print(text)
    image = console.export_svg(title=title, unique_id="terminal")
    return re.sub(r"@font-face \{.*?\}\s*", "", image, flags=re.DOTALL)


def main() -> int:
    """Record."""
    target, *command = sys.argv[1:]
    shown, code = run(command)
    typed = Text(f"$ {shlex.join(command)}\n", "bold")
    Path(target).write_text(svg(typed + screen(shown), "pytest-llmprof"), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
