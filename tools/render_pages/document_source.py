"""The source of the embedded dataset `documents`: five typst pages and the truth of one scan.

Texts are made up for this project. The scan's truth was typed from its image.
"""

from __future__ import annotations

from document_blocks import (
    Caption,
    Code,
    Document,
    Equation,
    Figure,
    Heading,
    Items,
    Paragraph,
    Table,
    Title,
)

_ITALIC = 'style: "italic"'

_BARS = """#box(width: 190pt, height: 105pt, {
  for (i, h) in (30, 52, 41, 78, 90, 66).enumerate() {
    place(left + bottom, dx: 12pt + i * 30pt,
      rect(width: 20pt, height: h * 1pt, fill: rgb(60, 90 + i * 18, 160)))
  }
  place(left + bottom, line(start: (0pt, 0pt), end: (190pt, 0pt), stroke: 1.2pt))
  place(left + bottom, line(start: (0pt, 0pt), end: (0pt, -105pt), stroke: 1.2pt))
})"""

_CURVE = """#box(width: 260pt, height: 110pt, {
  place(left + bottom, line(end: (260pt, 0pt), stroke: 1pt))
  place(left + bottom, line(end: (0pt, -108pt), stroke: 1pt))
  let point(k) = (k * 5pt, 110pt - calc.exp(-k / 16) * 100pt)
  place(left + top, curve(stroke: 2pt + rgb(180, 40, 40), curve.move(point(0)),
    ..range(1, 51).map(k => curve.line(point(k)))))
})"""

DOCUMENTS: tuple[Document, ...] = (
    Document(
        "paper",
        (
            Title("Why Old Pendulum Clocks Drift"),
            Paragraph("Clara Weston and Paul Imhof, Museum of Town Clocks, 2023", style=_ITALIC),
            Paragraph(
                "Abstract. We timed eleven pendulum clocks over one year in an unheated tower. Most "
                "of the drift follows the temperature of the room; the rest follows the air pressure. "
                "A simple weight of iron under the bob removes two thirds of the error at no cost."
            ),
        ),
        (
            Heading("1 Introduction"),
            Paragraph(
                "A clock that loses ten seconds a day is an hour wrong after a year. Keepers of tower "
                "clocks knew this long before anybody could measure it well: they set the hands at "
                "noon and wrote the error into a book. Such books are the data of this paper."
            ),
            Paragraph(
                "We ask two questions. How much of the drift can be explained by the weather alone? "
                "And which cheap change to the clock helps most?"
            ),
            Heading("2 Theory"),
            Paragraph(
                "For small swings the period of a pendulum depends on its length and on gravity alone:"
            ),
            Equation("T = 2 pi sqrt(l / g)", r"T = 2 \pi \sqrt{\frac{l}{g}}"),
            Paragraph(
                "A rod of steel grows by twelve millionths of its length for each degree. A warm day "
                "therefore makes the clock slow by about half a second."
            ),
            Heading("3 Method"),
            Items(
                (
                    "A light gate counted every swing.",
                    "Temperature was read each minute.",
                    "Pressure came from the weather station.",
                    "Nobody touched the clocks for a year.",
                )
            ),
            Paragraph(
                "Each clock hung on its own wall. The gate and its computer cost less than a day's "
                "wage and ran from one battery for four months, so the keepers could change it at the "
                "equinox."
            ),
            Heading("4 Results"),
            Figure(_BARS),
            Caption("Figure 1: Mean drift in six rooms of the tower."),
            Paragraph(
                "The lowest room is the steadiest. Drift grows with height up to the fifth room and "
                "falls again under the roof, where the walls are thicker. The largest error was 14.2 "
                "seconds in one day, in the first week of August."
            ),
            Paragraph(
                "With the iron weight the same clock stayed within 4.9 seconds. We found no effect of "
                "the bell, although it shakes the whole frame."
            ),
            Table(
                (
                    ("Room", "Height", "Summer", "Winter"),
                    ("Cellar", "-3 m", "2.1 s", "1.8 s"),
                    ("Gate", "0 m", "4.4 s", "3.9 s"),
                    ("Store", "6 m", "7.3 s", "5.0 s"),
                    ("Bell loft", "21 m", "14.2 s", "9.6 s"),
                    ("Roof", "27 m", "11.5 s", "8.7 s"),
                ),
                "lrrr",
                "(1.4fr, 1fr, 1fr, 1fr)",
            ),
            Caption("Table 1: Largest error in one day.", of="table"),
            Heading("5 Discussion"),
            Paragraph(
                "Could the keepers themselves be the cause? In the old books the error is smaller on "
                "days when two people signed. We think that a second reader saw the hands from the "
                "front, and that many entries by one reader were taken from the stairs, at an angle."
            ),
            Paragraph("Three things would make the next study better:"),
            Items(
                (
                    "a second tower near the sea;",
                    "a heated room as a control;",
                    "readings of the humidity.",
                )
            ),
            Heading("6 Conclusion"),
            Paragraph(
                "Weather explains 81% of the drift. Keepers who cannot heat the tower should add "
                "weight to the bob before they change anything else."
            ),
            Heading("References"),
            Items(
                (
                    "A. Brandt. Notes of a Clock Keeper. Harrow Press, 1931.",
                    "M. Oduya. Air and Time. Tower Papers 7, 2004.",
                ),
                numbered=True,
            ),
        ),
        columns=2,
        size=10.5,
    ),
    Document(
        "report",
        (),
        (
            Title("Library Report for the Year 2022"),
            Paragraph("Prepared for the Town Council, 17 January 2023", style=_ITALIC),
            Heading("Summary"),
            Paragraph(
                "The three branches lent 84,310 items, six per cent more than in the year before. "
                "Visits grew in every month except July, when the main building was closed for nine "
                "days because of a burst pipe. The cost of a loan fell from 3.12 to 2.87 crowns."
            ),
            Heading("Loans by branch"),
            Table(
                (
                    ("Branch", "Books", "Music", "Games", "Total"),
                    ("Market Street", "38,204", "4,118", "2,960", "45,282"),
                    ("Riverside", "19,077", "1,530", "3,245", "23,852"),
                    ("North Hill", "12,690", "1,074", "1,412", "15,176"),
                    ("All branches", "69,971", "6,722", "7,617", "84,310"),
                ),
                "lrrrr",
                "(2fr, 1fr, 1fr, 1fr, 1fr)",
            ),
            Caption("Table 1: Items lent in 2022.", of="table"),
            Heading("What changed"),
            Items(
                (
                    "Opening hours on Saturday were extended to six in the evening.",
                    "The reading room at Riverside got forty new seats and better lamps.",
                    "Fines for children's books were dropped; returns did not suffer.",
                    "A van now serves the four villages beyond the river every second Tuesday.",
                ),
                numbered=True,
            ),
            Heading("Staff and volunteers"),
            Paragraph(
                "Two members of staff retired in the spring: Joan Petrie, after thirty-one years at "
                "the desk in Market Street, and Samuel Lund, who bound and mended more than nine "
                "thousand books. Their posts were filled in June. Twenty-six volunteers gave 3,480 "
                "hours, most of them for the homework club and for visits to readers who cannot leave "
                "their homes."
            ),
            Heading("Plans"),
            Paragraph(
                "We ask the Council for 12,500 crowns to replace the heating at North Hill before "
                "next winter. The old boiler failed four times; each repair cost more than the last. "
                "A quotation from two firms in the county is attached."
            ),
            Paragraph("Helen Moss, Head Librarian", align="right"),
        ),
        font="Libertinus Serif",
        size=12,
        justify=True,
    ),
    Document(
        "manual",
        (),
        (
            Title("The tidelog Tool"),
            Paragraph(
                "tidelog reads the water level from a gauge in the harbour, writes it to a table and "
                "warns when the level rises faster than usual. It runs on any computer with Python "
                "3.9 or later."
            ),
            Heading("Installation"),
            Code("python -m pip install tidelog\ntidelog --version", "sh"),
            Heading("First steps"),
            Items(
                (
                    "Connect the gauge to a USB port and wait for the green light.",
                    "Run tidelog find to see the name of the port.",
                    "Start a log with tidelog run --port NAME --every 60.",
                ),
                numbered=True,
            ),
            Heading("Use from Python"),
            Code(
                "from tidelog import Gauge\n"
                "\n"
                'with Gauge("/dev/ttyUSB0") as gauge:\n'
                "    for level in gauge.levels(every=60):\n"
                "        if level.metres > 3.5:\n"
                '            print("high water:", level)',
                "python",
            ),
            Paragraph(
                "A level has a time, a height in metres and a flag that says whether the gauge trusts "
                "it. Levels that it does not trust are written to the log but never raise a warning."
            ),
            Heading("Options"),
            Table(
                (
                    ("Option", "Meaning", "Default"),
                    ("--port", "where the gauge is connected", "none"),
                    ("--every", "seconds between two levels", "60"),
                    ("--warn", "metres an hour that raise a warning", "0.4"),
                    ("--out", "file that the log is added to", "tide.csv"),
                ),
                "lll",
                "(auto, 1fr, auto)",
            ),
            Heading("When it does not work", level=3),
            Items(
                (
                    "No port is found: try another cable, many carry power only.",
                    "Levels jump: clean the lens, then run tidelog zero at low water.",
                    "The log stays empty: check that the disk is not full.",
                )
            ),
        ),
        font="Libertinus Serif",
        size=11.5,
    ),
    Document(
        "invoice",
        (),
        (
            Paragraph("Birch & Sons Joinery\n5 Sawmill Road\nKelso TD5 7BQ", align="right"),
            Title("Invoice 2023-0417"),
            Paragraph("Mr and Mrs Adeyemi\n22 Orchard Close\nMelrose TD6 9PL"),
            Paragraph("Date: 28 April 2023\nCustomer: 10482\nPayable by: 28 May 2023"),
            Paragraph(
                "Thank you for your order. For the work at your house between 11 and 26 April we "
                "charge as follows:"
            ),
            Table(
                (
                    ("No.", "Description", "Quantity", "Price", "Amount"),
                    ("1", "Oak shelf, 180 x 30 cm, oiled", "6", "74.50", "447.00"),
                    ("2", "Window seat with two drawers", "1", "920.00", "920.00"),
                    ("3", "Kitchen door, repaired and hung", "2", "135.00", "270.00"),
                    ("4", "Brass hinges, pair", "4", "18.25", "73.00"),
                    ("5", "Labour, hours", "31", "42.00", "1,302.00"),
                    ("6", "Delivery", "1", "55.00", "55.00"),
                    ("", "Sum", "", "", "3,067.00"),
                    ("", "VAT 20%", "", "", "613.40"),
                    ("", "To pay", "", "", "3,680.40"),
                ),
                "clrrr",
                "(auto, 1fr, auto, auto, auto)",
            ),
            Paragraph(
                "Please pay to account 30-11-76 04418829 and give the number of the invoice. A "
                "discount of 2% is granted when we receive the money within ten days."
            ),
            Paragraph("We keep the wood that was left over for you until the end of June."),
            Paragraph("With kind regards,\nThomas Birch"),
        ),
        font="Libertinus Serif",
        size=12,
    ),
    Document(
        "lecture",
        (),
        (
            Title("Lecture 9: Cooling and Decay"),
            Heading("9.1 The law of cooling"),
            Paragraph(
                "A warm body in a cold room loses heat. The larger the difference of the "
                "temperatures, the faster it cools. Written as a formula:"
            ),
            Equation("(d T) / (d t) = -k (T - T_0)", r"\frac{d T}{d t} = - k ( T - T_{0} )"),
            Paragraph(
                "Here k is a positive number that depends on the body and its surface. The solution is an "
                "exponential function:"
            ),
            Equation("T(t) = T_0 + (T_1 - T_0) e^(-k t)", r"T(t) = T_{0} + (T_{1} - T_{0}) e^{- k t}"),
            Figure(_CURVE),
            Caption("Figure 9.1: A cup of tea cools down."),
            Heading("9.2 Half-life"),
            Paragraph(
                "After which time is half of the difference gone? We set the exponential to one half "
                "and solve for the time. The result does not depend on where we start:"
            ),
            Equation("t_(1 slash 2) = (ln 2) / k", r"t_{1/2} = \frac{\ln 2}{k}"),
            Heading("9.3 A sum that we need next week"),
            Equation(
                "sum_(n=0)^infinity q^n = 1 / (1 - q), quad |q| < 1",
                r"\sum_{n=0}^{\infty} q^{n} = \frac{1}{1 - q}, \quad |q| < 1",
            ),
            Heading("Exercises"),
            Items(
                (
                    "Tea at 90 degrees stands in a room of 20 degrees. After five minutes it has 70 "
                    "degrees. When has it 40 degrees?",
                    "Show that the difference of two solutions tends to zero.",
                    "Measure it at home and draw the curve on paper with a logarithmic scale.",
                ),
                numbered=True,
            ),
        ),
        font="New Computer Modern",
        size=11.5,
        justify=True,
    ),
)
