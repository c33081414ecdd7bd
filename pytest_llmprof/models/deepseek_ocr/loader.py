"""Load DeepSeek-OCR as the settings say: a checkpoint, the one shipped here, or random weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.deepseek_ocr import ENGINES, MODES
from pytest_llmprof.models.deepseek_ocr.checkpoint import Checkpoint, digest, open_checkpoint, resolve
from pytest_llmprof.models.deepseek_ocr.engines import refuse_engine
from pytest_llmprof.models.deepseek_ocr.tokenizers import BuiltInTokenizer, FileTokenizer
from pytest_llmprof.models.device import one_of, pick_device, pick_dtype

if TYPE_CHECKING:
    import torch

    from pytest_llmprof.config.schema import InferSettings, ModelSettings
    from pytest_llmprof.models.deepseek_ocr.model import DeepseekOcr

__all__ = ["EMBEDDED", "load", "load_weights"]

EMBEDDED = Path(__file__).with_name("tiny_reader")
"""The checkpoint shipped with this package."""
_UNUSED = "model.vision_model.embeddings.patch_embedding.weight"
"""In every released checkpoint, and used by nothing: SAM's features take its place."""
_WEIGHTS = ("checkpoint", "embedded", "random")


def load(settings: ModelSettings, infer: InferSettings) -> DeepseekOcr:
    """Load the model. Raises `ModelError` with one line for whatever the user can mend."""
    one_of("model.weights", settings.weights, _WEIGHTS)
    one_of("model.mode", settings.mode, MODES)
    one_of("infer.engine", infer.engine, ENGINES)
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    refuse_engine(infer.engine, device, dtype, infer.batch_size)
    if settings.weights == "random":
        return _random(settings, infer, device, dtype)
    if settings.weights == "embedded":
        if not EMBEDDED.is_dir():
            raise ModelError(
                "model.weights=embedded: this version ships no trained checkpoint; use model.weights=random "
                "model.size=tiny, or model.weights=checkpoint with model.path"
            )
        directory = EMBEDDED
    elif settings.path is None:
        raise ModelError("model.weights=checkpoint needs model.path: a checkpoint's directory or hub id")
    else:
        directory = resolve(settings.path, settings.revision)
    return _checkpoint(directory, settings, infer, device, dtype)


def load_weights(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Any:
    """Return transformers' model with the weights of *checkpoint*, every key in its place.

    Raises `ModelError` where a key is missing, left over or of another shape: transformers alone would go on
    with random weights there.
    """
    from transformers import UnlimitedOcrForConditionalGeneration

    from pytest_llmprof.models.deepseek_ocr.translate import translate

    where = checkpoint.directory / "config.json"
    config = translate(checkpoint.config, str(where))
    try:
        with _quiet():
            model, found = UnlimitedOcrForConditionalGeneration.from_pretrained(
                checkpoint.directory,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if _out_of_memory(error):
            raise
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ModelError(f"{checkpoint.directory}: the weights cannot be loaded: {reason}") from error
    _refuse(checkpoint.directory, "lacks {} that config.json asks for", found["missing_keys"])
    left_over = found["unexpected_keys"] | _dropped(checkpoint.keys)
    _refuse(checkpoint.directory, "has {} that config.json has no place for", left_over)
    _refuse(
        checkpoint.directory,
        "has {} of another shape than config.json gives",
        [
            f"{name} {list(has)} instead of {list(wants)}"
            for name, has, wants in sorted(found["mismatched_keys"], key=str)
        ],
    )
    if found["error_msgs"]:
        raise ModelError(f"{checkpoint.directory}: {found['error_msgs'][0]}")
    return model.to(device).eval().requires_grad_(False)


def _random(
    settings: ModelSettings, infer: InferSettings, device: torch.device, dtype: torch.dtype
) -> DeepseekOcr:
    from pytest_llmprof.models.deepseek_ocr.model import DeepseekOcr
    from pytest_llmprof.models.deepseek_ocr.random_weights import random_config, random_model

    config = random_config(settings.size)
    return DeepseekOcr(
        random_model(config, settings.seed, device, dtype),
        BuiltInTokenizer(config.text_config.vocab_size, config.image_token_id),
        mode=settings.mode,
        engine=infer.engine,
        weights="random",
        digest=f"random:{settings.size}:{settings.seed}",
    )


def _checkpoint(
    directory: Path, settings: ModelSettings, infer: InferSettings, device: torch.device, dtype: torch.dtype
) -> DeepseekOcr:
    from pytest_llmprof.models.deepseek_ocr.model import DeepseekOcr

    checkpoint = open_checkpoint(directory)
    if checkpoint.tokenizer is None:
        raise ModelError(f"{directory / 'tokenizer.json'} is missing; prompts cannot be read without it")
    tokenizer = FileTokenizer(checkpoint.tokenizer)
    return DeepseekOcr(
        load_weights(checkpoint, device, dtype),
        tokenizer,
        mode=settings.mode,
        engine=infer.engine,
        weights=settings.weights,
        digest=digest(checkpoint.weights),
    )


def _refuse(directory: Path, what: str, keys: Collection[str]) -> None:
    if keys:
        first = ", ".join(sorted(keys)[:3])
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        noun = f"{len(keys)} tensor{'s' if len(keys) > 1 else ''}"
        raise ModelError(f"{directory}: the checkpoint {what.format(noun)}: {first}{more}")


def _dropped(keys: Collection[str]) -> set[str]:
    """Left-over keys that transformers does not report, because DeepSeek-OCR's relatives have them."""
    hidden = {key for key in keys if "lm_head" in key or "patch_embedding" in key}
    return hidden - {"lm_head.weight", _UNUSED}


def _out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bar and its table of odd keys off the terminal: we report those."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
