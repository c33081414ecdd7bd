"""Where the packaged configuration tree is, and how configured paths are resolved."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest_llmprof

_LONGEST_NAME = 255
_LONGEST = 3800
"""Bytes of a path; Linux takes 4095, and a gallery has its own files below."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def conf_dir(package: Path | None = None) -> Path:
    """The canonical `conf/` tree: the checkout's where the package runs from one, else the package's own.

    The checkout comes first, because an editable install can leave an old copy of the tree in site-packages.
    It is known by its pyproject.toml, so that another `conf/` beside an installed package is not taken.
    *package* is the package's directory (for tests).
    """
    package = package or Path(pytest_llmprof.__file__).resolve().parent
    checkout = package.parent
    project = checkout / "pyproject.toml"
    if (
        (checkout / "conf" / "config.yaml").is_file()
        and project.is_file()
        and 'name = "pytest-llmprof"' in project.read_text(encoding="utf-8")
    ):
        return checkout / "conf"
    return package / "conf"


def absolute(value: str, base: Path) -> Path:
    """*value* as an absolute path: ``~`` expanded, relative to *base*. Links stay, except under ``..``."""
    path = Path(os.path.expanduser(value))  # unlike Path.expanduser, leaves the home of an unknown user alone
    path = base / path
    return Path(os.path.realpath(path)) if ".." in path.parts and not why_unusable(path) else path


def why_unusable(path: Path) -> str | None:
    """Why nothing can be at *path*, or be found out of it, a missing file aside; None where something can."""
    try:
        if max(map(len, map(os.fsencode, path.parts)), default=0) > _LONGEST_NAME or len(os.fsencode(path)) > _LONGEST:
            return "the path is too long"
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return str(error.strerror).lower()
    except ValueError:
        return "a path holds no NUL character and no half of a character"
    return None


def is_hub_id(value: str) -> bool:
    """Whether *value* looks like a hub id, `name` or `org/name`."""
    return _HUB_ID.fullmatch(value) is not None


def is_local(value: str, base: Path) -> bool:
    """Whether *value* names a local directory: it is written as a path, or exists below *base*."""
    return value in (".", "..") or value.startswith(("./", "../", "/", "~")) or os.path.exists(base / value)
