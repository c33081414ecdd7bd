"""The file that pytest reads a project's options from, and how options are added to it."""

from __future__ import annotations

import configparser
import copy
import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_llmprof.errors import ArtifactError
from pytest_llmprof.text.escape import one_line

Options = Mapping[str, str | list[str]]

_PYPROJECT = "pyproject.toml"
_BEFORE = ("pytest.toml", ".pytest.toml", "pytest.ini", ".pytest.ini")
"""Files that pytest looks for before pyproject.toml, the first one first."""
_AFTER = {"tox.ini": "pytest", "setup.cfg": "tool:pytest"}
"""Files that it looks for afterwards, and their section for it."""
_INI_OPTIONS = "tool.pytest.ini_options"
_HEADER = re.compile(r"^[ \t]*\[[ \t]*tool[ \t]*\.[ \t]*pytest[ \t]*\.[ \t]*ini_options[ \t]*\][ \t]*(#.*)?$", re.M)


def read_text(path: Path) -> str | None:
    """The text of a file; None where it does not exist. Raises `ArtifactError` where it cannot be read as UTF-8."""
    if not os.path.lexists(path):
        return None
    if path.exists() and not (path.is_file() or path.is_dir()):  # reading a named pipe would not end
        raise ArtifactError(f"cannot read {path}: it is not a regular file")
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from error


def joined(text: str, lines: str) -> str:
    """*text* and then *lines*, which begin on a line of their own and get the line ends of *text*."""
    end = "\r\n" if "\r\n" in text else "\n"
    return f"{text}{'' if not text or text.endswith(chr(10)) else end}{lines.replace(chr(10), end)}"


@dataclass(frozen=True)
class OptionsFile:
    """Where a project's options of pytest are, or are best put."""

    name: str
    section: str
    text: str | None
    """None where there is no such file yet."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """What the section sets now."""
    broken: str = ""
    """Why the file cannot be read as TOML."""

    @property
    def _toml(self) -> bool:
        return self.name.endswith(".toml")

    def lines(self, options: Options) -> str:
        """*options* as lines of this file."""
        if self._toml:
            return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in options.items())
        found = []
        for key, value in options.items():
            found += [f"{key} = {value}"] if isinstance(value, str) else [f"{key} =", *(f"    {one}" for one in value)]
        return "".join(f"{line}\n" for line in found)

    def by_hand(self, options: Options) -> str:
        """What a user is to add."""
        mend = f" (it is not valid TOML now: {self.broken})" if self.broken else ""
        return f"add to {self.name}{mend}:\n[{self.section}]\n{self.lines(options)}"

    def with_options(self, options: Options) -> tuple[str, str] | None:
        """The file's text with *options* in its section, and the lines that are new.

        None where that is for the user to do: in a file of another format, or where the result would be in doubt.
        """
        lines = self.lines(options)
        if self.text is None:
            return f"[{self.section}]\n{lines}", ""
        if self.section != _INI_OPTIONS or self.broken:
            return None
        flat = self.text.replace("\r\n", "\n")
        headers = list(_HEADER.finditer(flat))
        if headers:
            place, new = headers[0].end(), f"\n{lines.rstrip()}"
            text = (flat[:place] + new + flat[place:]).replace("\n", "\r\n" if "\r\n" in self.text else "\n")
        else:
            lines = f"[{self.section}]\n{lines}"
            text = joined(self.text, f"\n{lines}" if flat.strip() else lines)
        expected = copy.deepcopy(tomllib.loads(self.text))
        expected.setdefault("tool", {}).setdefault("pytest", {}).setdefault("ini_options", {}).update(options)
        try:
            return (text, lines) if tomllib.loads(text) == expected else None
        except tomllib.TOMLDecodeError:
            return None


def options_file(directory: Path) -> OptionsFile:
    """The file that pytest, started in *directory*, reads its options from; without one, where they are best put.

    Raises `ArtifactError` where a file cannot be read.
    """
    for name in _BEFORE:
        if (text := read_text(directory / name)) is not None:
            values = _ini(text, "pytest") if name.endswith(".ini") else _tables(_toml(text)[0], "pytest")
            return OptionsFile(name, "pytest", text, values)
    pyproject = read_text(directory / _PYPROJECT)
    data, broken = _toml(pyproject or "")
    if own := _tables(data, "tool", "pytest"):
        section = _INI_OPTIONS if "ini_options" in own else "tool.pytest"
        values = _tables(own, "ini_options") if "ini_options" in own else own
        return OptionsFile(_PYPROJECT, section, pyproject, values)
    if not broken:
        for name, section in _AFTER.items():
            text = read_text(directory / name)
            if text is not None and f"[{section}]" in text:
                return OptionsFile(name, section, text, _ini(text, section))
    if pyproject is None:
        return OptionsFile("pytest.ini", "pytest", None)
    return OptionsFile(_PYPROJECT, _INI_OPTIONS, pyproject, broken=broken)


def _toml(text: str) -> tuple[dict[str, Any], str]:
    """The data, and why there is none."""
    try:
        return tomllib.loads(text), ""
    except tomllib.TOMLDecodeError as error:
        return {}, one_line(str(error))


def _tables(data: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    value: Any = data
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _ini(text: str, section: str) -> dict[str, Any]:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(text)
        return dict(parser[section])
    except (configparser.Error, KeyError):
        return {}  # pytest refuses it with its own message; nothing is written into it
