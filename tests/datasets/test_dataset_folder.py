"""image_folder: which files are pages, what they are called, and where their truth comes from."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pytest_llmprof.config.schema import DatasetSettings
from pytest_llmprof.datasets import Page, builtin, load_pages
from pytest_llmprof.errors import DatasetError, PageError

PLUGIN = {plugin.name: plugin for plugin in builtin()}["image_folder"]


def white_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), "white").save(path, format="PNG")


def load(root: Path, **settings: Any) -> tuple[Page, ...]:
    return load_pages(PLUGIN, DatasetSettings(name="image_folder", root=str(root), **settings))


def names(root: Path, **settings: Any) -> list[str]:
    return [page.name for page in load(root, **settings)]


def error(root: Path, **settings: Any) -> str:
    with pytest.raises(DatasetError) as caught:
        load(root, **settings)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "pages"
    for name in ("page10.png", "page2.png", "letters/b.jpg", "letters/a.PNG", "Zoo.png"):
        white_image(folder / name)
    return folder


def test_natural_order_and_names(root: Path) -> None:
    assert names(root) == ["letters/a", "letters/b", "page2", "page10", "Zoo"]
    page = load(root)[0]
    assert page.path == root / "letters/a.PNG"
    assert page.source == str(root / "letters/a.PNG")
    assert page.load().size == (4, 3)
    assert (page.truth_free, page.truth_markdown, page.truth_boxes) == (None, None, None)


def test_other_files_are_left_out(root: Path) -> None:
    (root / "notes.md").write_text("no page of that name")
    (root / "data.json").write_text("{}")
    (root / "page2.txt").write_text("two")
    (root / "scan.docx").write_bytes(b"PK")
    (root / "README").write_text("hello")
    white_image(root / ".cache/x.png")
    white_image(root / "._page2.png")
    assert names(root) == ["letters/a", "letters/b", "page2", "page10", "Zoo"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["page2", "page10", "Zoo"]),
        ("page?.png", ["page2"]),
        ("letters/*", ["letters/a", "letters/b"]),
        ("**/*.jpg", ["letters/b"]),
        ("**/[ab].*", ["letters/a", "letters/b"]),
        ("letters/**", ["letters/a", "letters/b"]),
        ("./*.png", ["page2", "page10", "Zoo"]),
        ("page2", ["page2"]),
    ],
)
def test_patterns(root: Path, pattern: str, expected: list[str]) -> None:
    assert names(root, pattern=(pattern,)) == expected


def test_several_patterns_give_each_page_once(root: Path) -> None:
    assert names(root, pattern=("*.png", "page*", "letters/b.*")) == ["letters/b", "page2", "page10", "Zoo"]


def test_hidden_files_by_their_dot(root: Path) -> None:
    white_image(root / ".hidden/x.png")
    assert names(root, pattern=(".hidden/*",)) == [".hidden/x"]


@pytest.mark.parametrize("pattern", ["/etc/*.png", "../*.png", "a/../b.png", "", "."])
def test_patterns_that_are_refused(root: Path, pattern: str) -> None:
    text = error(root, pattern=(pattern,))
    assert "dataset.pattern" in text
    assert repr(pattern) in text


def test_no_match_says_what_was_seen(root: Path) -> None:
    (root / "notes.txt").write_text("x")
    text = error(root, pattern=("*.webp", "x/*"))
    assert str(root) in text
    assert "'*.webp'" in text
    assert "files seen: 6, images among them: 5" in text
    assert "dataset.pattern is empty" in error(root, pattern=())


def test_bad_roots(tmp_path: Path) -> None:
    assert "no such directory" in error(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "not a directory" in error(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "files seen: 0" in error(tmp_path / "empty")
    with pytest.raises(DatasetError, match=r"dataset\.root is not set"):
        load_pages(PLUGIN, DatasetSettings(name="image_folder"))


def test_truth_beside_the_image(root: Path) -> None:
    (root / "page2.md").write_text("# Two\n\ntext\n")
    (root / "page2.txt").write_bytes(b"\xef\xbb\xbfTwo\r\ntext\r\n")
    (root / "letters/a.TXT").write_text("upper case suffix")
    pages = {page.name: page for page in load(root)}
    assert pages["page2"].truth_markdown == "# Two\n\ntext"
    assert pages["page2"].truth_free == "Two\ntext"
    assert pages["letters/a"].truth_free == "upper case suffix"
    assert pages["letters/a"].truth("markdown") == "upper case suffix"
    assert pages["page10"].truth("free") is None


def test_empty_truth_is_a_truth(root: Path) -> None:
    (root / "Zoo.txt").write_text("")
    assert load(root, pattern=("Zoo*",))[0].truth_free == ""


def test_truth_that_is_not_utf8(root: Path) -> None:
    (root / "page2.txt").write_bytes("K\u00f6ln".encode("latin-1"))
    text = error(root)
    assert str(root / "page2.txt") in text
    assert "0xf6 at offset 1" in text
    assert "page2" not in names(root, pattern=("letters/*",))  # only the truth of chosen pages is read


def test_truths_of_no_page_are_left_out_by_name(root: Path) -> None:
    for name in ("page2.txt", "page2.TXT", "page2.png.md", "Page10.txt", "README.md", "letters/a.PNG.txt", ".x.txt"):
        (root / name).write_text("text")
    pages = load_pages(PLUGIN, DatasetSettings(name="image_folder", root=str(root), limit=1))
    assert pages.left_out == {
        ".txt: the truth of no page": [str(root / "Page10.txt"), str(root / "page2.TXT")],
        ".md: the truth of no page": [str(root / "README.md")],
    }
    assert not load_pages(PLUGIN, DatasetSettings(name="image_folder", root=str(root), pattern=("*.png",))).left_out


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
@pytest.mark.parametrize("name", ["page2.txt", "page2.MD"])
def test_truth_that_is_no_file(root: Path, make: Callable[[Path], None], name: str) -> None:
    make(root / name)
    text = error(root)
    assert f"the truth of page 'page2', {root / name} is no file" in text
    assert "page2" not in names(root, pattern=("letters/*",))
    (root / "page2.png").unlink()
    assert "page10" in names(root)  # it is nobody's truth now


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_truth_in_another_unicode(root: Path, encoding: str) -> None:
    """Without a byte order mark its bytes are UTF-8, too, with NULs between the letters."""
    (root / "page2.txt").write_bytes("Two words".encode(encoding))
    assert re.search(r"page2\.txt .*save it as UTF-8", error(root))


def test_images_of_one_stem(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.png", "a.png.jpg"):
        white_image(tmp_path / name)
    (tmp_path / "a.md").write_text("shared")
    (tmp_path / "a.png.md").write_text("its own")
    pages = {page.name: page for page in load(tmp_path)}
    assert sorted(pages) == ["a.jpg", "a.png", "a.png.jpg", "b"]
    assert pages["a.png"].truth_markdown == "its own"
    assert pages["a.jpg"].truth_markdown == "shared"
    # Names do not depend on what else is chosen.
    assert names(tmp_path, pattern=("*.jpg",)) == ["a.jpg", "a.png.jpg"]
    assert names(tmp_path, subset=("a.png",)) == ["a.png"]
    assert "'a.jpg', 'a.png'" in error(tmp_path, subset=("a",))


def test_names_that_differ_in_case_only(tmp_path: Path) -> None:
    white_image(tmp_path / "A.png")
    white_image(tmp_path / "a.png")
    assert names(tmp_path) == ["A", "a"]


def test_links(root: Path, tmp_path: Path) -> None:
    white_image(tmp_path / "elsewhere/x.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "letters/loop").symlink_to(root)
    (tmp_path / "elsewhere/back").symlink_to(root / "letters")
    (root / "alias.png").symlink_to(root / "page2.png")
    assert names(root) == ["alias", "letters/a", "letters/b", "linked/x", "page2", "page10", "Zoo"]


def test_dangling_link_fails_as_a_page(root: Path) -> None:
    (root / "gone.png").symlink_to(root / "nothing.png")
    pages = {page.name: page for page in load(root)}
    with pytest.raises(PageError, match=r"'gone'.*No such file"):
        pages["gone"].load()


def test_pipe_is_no_page(root: Path) -> None:
    os.mkfifo(root / "pipe.png")
    (root / "link_to_a_pipe.png").symlink_to("pipe.png")
    os.mkfifo(root / "pipe.txt")
    pages = load_pages(PLUGIN, DatasetSettings(name="image_folder", root=str(root)))
    assert "pipe" not in " ".join(page.name for page in pages)
    left_out = pages.left_out["no files but pipes, sockets or devices: none is read"]
    assert [Path(file).name for file in left_out] == ["link_to_a_pipe.png", "pipe.png", "pipe.txt"]
    assert not load_pages(PLUGIN, DatasetSettings(name="image_folder", root=str(root), exclude=("*pipe*",))).left_out


def test_many_stars_take_no_time(root: Path) -> None:
    """With one that tries each place for each ``**`` this took longer than anyone waits."""
    begin = time.monotonic()
    folder = root.joinpath(*["a"] * 40)
    folder.mkdir(parents=True)
    white_image(folder / "deep.png")
    assert names(root, pattern=("/".join(["**", "a"] * 15 + ["*.png"]),)) == ["a/" * 40 + "deep"]
    assert "dataset.pattern" in error(root, pattern=("/".join(["**", "a"] * 15 + ["*.jpg"]),))
    assert time.monotonic() - begin < 5


def test_odd_file_names(tmp_path: Path) -> None:
    white_image(tmp_path / "two words & \u00fcmlaut.png")
    Image.new("L", (1, 1)).save(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", os.fsencode(tmp_path) + b"/bad\xff\n.png")
    pages = load(tmp_path)
    assert [page.name for page in pages] == ["bad\\xff\\n", "two words & \u00fcmlaut"]
    for page in pages:
        (page.name + page.source).encode("utf-8")
        assert page.load().size[0] > 0


def test_subset_list(root: Path, tmp_path: Path) -> None:
    chosen = tmp_path / "subset.txt"
    chosen.write_text("\ufeff# my\n\npage10\n  letters/a.PNG  # with suffix\n./page2\npage10\n", "utf-8")
    assert names(root, subset=str(chosen)) == ["letters/a", "page2", "page10"]
    assert names(root, subset=("Zoo", "letters/b.jpg")) == ["letters/b", "Zoo"]


def test_subset_errors(root: Path, tmp_path: Path) -> None:
    chosen = tmp_path / "subset.txt"
    chosen.write_text("page2\npage11\n")
    text = error(root, subset=str(chosen))
    assert f"{chosen}:2" in text
    assert "'page11'" in text
    assert "did you mean 'page10" in text
    assert "did you mean 'letters/a'" in error(root, subset=("a",))
    assert "none of the 3 pages" in error(root, pattern=("*.png",), subset=("letters/a",))
    assert "empty" in error(root, subset=())
    chosen.write_text("# nothing\n\n")
    assert "names no page" in error(root, subset=str(chosen))
    chosen.write_bytes(b"\xff")
    assert "not UTF-8" in error(root, subset=str(chosen))
    assert "no such file" in error(root, subset=str(tmp_path / "none.txt"))
    assert "is a directory" in error(root, subset=str(tmp_path))


def test_name_with_hash_sign(tmp_path: Path) -> None:
    white_image(tmp_path / "a#1.png")
    chosen = tmp_path / "subset.txt"
    chosen.write_text("a#1 # the hash sign inside a name begins no comment\n")
    assert names(tmp_path, subset=str(chosen)) == ["a#1"]


def test_limit_shuffle_seed(root: Path) -> None:
    everything = names(root)
    assert names(root, limit=2) == everything[:2]
    assert names(root, limit=99) == everything
    orders = {tuple(names(root, shuffle=True, seed=seed)) for seed in range(8)}
    assert len(orders) > 3
    assert all(sorted(order) == sorted(everything) for order in orders)
    # The order of a seed is part of what users rely on: the same on every machine and Python.
    assert names(root, shuffle=True, seed=0) == names(root, shuffle=True)
    first = names(root, shuffle=True, seed=1)
    assert names(root, shuffle=True, seed=1, limit=3) == first[:3]
    white_image(root / "new.png")
    assert [name for name in names(root, shuffle=True, seed=1) if name != "new"] == first
    assert "dataset.limit=0" in error(root, limit=0)


def test_unreadable_directory_is_an_error_not_a_gap(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("letters"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    text = error(root)
    assert "Permission denied" in text
    assert str(root / "letters") in text
