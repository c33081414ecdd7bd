"""The text of a page: prose, names, numbers, dates, prices, addresses, lists, code, random strings.

Words and sentences are split by a hash: training never sees a held-out word (5 letters or more) nor a sentence
that holds one; the held-out set is made of them.
"""

# ruff: noqa: SIM905 - word lists are easier to read and to extend as text

from __future__ import annotations

import gzip
import random
import re
import string
import zlib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ALPHABET", "EXTRA", "Source", "held_out"]

EXTRA = "£€°éèüöäßñçÉÈÜÖÄÑÇ•§"
"""Characters beyond printable ASCII that the reader knows."""
ALPHABET = "".join(chr(code) for code in range(32, 127)) + EXTRA
_KNOWN = frozenset(ALPHABET)

_COMMON = (
    "the of and to in is was for on with as by at from his her they we this that which one all there when would "
    "can more if no out up into has some could them other than then now only its over also after first made "
    "water house street garden table letter window paper river winter summer doctor school market church "
    "bread morning evening music bridge island engine number people station silver yellow green white black "
    "small large quick heavy early quiet broken closed opened carried walked began found brought stood"
).split()
_FIRST = (
    "Anna James Mary John Peter Ruth Henry Alice George Clara Edward Nina Samuel Laura Victor Emma Oscar Julia "
    "Walter Grace Hugo Irene Felix Daisy Martin Olive Leo Rosa Simon Vera Paul Ida Frank Nora Karl Elsa Zoe"
).split()
_LAST = (
    "Smith Palmer Wood Keller Müller Brown O'Brien Clarke Fischer Jones Garcia Novak Hughes Baker Lindqvist "
    "Fraser Kowalski Turner Rossi Mason Young Webb Petersen Quinn Vance Dubois Xu Ito Zimmer Jackson"
).split()
_STREET = "Street Road Lane Avenue Square Hill Close Court Way Row Terrace Park Drive Quay Gate Rise".split()
_TOWN = (
    "London Leeds York Bath Dover Exeter Oxford Ripon Wells Hull Derby Truro Ely Cardiff Perth Dublin Boston "
    "Austin Denver Salem Geneva Vienna Lyon Porto Turin Köln Zürich Malmö Oslo Bergen Ghent Delft Krakow"
).split()
_MONTH = "January February March April May June July August September October November December".split()
_DAY = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_LABEL = (
    "Name Date Total Subtotal Tax VAT Price Number Order Invoice Ref Customer Address Phone Email Born Issued "
    "Valid Amount Balance Due Paid Status Type Size Weight Colour Room Seat Gate Class From To Time Open Closed "
    "Qty Item Unit Code Page Account Member Table Guests Tip Cash Card Change Discount Fee Rate"
).split()
_GOODS = (
    "Coffee Tea Milk Bread Soup Salad Apples Cheese Butter Sugar Rice Pasta Juice Water Cake Eggs Fish Ham Honey "
    "Onions Pears Paint Nails Rope Lamp Soap Towel Paper Pencil Stamps Ticket Scarf Gloves Socks Bolts Cable"
).split()
_CODE = "if for while return def class import print self len range int str None True False x y i n foo bar".split()


def held_out(text: str, one_in: int = 25) -> bool:
    """Whether *text* (case ignored) belongs to the held-out split."""
    return zlib.crc32(text.lower().encode()) % one_in == 0


def _held_word(word: str) -> bool:
    return len(word) >= 5 and held_out(word)


@dataclass
class Source:
    """The words and sentences of one split, and generators over them. All randomness comes from *rng* arguments."""

    words: list[str]
    sentences: list[str]
    plain: bool = False
    """Prose is whole sentences only, none shuffled or made of random words."""

    @classmethod
    def load(cls, folder: Path | None, *, held: bool = False, plain: bool = False) -> Source:
        """Read words.txt.gz and sentences.txt.gz of *folder* (None: a few words in this file, for tests)."""
        if folder is None:
            some = random.Random(7)
            words = list(_COMMON)
            sentences = [" ".join(some.choices(words, k=some.randint(4, 10))) for _ in range(400)]
            return cls(words, sentences, plain)
        words, sentences = (
            gzip.decompress((folder / f"{name}.txt.gz").read_bytes()).decode().split("\n")
            for name in ("words", "sentences")
        )
        words = [word for word in words if _held_word(word) == held]
        sentences = [
            text
            for text in sentences
            if any(map(_held_word, re.findall(r"[A-Za-z]+", text))) == held and _KNOWN.issuperset(text)
        ]
        return cls(words, sentences, plain)

    # one-liners

    def word(self, rng: random.Random) -> str:
        """A word of the list, sometimes capitalised or in capitals."""
        text = rng.choice(self.words)
        dice = rng.random()
        return text if dice < 0.75 else text.capitalize() if dice < 0.92 else text.upper()

    def name(self, rng: random.Random) -> str:
        """A person."""
        first, last = rng.choice(_FIRST), rng.choice(_LAST)
        dice = rng.random()
        if dice < 0.2:
            return f"{rng.choice(('Mr', 'Mrs', 'Dr.', 'Ms', 'Prof.'))} {last}"
        if dice < 0.35:
            return f"{first[0]}. {last}"
        return f"{first} {last if rng.random() < 0.7 else rng.choice(self.words).capitalize()}"

    def number(self, rng: random.Random) -> str:
        """A number, a price, a quantity."""
        size = 10 ** rng.randint(1, 5)
        value = rng.randrange(size)
        dice = rng.random()
        if dice < 0.3:
            return f"{value}"
        if dice < 0.6:
            return f"{rng.choice(('', '', '', '$', '£', '€'))}{value / 100:.2f}"
        if dice < 0.7:
            return f"{value:,}"
        if dice < 0.8:
            return f"{rng.randint(1, 100)}%"
        if dice < 0.86:
            return f"{rng.randint(-30, 40)}°C"
        return f"{value} {rng.choice(('kg', 'km', 'EUR', 'USD', 'cm', 'pcs', 'ml', 'lb', 'GBP', 'mm'))}"

    def date(self, rng: random.Random) -> str:
        """A date or a time of day."""
        day, month, year = rng.randint(1, 31), rng.randint(1, 12), rng.randint(1700, 2039)
        return rng.choice(
            (
                f"{day} {_MONTH[month - 1]} {year}",
                f"{_MONTH[month - 1]} {day}, {year}",
                f"{day:02}.{month:02}.{year}",
                f"{year}-{month:02}-{day:02}",
                f"{day:02}/{month:02}/{year % 100:02}",
                f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}",
                f"{rng.choice(_DAY)}, {day} {_MONTH[month - 1][:3]}",
                f"{rng.randint(1, 12)}:{rng.randint(0, 59):02} {rng.choice(('am', 'pm'))}",
                f"{rng.choice(_DAY)[:3]}-{rng.choice(_DAY)[:3]}",
            )
        )

    def place(self, rng: random.Random) -> str:
        """A line of an address."""
        road = f"{rng.choice(self.words).capitalize()} {rng.choice(_STREET)}"
        letters = string.ascii_uppercase
        dice = rng.random()
        if dice < 0.5:
            return f"{rng.randint(1, 299)} {road}"
        if dice < 0.7:
            post = f"{rng.choice(letters)}{rng.choice(letters)}{rng.randint(1, 29)} {rng.randint(1, 9)}"
            return f"{rng.choice(_TOWN)} {post}{rng.choice(letters)}{rng.choice(letters)}"
        if dice < 0.85:
            return f"{rng.randint(10000, 99999)} {rng.choice(_TOWN)}"
        return f"{rng.randint(1, 99)} {road}, {rng.choice(_TOWN)}"

    def contact(self, rng: random.Random) -> str:
        """A telephone number, an e-mail or web address."""
        dice = rng.random()
        if dice < 0.45:
            groups = [rng.randint(10 ** (k - 1), 10**k - 1) for k in rng.choices((2, 3, 4), k=rng.randint(2, 3))]
            return rng.choice(("0", "+44 ", "(0) ", "Tel. ", "")) + rng.choice((" ", "-")).join(map(str, groups))
        left, right = rng.choice(self.words).lower(), rng.choice(self.words).lower()
        end = rng.choice(("com", "org", "net", "example", "co.uk", "de"))
        if dice < 0.75:
            return f"{left}@{right}.{end}"
        return f"{rng.choice(('www.', 'https://', ''))}{right}.{end}/{left if rng.random() < 0.5 else ''}"

    def symbols(self, rng: random.Random, longest: int = 12) -> str:
        """A random string: letters and digits, or any known character."""
        dice = rng.random()
        pool = (
            ALPHABET[1:] if dice < 0.45 else string.ascii_uppercase + string.digits + "-/" if dice < 0.75
            else string.ascii_letters if dice < 0.9 else string.digits
        )
        return "".join(rng.choices(pool, k=rng.randint(1, longest)))

    def code(self, rng: random.Random) -> str:
        """Something that looks like a line of a program."""
        a, b = rng.choice(_CODE), rng.choice(self.words).lower()
        value = rng.randint(0, 999)
        return rng.choice(
            (
                f"{b} = {a}({value})",
                f"{a} {b}[{rng.randint(0, 9)}]:",
                f"{b}_{a} += {value};",
                f"<{b} id=\"{a}\">",
                f"# {b} {a}",
                f"{{'{b}': {value}}}",
                f"{a}.{b}(*args)",
                f"if ({b} >= {value}) {{",
                f"~/{b}/{a}.py",
                f"{b} | {a} && {b} $HOME",
            )
        )

    def token(self, rng: random.Random) -> str:
        """Anything that can stand inside a line."""
        make = rng.choice((self.number, self.number, self.date, self.name, self.place, self.contact, self.symbols))
        return make(rng)

    # blocks

    def sentence(self, rng: random.Random) -> str:
        """A sentence, or words in random order, so that the model must read and cannot guess."""
        dice = 0.0 if self.plain else rng.random()
        if dice < 0.62:
            text = rng.choice(self.sentences)
            if not self.plain and rng.random() < 0.15:
                text = f"{text} {self.token(rng)}"
        elif dice < 0.75:
            parts = rng.choice(self.sentences).split()
            rng.shuffle(parts)
            text = " ".join(parts)
        elif dice < 0.93:
            text = " ".join(self.word(rng) for _ in range(rng.randint(2, 9)))
        else:
            text = " ".join(self.token(rng) for _ in range(rng.randint(1, 3)))
        if rng.random() < 0.85:
            text = text[:1].upper() + text[1:]
        dice = rng.random()
        if dice < 0.05:
            text = rng.choice(('"{}"', "({})", "'{}'", "[{}]", "{}:", "{} -")).format(text)
        elif dice < 0.9 and text[-1:].isalnum():
            text += rng.choices(".?!,;", (80, 8, 6, 4, 2))[0]
        return text

    def prose(self, rng: random.Random, characters: int) -> list[str]:
        """Words (with their punctuation) of sentences, about *characters* long."""
        words: list[str] = []
        left = characters
        while left > 0:
            text = self.sentence(rng)
            left -= len(text) + 1
            words += text.split()
        return words

    def line(self, rng: random.Random) -> str:
        """One short line of its own."""
        dice = rng.random()
        if dice < 0.7:
            return self.token(rng)
        if dice < 0.8:
            return f"{rng.choice(_LABEL)}: {self.token(rng)}"
        if dice < 0.9:
            return self.code(rng)
        return " ".join(self.symbols(rng, 7) for _ in range(rng.randint(1, 4)))

    def title(self, rng: random.Random) -> str:
        """A heading of one to five words."""
        dice = rng.random()
        if dice < 0.15:
            return self.name(rng)
        if dice < 0.25:
            return f"{rng.choice(_LABEL)} {self.token(rng)}"
        if dice < 0.6:
            text = self._some_words(rng, 4).strip(".,;:")
        else:
            text = " ".join(rng.choice(self.words) for _ in range(rng.randint(1, 3)))
        dice = rng.random()
        capitals = text.upper() if _KNOWN.issuperset(text.upper()) else text
        return capitals if dice < 0.3 else text.title() if dice < 0.55 else text[:1].upper() + text[1:]

    def cells(self, rng: random.Random, columns: int, kind: int) -> list[str]:
        """The cells of a row of a bill (0), a timetable (1), a form (2) or anything (3)."""
        goods = rng.choice(_GOODS) if rng.random() < 0.5 else rng.choice(self.words)
        if kind == 0:
            first = rng.choice((f"{rng.randint(1, 20)} {goods}", goods.capitalize(), rng.choice(_LABEL).upper()))
            row = [first, f"{rng.randrange(100000) / 100:.2f}"]
        elif kind == 1:
            row = [f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}", goods.capitalize(), self.date(rng)]
            row[2] = rng.choice(("daily", row[2][:7], f"{rng.randint(1, 29)}"))
        elif kind == 2:
            more = rng.choice(("to", "from", "no.", "by", "name", "of birth")) if rng.random() < 0.25 else ""
            row = [f"{rng.choice(_LABEL)} {more}".strip(), self.token(rng), self.number(rng)]
        else:
            row = [self.word(rng), self.token(rng), self.number(rng)]
        row = row[:columns]
        while len(row) < columns:
            row.append(self.number(rng))
        return row

    def phrase(self, rng: random.Random) -> str:
        """Words with blanks between them, that belong together: a name, a place, some words."""
        dice = rng.random()
        if dice < 0.25:
            return self.name(rng)
        if dice < 0.4:
            return f"{rng.choice(self.words).capitalize()} {rng.choice(_STREET)}"
        if dice < 0.7:
            return f"{rng.choice(self.words).capitalize()} {rng.choice(self.words)}"
        return self._some_words(rng, 3)

    def heads(self, rng: random.Random, columns: int) -> list[str]:
        """The head of a table: labels, words."""
        made = [
            rng.choice(_LABEL) if rng.random() < 0.6 else rng.choice(self.words).capitalize() for _ in range(columns)
        ]
        made = [f"{text} {rng.choice(_LABEL).lower()}" if rng.random() < 0.12 else text for text in made]
        return [text.upper() for text in made] if rng.random() < 0.15 else made

    def item(self, rng: random.Random) -> str:
        """What follows the mark of a list's item."""
        text = self._some_words(rng, 5)
        dice = rng.random()
        return text if dice < 0.6 else f"{rng.randint(1, 90)} {text}" if dice < 0.75 else self.token(rng)

    def _some_words(self, rng: random.Random, most: int) -> str:
        """One to *most* words of a sentence."""
        words = rng.choice(self.sentences).split()
        start = rng.randrange(len(words))
        return " ".join(words[start : start + rng.randint(1, most)])
