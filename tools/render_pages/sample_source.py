"""The source of the eight sample pages: what stands on them and where.

Names, places and numbers are invented. Printable ASCII only. A line is a text, or cells ``(x, text)`` of a
row; in the truth the cells of a row are joined by one space. A block that holds an image has no lines.
"""

from __future__ import annotations

from dataclasses import dataclass

from document_blocks import html_table

WIDTH = HEIGHT = 512

Cell = tuple[int, str]
Line = str | tuple[Cell, ...]


@dataclass(frozen=True)
class Block:
    """A block of the page: lines below each other, all in one font."""

    label: str
    """title | text | table | image"""
    lines: tuple[Line, ...]
    y: int
    """Top of the first line's em box, in pixels."""
    font: str = "DejaVuSans"
    """File name of the font without suffix."""
    size: int = 24
    """Pixels an em."""
    x: int = 28
    """Left edge, for centred blocks unused."""
    step: int = 0
    """Pixels from line to line; 0 = 1.3 em."""
    centred: bool = False
    head: str = ""
    """Font of a table's first line."""
    grid: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    """Where the lines of a table stand (x) and lie (y)."""

    def texts(self) -> tuple[str, ...]:
        """The lines as text, cells of a row joined by one space."""
        return tuple(
            line if isinstance(line, str) else " ".join(text for _, text in line) for line in self.lines
        )

    def markdown(self) -> str:
        """The block in Markdown (nothing for an image); a table in HTML, as the released model writes it."""
        if self.label == "table":
            return html_table((text for _, text in line) for line in self.lines)
        text = "\n".join(self.texts())
        return f"# {text}" if self.label == "title" else text


@dataclass(frozen=True)
class Sheet:
    """A page: blocks in reading order on a background."""

    name: str
    blocks: tuple[Block, ...]
    paper: tuple[int, int, int] = (255, 255, 255)
    ink: tuple[int, int, int] = (20, 20, 20)
    noise: int = 0
    """Per cent of the pixels that get a grey speck; 0 = none."""
    rules: tuple[tuple[int, int, int, int], ...] = ()
    """Thin grey lines (x1, y1, x2, y2), drawn under the text."""
    image: tuple[int, int, int, int] | None = None
    """Where the drawing of an `image` block sits."""

    def markdown(self) -> str:
        """Markdown truth: blocks with text, a blank line between them."""
        return "\n\n".join(block.markdown() for block in self.blocks if block.lines)

    def free(self) -> str:
        """Plain truth: the same without heading marks."""
        return "\n\n".join("\n".join(block.texts()) for block in self.blocks if block.lines)


def _row(*texts: str, at: tuple[int, ...]) -> tuple[Cell, ...]:
    return tuple(zip(at, texts, strict=True))


_BILL = (34, 330)
_BUS = (46, 162, 366)
_FORM = (32, 200)

SHEETS: tuple[Sheet, ...] = (
    Sheet(
        "receipt",
        (
            Block("title", ("CORNER CAFE",), 24, "DejaVuSansMono-Bold", 36, centred=True),
            Block("text", ("12 Mill Lane, Oakham", "14 March 2024 09:42"), 82, "DejaVuSansMono", 22, 34),
            Block(
                "text",
                (
                    _row("2 Coffee", "5.60", at=_BILL),
                    _row("1 Green tea", "2.40", at=_BILL),
                    _row("3 Scones", "7.50", at=_BILL),
                    _row("1 Soup", "4.95", at=_BILL),
                ),
                172,
                "DejaVuSansMono",
                24,
                34,
                38,
            ),
            Block("text", (_row("TOTAL", "20.45", at=(34, 310)),), 350, "DejaVuSansMono-Bold", 26),
            Block("text", ("Paid by card. Thank you!",), 424, "DejaVuSansMono", 22, 34),
        ),
        rules=((34, 155, 420, 155), (34, 334, 420, 334), (34, 396, 420, 396)),
    ),
    Sheet(
        "letter",
        (
            Block("title", ("Your visit on Friday",), 26, "LiberationSerif-Bold", 34),
            Block("text", ("Dear Mrs Palmer,",), 96, "LiberationSerif-Regular", 26),
            Block(
                "text",
                (
                    "thank you for your letter of 3 May.",
                    "We will gladly show you the garden",
                    "at ten in the morning. Please bring",
                    "strong shoes, the paths are wet.",
                ),
                150,
                "LiberationSerif-Regular",
                26,
                step=36,
            ),
            Block(
                "text",
                ("The train from Leeds stops nearby.", "Tell us if you need a lift."),
                314,
                "LiberationSerif-Regular",
                26,
                step=36,
            ),
            Block("text", ("Yours sincerely,", "Henry Wood"), 408, "LiberationSerif-Regular", 26, step=36),
        ),
    ),
    Sheet(
        "list",
        (
            Block("title", ("Things to pack",), 28, "DejaVuSans-Bold", 38),
            Block(
                "text",
                (
                    "- two warm sweaters",
                    "- rain coat and boots",
                    "- soap, towel, comb",
                    "- map of the island",
                ),
                104,
                "DejaVuSans",
                26,
                step=40,
            ),
            Block(
                "text",
                (
                    "- bread and 6 apples",
                    "- 1 bottle of water",
                    "- torch with batteries",
                    "- the red notebook",
                ),
                296,
                "DejaVuSans",
                26,
                step=40,
            ),
        ),
    ),
    Sheet(
        "notice",
        (
            Block("title", ("NO WATER TODAY",), 40, "LiberationSans-Bold", 40, centred=True),
            Block(
                "text",
                (
                    "The main pipe in Station Road",
                    "is being repaired. The water",
                    "is off from 8 am to 4 pm.",
                ),
                126,
                "LiberationSans-Regular",
                28,
                step=42,
                centred=True,
            ),
            Block(
                "text",
                ("Fresh water is handed out", "at the town hall, door B."),
                286,
                "LiberationSans-Regular",
                28,
                step=42,
                centred=True,
            ),
            Block("text", ("Questions? Call 0161 555 0142",), 410, "LiberationSans-Bold", 26, centred=True),
        ),
        paper=(255, 246, 214),
        rules=((20, 20, 491, 20), (20, 491, 491, 491), (20, 20, 20, 491), (491, 20, 491, 491)),
    ),
    Sheet(
        "card",
        (
            Block("image", (), 0),
            Block("title", ("Anna Keller",), 230, "DejaVuSerif-Bold", 38, 40),
            Block("text", ("Piano repair and tuning",), 286, "DejaVuSerif", 26, 40),
            Block(
                "text",
                ("48 Harbour Street", "Bristol BS1 6QF", "anna@keller-pianos.example"),
                346,
                "DejaVuSerif",
                24,
                40,
                40,
            ),
        ),
        image=(40, 40, 240, 190),
    ),
    Sheet(
        "timetable",
        (
            Block("title", ("Bus 27 to the harbour",), 30, "LiberationSans-Bold", 36, 36),
            Block(
                "table",
                (
                    _row("Departs", "Stop", "Days", at=_BUS),
                    _row("06:15", "Market Square", "daily", at=_BUS),
                    _row("06:40", "Old Bridge", "daily", at=_BUS),
                    _row("07:05", "Hospital", "Mon-Fri", at=_BUS),
                    _row("07:30", "School", "Mon-Fri", at=_BUS),
                    _row("08:10", "Museum", "Sat-Sun", at=_BUS),
                    _row("09:25", "Zoo", "Sun", at=_BUS),
                ),
                99,
                "LiberationSans-Regular",
                26,
                step=46,
                head="LiberationSans-Bold",
                grid=((36, 152, 356, 476), tuple(range(90, 413, 46))),
            ),
            Block("text", ("Single fare 2.80, day ticket 6.50",), 440, "LiberationSans-Regular", 26, 36),
        ),
    ),
    Sheet(
        "prose",
        (
            Block("title", ("The old mill",), 24, "DejaVuSerif-Bold", 34),
            Block(
                "text",
                (
                    "The mill stood at the end of the",
                    "valley, where the river turns",
                    "south. In dry summers its wheel",
                    "did not move for weeks.",
                ),
                88,
                "DejaVuSerif",
                24,
                step=36,
            ),
            Block(
                "text",
                (
                    "Swallows built their nests in",
                    "the open windows. Then the rain",
                    "came, the gates were lifted, and",
                    "the whole house began to hum.",
                ),
                252,
                "DejaVuSerif",
                24,
                step=36,
            ),
            Block("text", ("It was built in 1786.",), 416, "DejaVuSerif", 24),
        ),
        noise=6,
        ink=(35, 35, 35),
        paper=(244, 244, 244),
    ),
    Sheet(
        "form",
        (
            Block("title", ("LIBRARY CARD",), 28, "DejaVuSans-Bold", 36, 32),
            Block(
                "text",
                (
                    _row("Name", "James O'Neill", at=_FORM),
                    _row("Number", "A-4471/09", at=_FORM),
                    _row("Born", "21.11.1978", at=_FORM),
                ),
                104,
                "DejaVuSans",
                26,
                32,
                48,
            ),
            Block(
                "text",
                (
                    _row("Issued", "02.01.2023", at=_FORM),
                    _row("Valid to", "31.12.2026", at=_FORM),
                ),
                264,
                "DejaVuSans",
                26,
                32,
                48,
            ),
            Block(
                "text",
                ("Please return this card to any", "branch if found. Fee: 5 EUR"),
                386,
                "DejaVuSans",
                22,
                32,
                36,
            ),
        ),
        paper=(236, 243, 250),
        rules=((32, 84, 480, 84), (32, 368, 480, 368)),
    ),
)
