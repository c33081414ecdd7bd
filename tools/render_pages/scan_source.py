"""The truth of the scan in `documents`, typed from its image.

The page is the opening of chapter III of Mark Twain, Adventures of Huckleberry Finn (first edition of 1885,
drawing by E. W. Kemble). The scan is tests/resources/c03-29.pdf of ocrmypdf 17.13.0, which its REUSE.toml
declares to be in the public domain. It is shipped in its own resolution (770x995).

Words that the print divides at a line's end are joined, quotation marks are plain, and the spaces that old
printers set before ; and ? are left out. Boxes are not given: the first paragraph runs round the drawing and
has no rectangle of its own.
"""

from __future__ import annotations

from typing import Any

_TITLE = "Chapter III."
_TEXT = (
    "MISS WATSON'S LECTURE.",
    "WELL, I got a good going-over in the morning, from old Miss Watson, on account of my clothes; "
    "but the widow she didn't scold, but only cleaned off the grease and clay and looked so sorry "
    "that I thought I would behave a while if I could. Then Miss Watson she took me in the closet and "
    "prayed, but nothing come of it. She told me to pray every day, and whatever I asked for I would "
    "get it. But it warn't so. I tried it. Once I got a fish-line, but no hooks. It warn't any good "
    "to me without hooks. I tried for the hooks three or four times, but somehow I couldn't make it "
    "work. By-and-by, one day, I asked Miss Watson to try for me, but she said I was a fool. She "
    "never told me why, and I couldn't make it out no way.",
    "I set down, one time, back in the woods, and had a long think about it. I says to myself, if a "
    "body can get anything they pray for, why don't Deacon Winn get back the money he lost on pork? "
    "Why can't the widow get back her silver snuff-box that was stole? Why can't Miss Watson fat up? "
    "No, says I to myself, there ain't nothing in it. I went and told the widow about it, and she "
    'said the thing a body could get by praying for it was "spiritual gifts." This was too many for '
    "me, but she told me what she meant\u2014I must help other people, and do everything I could for "
    "other people, and look out for them all the time, and never think about myself. This was "
    "including Miss Watson,",
)

SCAN: dict[str, Any] = {
    "name": "scan",
    "file": "scan.jpg",
    "size": [770, 995],
    "license": "public-domain",
    "free": "\n\n".join((_TITLE, *_TEXT)),
    "markdown": "\n\n".join((f"# {_TITLE}", *_TEXT)),
    "blocks": None,
}
"""Its entry in pages.json."""
