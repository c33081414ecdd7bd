"""Load DeepSeek-OCR: a checkpoint, the one in this package, or random weights."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmprof.config.schema import AUTO, MeasureSettings
from pytest_llmprof.errors import ModelError
from pytest_llmprof.measure.collector import paused_garbage_collector
from pytest_llmprof.models.checkpoint import Checkpoint, check_tensors, digest, open_checkpoint, resolve, silenced
from pytest_llmprof.models.deepseek_ocr import ENGINES, MODES
from pytest_llmprof.models.deepseek_ocr.engines import check_engine, choose_engine
from pytest_llmprof.models.deepseek_ocr.tokenizers import BuiltInTokenizer, FileTokenizer, Tokenizer
from pytest_llmprof.models.device import check_choice, pick_device, pick_dtype

if TYPE_CHECKING:
    import torch

    from pytest_llmprof.config.schema import InferSettings, ModelSettings
    from pytest_llmprof.models.deepseek_ocr.model import DeepseekOcr

EMBEDDED = Path(__file__).with_name("tiny_reader")
"""The checkpoint shipped with this package."""
_UNUSED = "model.vision_model.embeddings.patch_embedding.weight"
"""In every released checkpoint but never used: CLIP's input is SAM's output."""
_WEIGHTS = ("checkpoint", "embedded", "random")


def load(settings: ModelSettings, infer: InferSettings) -> DeepseekOcr:
    """Load the model. Raises `ModelError` with one line for all that the user can fix."""
    check_choice("model.weights", settings.weights, _WEIGHTS)
    check_choice("model.mode", settings.mode, MODES)
    check_choice("infer.engine", infer.engine, (AUTO, *ENGINES))
    engine = choose_engine(settings, infer, MeasureSettings.warmup)[0] if infer.engine == AUTO else infer.engine
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    check_engine(engine, device, dtype, infer.batch_size)

    with paused_garbage_collector():
        import transformers

        from pytest_llmprof.models.deepseek_ocr.model import DeepseekOcr
        from pytest_llmprof.models.deepseek_ocr.random_weights import random_config, random_model

        _ = transformers.UnlimitedOcrForConditionalGeneration  # it imports the module of a name that is asked for

    if settings.weights == "random":
        config = random_config(settings.size)
        tokenizer: Tokenizer = BuiltInTokenizer(config.text_config.vocab_size, config.image_token_id)
        network = random_model(config, settings.seed, device, dtype)
        weights_digest = f"random:{settings.size}:{settings.seed}"
    else:
        checkpoint = open_checkpoint(_directory(settings))
        if checkpoint.tokenizer is None:
            file = checkpoint.directory / "tokenizer.json"
            raise ModelError(f"{file} is missing; prompts cannot be read without it")
        tokenizer = FileTokenizer(checkpoint.tokenizer)
        network = load_weights(checkpoint, device, dtype)
        weights_digest = digest(checkpoint.weights, (checkpoint.directory / "config.json", checkpoint.tokenizer))
    return DeepseekOcr(
        network,
        tokenizer,
        mode=settings.mode,
        engine=engine,
        weights=settings.weights,
        digest=weights_digest,
    )


def _directory(settings: ModelSettings) -> Path:
    if settings.weights == "embedded":
        return EMBEDDED
    if settings.path is None:
        raise ModelError("model.weights=checkpoint needs model.path: a checkpoint's directory or hub id")
    return resolve(settings.path, settings.revision, settings.hub_timeout_s)


def load_weights(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Any:
    """Return transformers' model with all weights of *checkpoint*.

    Raises `ModelError` where a key is missing, unexpected or of another shape: transformers alone would use random
    weights there.
    """
    import torch
    from transformers import UnlimitedOcrForConditionalGeneration

    from pytest_llmprof.models.deepseek_ocr.translate import translate

    where = checkpoint.directory / "config.json"
    config = translate(checkpoint.config, str(where))
    try:
        with silenced():
            model, found = UnlimitedOcrForConditionalGeneration.from_pretrained(
                checkpoint.directory, config=config, dtype=dtype, use_safetensors=True, local_files_only=True,
                ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ModelError(f"{checkpoint.directory}: the weights cannot be loaded: {reason}") from error
    check_tensors(checkpoint.directory, found, found["unexpected_keys"] | _unreported(checkpoint.keys))
    if found["error_msgs"]:
        raise ModelError(f"{checkpoint.directory}: {found['error_msgs'][0]}")
    return model.to(device).eval().requires_grad_(False)


def _unreported(keys: Collection[str]) -> set[str]:
    """Unexpected keys that transformers does not report, because relatives of DeepSeek-OCR have them."""
    hidden = {key for key in keys if "lm_head" in key or "patch_embedding" in key}
    return hidden - {"lm_head.weight", _UNUSED}
