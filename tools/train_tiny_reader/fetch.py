"""Fetch the fonts and the words that training needs, from Debian packages, into one folder.

    python fetch.py DIR [--debs DIR_WITH_DEB_FILES]

Makes DIR/fonts/*.ttf|otf and DIR/text/{words,sentences}.txt.gz. Needs `dpkg-deb`, and `apt-get download` for the
packages that are not in --debs. Licences: see README.md. Nothing fetched here is shipped with the checkpoint.
"""

# ruff: noqa: SIM905 - a list of packages is easier to read as text

from __future__ import annotations

import argparse
import gzip
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fonts import HELD_OUT, TRAINED, Family

FONT_PACKAGES = (
    "fonts-dejavu-core fonts-liberation2 fonts-ebgaramond fonts-stix fonts-roboto-unhinted fonts-lato "
    "fonts-crosextra-carlito fonts-crosextra-caladea fonts-cantarell fonts-inconsolata fonts-hack "
    "fonts-courier-prime fonts-linuxlibertine fonts-oldstandard fonts-jetbrains-mono fonts-quicksand "
    "fonts-sil-charis fonts-texgyre fonts-gfs-didot fonts-open-sans fonts-sil-gentium-basic"
).split()
TEXT_PACKAGES = ("wamerican", "wordnet-base")


def unpack(packages: list[str], debs: Path | None, into: Path) -> None:
    """Unpack *packages*, from *debs* where they are there, else downloaded."""
    into.mkdir(parents=True)
    for name in packages:
        found = sorted(debs.glob(f"{name}_*.deb")) if debs else []
        if not found:
            subprocess.run(["apt-get", "download", "-qq", name], cwd=into, check=True)
            found = sorted(into.glob(f"{name}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(found[-1]), str(into / "root")], check=True)


def phrases(root: Path) -> Iterator[str]:
    """Definitions and example sentences of WordNet, in printable ASCII."""
    for kind in ("noun", "verb", "adj", "adv"):
        for line in (root / "usr/share/wordnet" / f"data.{kind}").read_text("latin-1").splitlines():
            if line.startswith("  ") or "|" not in line:
                continue
            gloss = line.split("|", 1)[1]
            examples = re.findall(r'"([^"]+)"', gloss)
            for text in (re.sub(r'"[^"]*"|\([^)]*\)', "", gloss).split(";")[0], *examples):
                text = " ".join(text.split()).strip(" ;:")
                if 14 <= len(text) <= 130 and text.isascii() and text.isprintable() and " " in text:
                    yield text


def main() -> None:
    """Fill the folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--debs", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        into = Path(scratch) / "debs"
        unpack([*FONT_PACKAGES, *TEXT_PACKAGES], options.debs, into)
        root = into / "root"
        (options.folder / "fonts").mkdir(parents=True, exist_ok=True)
        (options.folder / "text").mkdir(exist_ok=True)
        files = {path.name: path for path in root.rglob("*") if path.suffix in {".ttf", ".otf"}}
        families: tuple[Family, ...] = (*TRAINED, *HELD_OUT)
        for family in families:
            for name in (*family.regular, *family.bold):
                shutil.copyfile(files[name], options.folder / "fonts" / name)
        raw = (root / "usr/share/dict/american-english").read_text("utf-8").split()
        words = sorted({w for w in raw if w.isascii() and w.isalpha() and 2 <= len(w) <= 14})
        for name, rows in (("words", words), ("sentences", sorted(set(phrases(root))))):
            data = "\n".join(rows).encode()
            (options.folder / "text" / f"{name}.txt.gz").write_bytes(gzip.compress(data, 9, mtime=0))
            print(f"{len(rows)} {name}")


if __name__ == "__main__":
    main()
