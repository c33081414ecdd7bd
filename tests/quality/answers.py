"""Answers that ended in a loop, and answers of real pages that were cut at the token limit, made by rules.

Each entry is a function of a seeded generator that gives the next piece of its answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable

PROSE = (
    "The ferry leaves the old harbour at seven in the morning and again at noon. Tickets are sold on board; "
    "children under six travel free. In winter the second crossing is dropped when the wind is strong, and a "
    "notice on the gate says so. Bicycles are carried on the lower deck, as many as twelve at a time. "
)
RECEIPT = ("1 x Coffee 2.50\n", "2 x Tea 2.50\n", "1 x Water still 2.50\n", "Cake of the day 2.50\n")
PARAGRAPHS = (
    "The tenant shall keep the premises clean and shall not store goods in the stairs or in the yard. ",
    "The landlord may enter the rooms after notice of one day, in case of danger at any time of day. ",
    "Rent is due on the third working day of a month and is paid to the account that is named above. ",
)
CLAUSES = ("本合同自双方签字之日起生效。", "双方应当遵守国家有关法律。", "未尽事宜由双方协商解决。")
WORDS = [
    "anchor", "basket", "candle", "dragon", "engine", "feather", "garden", "hammer", "island", "jacket", "kettle",
    "ladder", "marble", "needle", "orange", "pencil", "quartz", "ribbon", "saddle", "tunnel", "urchin", "velvet",
    "walnut", "yellow", "zipper", "bottle", "copper", "donkey", "embers", "falcon", "goblet", "helmet", "insect",
    "jungle", "kitten", "lantern", "magnet", "napkin", "oyster", "parrot", "quiver", "rocket", "silver", "turtle",
    "ulcer", "violin", "window",
]
HANZI = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜金生丽水玉出昆冈剑"

Piece = Callable[[random.Random, int], str]


def _money(rng: random.Random) -> str:
    return f"{rng.randrange(1, 900)}.{rng.randrange(100):02d}"


def _name(rng: random.Random, count: int = 2) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def _any(*units: str) -> Piece:
    return lambda rng, number: rng.choice(units)


LOOPS: dict[str, Piece] = {
    # One unit.
    "a phrase": lambda rng, number: "and so on, ",
    "a digit": lambda rng, number: "0",
    "empty cells": lambda rng, number: "<td></td>",
    "a paragraph": lambda rng, number: PARAGRAPHS[0] + "\n",
    "empty pipe cells": lambda rng, number: "| ",
    # Growing units.
    "growing digits": lambda rng, number: "-" + "3" * (number % 40 + 1) + " ",
    "growing digits on lines": lambda rng, number: "0." + "3" * (number + 1) + "\n",
    "growing pairs": lambda rng, number: "12" * (number % 30 + 1) + " ",
    "growing words": lambda rng, number: "very " * (number % 30 + 1) + "good ",
    # Two to four units in any order.
    "zeros and dashes": _any("0 ", "00 ", "- "),
    "two digits": _any("1 ", "7 "),
    "four words": _any("yes ", "no ", "none ", "total "),
    "receipt lines": _any(*RECEIPT),
    "receipt lines without space": _any("Tee 2,50;", "Saft 2,50;", "Brot 2,50;"),
    "paragraphs": _any(*PARAGRAPHS),
    "two pipe rows": _any("| Total | 0.00 | - |\n", "| Sum | 0.00 | - |\n"),
    "cells": _any("<td></td>", "<td>-</td>", '<td colspan="2"></td>'),
    "cells with text": _any("<td>n/a</td>", "<td>0</td>", "</tr><tr><td>none</td>"),
    "marks": _any("- ", ". ", "* "),
    "fractions": _any(r"\frac{a}{b} + ", r"\sqrt{a} - ", r"\frac{b}{a} = "),
    "clauses": _any(*CLAUSES),
    "clauses of kana": _any("ありがとうございます。", "よろしくお願いします。"),
    "boxes' labels": _any("image\n", "text\n"),
    "code": _any("    return None\n", "    pass\n", "else:\n"),
    # Only a counter changes.
    "counted sentences": lambda rng, number: f"Figure {number}: the left part of the bar is the larger one. ",
    "counted numbers": lambda rng, number: f"{number} ",
    "counted by fifteen": lambda rng, number: f"{number * 15}, ",
    "counted down": lambda rng, number: f"No. {90_000 - number} is void\n",
    "counted pipe rows": lambda rng, number: f"| {number} | Paper A4 | 12.50 | 1 | 12.50 |\n",
    "counted bare pipe rows": lambda rng, number: f"| {number} | | | |\n",
    "counted HTML rows": lambda rng, number: f"<tr><td>{number}</td><td>Paper</td><td>12.50</td></tr>",
    "counted bare HTML rows": lambda rng, number: f"<tr><td>{number}</td><td></td></tr>",
    "two counters": lambda rng, number: f"<tr><td>{number}</td><td>2024-{number + 100}</td><td>x</td></tr>\n",
    "counted list": lambda rng, number: f"{number}. The item is not legible.\n",
    "counted short list": lambda rng, number: f"{number}. \n",
    "counted headings": lambda rng, number: f"## 4.{number} Results\n\n",
    "counted LaTeX": lambda rng, number: rf"x_{{{number}}} + ",
    "counted LaTeX rows": lambda rng, number: rf"{number} & \alpha & \beta \\ ",
    "counted clauses": lambda rng, number: f"第{number}条 {CLAUSES[0]}",
    "counted by numerals": lambda rng, number: f"第{'一二三四五六七八九'[number % 9]}条{CLAUSES[0]}",
    "counted receipt lines": lambda rng, number: f"{number}. {rng.choice(RECEIPT)}",
    "counted code": lambda rng, number: f"case {number}: return {number};\n",
    "counted codes": lambda rng, number: f"A{number:04d} ",
    # Nearly the same.
    "sentences with few other numbers": lambda rng, number: (
        f"In the sample numbered {rng.randrange(10**6)} the left part of the bar is the larger, and so is the right. "
    ),
    "a phrase with a slip": lambda rng, number: "the end of the page " + ("oh " if number % 40 == 9 else ""),
}

PAGES: dict[str, Piece] = {
    "words": lambda rng, number: rng.choice(WORDS) + " ",
    "table of figures": lambda rng, number: " | ".join(_money(rng) for _ in range(6)) + "\n",
    "table of small figures": lambda rng, number: " | ".join(str(rng.randrange(100)) for _ in range(6)) + "\n",
    "table of digits": lambda rng, number: " ".join(str(rng.randrange(10)) for _ in range(12)) + "\n",
    "pipe table of digits": lambda rng, number: "| " + " | ".join(str(rng.randrange(10)) for _ in range(9)) + " |\n",
    "HTML table of figures": lambda rng, number: (
        "<tr>" + "".join(f"<td>{rng.randrange(1000)}</td>" for _ in range(5)) + "</tr>"
    ),
    "HTML table of digits": lambda rng, number: (
        '<tr style="x">' + "".join(f'<td align="right">{rng.randrange(10)}</td>' for _ in range(5)) + "</tr>"
    ),
    "units": lambda rng, number: (
        f"{rng.randrange(500)} {rng.choice(['kg', 'cm', 'mm', 'V', 'A', 'W', 'Hz', 'K', 'Pa', 'mol'])} "
    ),
    "table of yes and no": lambda rng, number: (
        f"| {_name(rng)} {number} | " + " | ".join(rng.choice(["yes", "no"]) for _ in range(4)) + " |\n"
    ),
    "sparse table": lambda rng, number: (
        f"| {_name(rng, 1)} | " + " | ".join(rng.choice(["", "", "", _money(rng)]) for _ in range(6)) + " |\n"
    ),
    "mostly zeros": lambda rng, number: (
        f"{_name(rng)} " + " ".join(rng.choice(["0", "0", "0", "-", _money(rng)]) for _ in range(6)) + "\n"
    ),
    "list of items": lambda rng, number: f"- {_name(rng, 3)}\n",
    "numbered list": lambda rng, number: f"{number}. {_name(rng, 2)}\n",
    "contents": lambda rng, number: f"{number // 9}.{number % 9} {_name(rng)} {'.' * 40} {number * 3}\n",
    "contents with spaced dots": lambda rng, number: f"{_name(rng, 3)} {'. ' * 30}{number + rng.randrange(4)}\n",
    "price list": lambda rng, number: f"Nr. {number} {_name(rng)}, per piece, EUR {_money(rng)}\n",
    "price list in pipes": lambda rng, number: f"| {number} | {_name(rng)} | 1 | pc. | {_money(rng)} | EUR |\n",
    "price list in HTML": lambda rng, number: (
        f"<tr><td>{number}</td><td>{_name(rng)}</td><td>EUR</td><td>{_money(rng)}</td></tr>"
    ),
    "stock list": lambda rng, number: f"SKU-{rng.randrange(10**5)} | {rng.randrange(90)} pcs | in stock | shelf B\n",
    "bank statement": lambda rng, number: (
        f"{rng.randrange(1, 29):02d}.{rng.randrange(1, 13):02d}.2024 Card payment {_money(rng)} EUR\n"
    ),
    "transfers": lambda rng, number: f"Transfer from savings account {_money(rng)}\n",
    "timetable": lambda rng, number: (
        " ".join(f"{rng.randrange(5, 24):02d}:{rng.randrange(60):02d}" for _ in range(8)) + "\n"
    ),
    "log": lambda rng, number: f"test_{_name(rng, 1)}_{rng.randrange(999)} PASSED in {rng.random():.3f} s\n",
    "form with headers": lambda rng, number: (
        f"Municipal office of the county, department of records\nForm 12 b, page {number}\nName: {_name(rng)}\n"
        f"Date of birth: {rng.randrange(1, 29)}.{rng.randrange(1, 13)}.19{rng.randrange(10, 99)}\n"
        f"Occupation: {_name(rng, 1)}\nSignature: ____________\n\n"
    ),
    "boilerplate with a name": lambda rng, number: (
        f"We hereby certify that {_name(rng, 2)} {_name(rng, 1)} took part in the course on safety at work held in the "
        "town hall and has passed the final examination of the chamber with success.\n\n"
    ),
    "page headers": lambda rng, number: (
        f"Annual report of the company, page {number}\n\n" + " ".join(rng.choice(WORDS) for _ in range(40)) + "\n\n"
    ),
    "code": lambda rng, number: (
        f"    if {rng.choice(WORDS)}.{rng.choice(WORDS)}({rng.choice(WORDS)}) is None:\n"
        f"        return self.{rng.choice(WORDS)}[{rng.randrange(20)}]\n"
    ),
    "records in JSON": lambda rng, number: (
        f'{{"id": {number}, "name": "{_name(rng)}", "age": {rng.randrange(18, 90)}, "city": "{_name(rng, 1)}"}},\n'
    ),
    "points in JSON": lambda rng, number: f'{{"x": {rng.randrange(640)}, "y": {rng.randrange(480)}}}, ',
    "small points in JSON": lambda rng, number: f'{{"x": {rng.randrange(10)}, "y": {rng.randrange(10)}}}, ',
    "hexadecimal": lambda rng, number: " ".join(f"{rng.randrange(256):02x}" for _ in range(16)) + "\n",
    "enumerated code": lambda rng, number: f'case {number}: return "{_name(rng)}";\n',
    "imports": lambda rng, number: f"from {rng.choice(WORDS)}.{rng.choice(WORDS)} import {rng.choice(WORDS)}\n",
    "LaTeX matrix": lambda rng, number: " & ".join(str(rng.randrange(100)) for _ in range(6)) + r" \\ ",
    "LaTeX cells": lambda rng, number: (
        r" & ".join(rf"\multicolumn{{1}}{{c}}{{{rng.randrange(10)}}}" for _ in range(5)) + r" \\ "
    ),
    "LaTeX": lambda rng, number: (
        rf"\frac{{{rng.choice('abcdefgxyz')}_{{{rng.randrange(9)}}}}}{{{rng.choice('abcdefgxyz')}}} "
        rf"{rng.choice('+-=')} \{rng.choice(['alpha', 'beta', 'gamma', 'sin', 'cos'])} {rng.choice('abcdefgxyz')} "
    ),
    "Chinese": lambda rng, number: rng.choice(HANZI),
    "Chinese list": lambda rng, number: f"{number}、{''.join(rng.choices(HANZI, k=4))}：{rng.randrange(100)}元\n",
    "names and phones": lambda rng, number: f"{_name(rng)}, tel. 030 {rng.randrange(10**7):07d}\n",
    "bibliography": lambda rng, number: (
        f"[{number}] {_name(rng, 2)}, {_name(rng, 4)}, Journal of {_name(rng, 1)}, vol. {rng.randrange(90)}, "
        f"pp. {rng.randrange(900)}-{rng.randrange(900)}, {rng.randrange(1950, 2024)}.\n"
    ),
    "DNA": lambda rng, number: "".join(rng.choices("ACGT", k=10)) + " ",
}


FEW_UNITS: dict[str, Piece] = {
    "answer key": lambda rng, number: f"{number}. {rng.choice('ABCD')}\n",
    "matrix of bits": lambda rng, number: " ".join(rng.choices("01", k=16)) + "\n",
    "calendar": lambda rng, number: f"{number % 31 + 1} ",
}
"""Real pages that cannot be told from a loop: a counter, or few units in any order, and nothing else."""


def answer(piece: Piece, length: int, seed: int = 0, start: str = PROSE) -> str:
    """*start*, and pieces until there are *length* characters more, cut there."""
    rng = random.Random(seed)
    parts = [start]
    size = number = 0
    while size < length:
        number += 1
        parts.append(piece(rng, number))
        size += len(parts[-1])
    return "".join(parts)[: len(start) + length]
