"""Prompts: their names and texts, and where the image goes in them."""

from __future__ import annotations

from pytest_llmprof.errors import ModelError
from pytest_llmprof.text.escape import whole

IMAGE = "<image>"
"""Where the image's tokens go."""
MARKDOWN = "<image>\n<|grounding|>Convert the document to markdown."
"""Markdown with labelled boxes, as released."""
FREE = "<image>\nFree OCR."
"""Plain text, as released."""
_NAMED = {"markdown": MARKDOWN, "free": FREE}


def prompt_text(prompt: str) -> str:
    r"""Return the full text of *prompt*: a name, or a text. Without an image in it the image comes first.

    A backslash and an n right beside the image are a line break: so do shells and ini files keep the released prompts'
    `<image>\nFree OCR.`. Elsewhere they stay, as in `\nabla`. Raises `ModelError` where the text asks for more than one
    image.
    """
    text = whole(_NAMED.get(prompt, prompt)).replace(rf"{IMAGE}\n", f"{IMAGE}\n").replace(rf"\n{IMAGE}", f"\n{IMAGE}")
    count = text.count(IMAGE)
    if count > 1:
        raise ModelError(
            f"infer.prompt has {IMAGE} {count} times, but a page is one image: "
            "write it once, or leave it out to put the image first"
        )
    return text if count else f"{IMAGE}\n{text}"


def split_prompt(prompt: str) -> tuple[str, str]:
    """Return the texts before and after the image."""
    before, _, after = prompt_text(prompt).partition(IMAGE)
    return before, after


def prompt_kind(prompt: str) -> str:
    """Return "markdown", "free" or "other": the truth that an answer to *prompt* is compared with."""
    text = prompt_text(prompt)
    return next((name for name, named in _NAMED.items() if text == named), "other")
