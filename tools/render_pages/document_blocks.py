"""The blocks that a document page is made of; each knows its typst source, its Markdown and its plain text.

One list of blocks gives the image and the truth, so they cannot differ. The Markdown is the dialect
that document-OCR models answer in: tables as HTML, displayed equations as LaTeX between ``\\[`` and ``\\]``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

_TYPST_SPECIAL = re.compile(r"""([\\#$*_@<>\[\]~`=\-+/"'])""")


def typst_text(text: str) -> str:
    """*text* so that typst sets exactly these characters (no smart quotes, no markup)."""
    return _TYPST_SPECIAL.sub(r"\\\1", text)


def html_table(rows: Iterable[Iterable[str]]) -> str:
    """The cells of *rows* as the released model writes a table."""
    lines = ("".join(f"<td>{escape(cell, quote=False)}</td>" for cell in row) for row in rows)
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


@dataclass(frozen=True)
class Title:
    """The document's title."""

    text: str
    label: str = "title"

    def typst(self) -> str:
        return f"#text(size: 22pt, weight: 700)[{typst_text(self.text)}]"

    def markdown(self) -> str:
        return f"# {self.text}"

    def free(self) -> str:
        return self.text


@dataclass(frozen=True)
class Heading:
    """A section's heading."""

    text: str
    level: int = 2
    label: str = "sub_title"

    def typst(self) -> str:
        size = {2: 14, 3: 12}[self.level]
        return f"#v(2pt)\n#text(size: {size}pt, weight: 700)[{typst_text(self.text)}]"

    def markdown(self) -> str:
        return f"{'#' * self.level} {self.text}"

    def free(self) -> str:
        return self.text


@dataclass(frozen=True)
class Paragraph:
    """Running text, or lines that stay as they are where *text* holds newlines."""

    text: str
    align: str = "left"
    style: str = ""
    """Arguments of typst's `text`, such as ``style: "italic"``."""
    label: str = "text"

    def typst(self) -> str:
        body = " \\\n".join(typst_text(line) for line in self.text.split("\n"))
        return f"#align({self.align})[#text({self.style})[{body}]]"

    def markdown(self) -> str:
        return self.text

    def free(self) -> str:
        return self.text


@dataclass(frozen=True)
class Items:
    """A list, with bullets or numbered from 1."""

    items: tuple[str, ...]
    numbered: bool = False
    label: str = "text"

    def typst(self) -> str:
        mark = "+" if self.numbered else "-"
        return "\n".join(f"{mark} {typst_text(item)}" for item in self.items)

    def markdown(self) -> str:
        marks = [f"{number}." if self.numbered else "-" for number in range(1, len(self.items) + 1)]
        return "\n".join(f"{mark} {item}" for mark, item in zip(marks, self.items, strict=True))

    def free(self) -> str:
        return self.markdown() if self.numbered else "\n".join(f"\u2022 {item}" for item in self.items)


@dataclass(frozen=True)
class Table:
    """A table; the first row is its head. *align* has a letter a column: l, c, r."""

    rows: tuple[tuple[str, ...], ...]
    align: str
    columns: str = ""
    """typst column widths; empty = as wide as the text."""
    label: str = "table"

    def typst(self) -> str:
        sides = {"l": "left", "c": "center", "r": "right"}
        align = ", ".join(sides[letter] for letter in self.align)
        columns = self.columns or "(" + ", ".join(["auto"] * len(self.align)) + ",)"
        bold = ", ".join(f"[*{typst_text(cell)}*]" for cell in self.rows[0])
        body = [", ".join(f"[{typst_text(cell)}]" for cell in row) for row in self.rows[1:]]
        return (
            f"#table(columns: {columns}, align: ({align},), inset: 6pt, stroke: 0.6pt,\n"
            f"  {bold},\n  " + ",\n  ".join(body) + ")"
        )

    def markdown(self) -> str:
        return html_table(self.rows)

    def free(self) -> str:
        return "\n".join(" ".join(cell for cell in row if cell) for row in self.rows)


@dataclass(frozen=True)
class Equation:
    """A displayed equation, in typst's notation and in LaTeX."""

    typst_math: str
    latex: str
    label: str = "equation"

    def typst(self) -> str:
        return f"$ {self.typst_math} $"

    def markdown(self) -> str:
        return f"\\[{self.latex}\\]"

    def free(self) -> str:
        return self.markdown()


@dataclass(frozen=True)
class Code:
    """A code block."""

    text: str
    language: str
    label: str = "text"

    def typst(self) -> str:
        return (
            "#block(fill: luma(240), inset: 8pt, radius: 3pt, width: 100%)[\n"
            f"```{self.language}\n{self.text}\n```\n]"
        )

    def markdown(self) -> str:
        return f"```{self.language}\n{self.text}\n```"

    def free(self) -> str:
        return self.text


@dataclass(frozen=True)
class Figure:
    """A drawing without words, as typst source."""

    source: str
    label: str = "image"

    def typst(self) -> str:
        return f"#align(center)[{self.source}]"

    def markdown(self) -> str:
        return ""

    def free(self) -> str:
        return ""


@dataclass(frozen=True)
class Caption:
    """The caption of the figure or table beside it."""

    text: str
    of: str = "image"

    @property
    def label(self) -> str:
        return f"{self.of}_caption"

    def typst(self) -> str:
        return f"#align(center)[#text(size: 9.5pt)[{typst_text(self.text)}]]"

    def markdown(self) -> str:
        return self.text

    def free(self) -> str:
        return self.text


AnyBlock = Title | Heading | Paragraph | Items | Table | Equation | Code | Figure | Caption


@dataclass(frozen=True)
class Document:
    """One A4 page: blocks over the whole width, then blocks in *columns* columns."""

    name: str
    head: tuple[AnyBlock, ...]
    body: tuple[AnyBlock, ...]
    columns: int = 1
    font: str = "Libertinus Serif"
    size: float = 11
    justify: bool = False

    @property
    def blocks(self) -> tuple[AnyBlock, ...]:
        """All blocks in reading order."""
        return self.head + self.body

    def markdown(self) -> str:
        """Markdown truth."""
        return "\n\n".join(text for block in self.blocks if (text := block.markdown()))

    def free(self) -> str:
        """Plain truth."""
        return "\n\n".join(text for block in self.blocks if (text := block.free()))

    def typst(self) -> str:
        """The page's typst source.

        Each block leaves a metadata <place>: its index, page, x, y, width and height, in points.
        """
        marked = [f"#mark({index})[\n{block.typst()}\n]" for index, block in enumerate(self.blocks)]
        head = "\n".join(marked[: len(self.head)])
        body = "\n".join(marked[len(self.head) :])
        return f"""\
#set page(paper: "a4", margin: (x: 20mm, y: 18mm))
#set text(font: "{self.font}", size: {self.size}pt, lang: "en", hyphenate: false,
  top-edge: "ascender", bottom-edge: "descender")
#set par(justify: {str(self.justify).lower()}, leading: 0.24em)
#set block(spacing: 8pt)
#set list(spacing: 5pt)
#set enum(spacing: 5pt)
#let mark(index, body) = block(breakable: false, width: 100%, layout(size => {{
  let inner = block(width: size.width, body)
  let at = here().position()
  [#metadata((index, at.page, at.x.pt(), at.y.pt(), size.width.pt(), measure(inner).height.pt())) <place>]
  inner
}}))
{head}
#columns({self.columns}, gutter: 9mm)[
{body}
]
"""
