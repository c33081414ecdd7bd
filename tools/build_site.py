"""Build the documentation's site in build/site/html. A warning is an error; no network is used.

    python -m pip install -e ".[docs]"
    python tools/build_site.py

The pages are those of mkdocs.yml. They are written for GitHub, with relative links to one another and to other files of
the repository. So they are gathered with all that they link to, each at its own path, and no link has to change.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "mkdocs.yml"
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_TARGET = re.compile(r"\]\(([^)\s#]+)")


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, whose tags name Python objects: they are nothing here."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)


def settings() -> dict[str, Any]:
    """mkdocs.yml."""
    found: dict[str, Any] = yaml.load(CONFIG.read_text(encoding="utf-8"), Loader=_Loader)
    return found


def pages(entry: Any = None) -> Iterator[str]:
    """The paths of all pages in the navigation, from the repository's root."""
    entry = settings()["nav"] if entry is None else entry
    if isinstance(entry, str):
        yield entry
    for inner in entry if isinstance(entry, list) else entry.values() if isinstance(entry, dict) else ():
        yield from pages(inner)


def linked(page: Path) -> Iterator[Path]:
    """The files of the repository that *page* links to."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in _TARGET.findall(text):
        if not re.match(r"[a-z]+:", target):
            yield (page.parent / target).resolve()


def gather(directory: Path) -> None:
    """Copy the pages and what they link to into *directory*. Raises `SystemExit` for a link to nothing."""
    shutil.rmtree(directory, ignore_errors=True)
    files = dict.fromkeys(ROOT / page for page in pages())
    for page in list(files):
        for file in linked(page):
            if not file.is_file():
                raise SystemExit(f"{page.relative_to(ROOT)} links to {file}, which is no file")
            files[file] = None
    for file in [*files, *(ROOT / style for style in settings().get("extra_css", ()))]:
        copy = directory / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def main() -> int:
    """Gather and build."""
    gather(ROOT / settings()["docs_dir"])
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", str(CONFIG)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
