"""The documentation's site: its pages, its links, and that nothing is loaded from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import build_site
import pytest
from test_docs import _FENCE, ROOT, rows, slug, ticked

SOURCES = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "pytest_llmprof").rglob("*.py")))
PAGES = [ROOT / page for page in build_site.pages()]
ALL = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())


def anchors(page: Path) -> set[str]:
    """The anchors of a page, as GitHub and the site make them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    found = [slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    assert len(found) == len(set(found)), "two headings have one anchor, which GitHub and the site number differently"
    return set(found)


def test_the_navigation_has_every_page():
    assert {page for page in PAGES if page.parent == ROOT / "docs"} == set((ROOT / "docs").glob("*.md"))
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md"} <= {page.name for page in PAGES}
    assert len(PAGES) == len(set(PAGES))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [page for page in PAGES if page.parent == ROOT / "docs" and f"](docs/{page.name})" not in readme]


@ALL
def test_links_lead_to_pages_and_anchors(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.is_file(), target  # GitHub shows a directory, the site has none
        assert not anchor or anchor in anchors(there), target


@ALL
def test_headings_have_anchors_of_their_own(page):
    if page.name != "CHANGELOG.md":  # "Added" comes again with each release, and nothing links there
        anchors(page)


def test_a_link_to_nothing_is_refused(monkeypatch, tmp_path):
    (tmp_path / "a.md").write_text("[b](b.md)")
    monkeypatch.setattr(build_site, "ROOT", tmp_path)
    monkeypatch.setattr(build_site, "pages", lambda: ["a.md"])
    with pytest.raises(SystemExit, match=r"a\.md links to .*b\.md, which is no file"):
        build_site.gather(tmp_path / "out")


def test_messages_in_troubleshooting_are_those_of_the_code():
    checked = 0
    for symptom, _, _ in rows((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), 3):
        for message in ticked(symptom):
            if " " in message and not message.startswith("llmprof "):
                for part in message.split("…"):
                    assert part.strip() in SOURCES, message
                checked += 1
    assert checked > 20


def test_the_site_builds_and_loads_nothing_from_elsewhere():
    pytest.importorskip("zensical")
    assert build_site.main() == 0
    html = ROOT / build_site.settings()["site_dir"]
    built = sorted(html.rglob("*.html"))
    assert len(built) >= len(PAGES)
    for file in built:
        text = file.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?([^\s\">]+)", text)
        loaded += re.findall(r"<link[^>]*\shref=\"?([^\s\">]+)[^>]*>", text)
        assert not [one for one in loaded if re.match(r"(https?:)?//", one)], file
