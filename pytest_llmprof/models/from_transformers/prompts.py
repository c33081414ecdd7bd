"""The whole prompt of a page: `infer.prompt`, the family's words for it, and the checkpoint's chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.from_transformers.checkpoint import told

if TYPE_CHECKING:
    from pytest_llmprof.config.schema import FamilySettings

IMAGE = "<image>"
"""In a user's prompt: the place of the image, which the template decides here."""
MARK = "{image}"
"""That place in `model.family.template`."""


def asked(family: FamilySettings, prompt: str) -> tuple[str, str]:
    """(kind, text) of *prompt*, a name or a text. The kind says which truth an answer is compared with.

    Raises `ModelError` where the text places the image anywhere but at its start.
    """
    named = {kind: text for kind in ("markdown", "free") if (text := getattr(family, kind)) is not None}
    if prompt in ("markdown", "free"):
        kind = prompt if prompt in named else next(iter(named))
        return kind, named[kind]
    text = prompt.removeprefix(IMAGE).removeprefix(r"\n").lstrip("\n")
    for mark in (IMAGE, MARK):
        if mark in text:
            raise ModelError(f"infer.prompt has {mark} in it: leave it out, the model's template puts the image")
    return next((kind for kind, own in named.items() if own == text), "other"), text


def whole_prompt(processor: Any, family: FamilySettings, text: str, where: str) -> str:
    """The prompt with one image, as the processor takes it. *where* is the checkpoint, for the message.

    Raises `ModelError` where neither the family nor the checkpoint has a template that works.
    """
    if family.template is not None:
        image = getattr(processor, "image_token", None)
        if not isinstance(image, str):
            raise ModelError(f"{where}: {type(processor).__name__} names no image token, so model.family.template "
                             "cannot be used")  # fmt: skip
        return family.template.replace(MARK, image).replace("{prompt}", text)
    if not getattr(processor, "chat_template", None):
        raise ModelError(
            f"{where} has no chat template: choose the model's own preset, or set model.family.template, such as "
            r"'{image}\n{prompt}'"
        )
    content: list[dict[str, str]] = [{"type": "image"}]
    if text:
        content.append({"type": "text", "text": text})
    messages = [{"role": "user", "content": content}]
    return told(f"{where}: its chat template cannot be used", lambda: str(processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False)))  # fmt: skip
