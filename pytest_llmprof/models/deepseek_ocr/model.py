"""The loaded model: the adapter protocol's methods, each handing on to the module that does the work."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.base import Capabilities, ModelInfo, NoPhases, ParsedOutput, Token
from pytest_llmprof.models.deepseek_ocr import generation, parsing, preprocessing, prompts, vision
from pytest_llmprof.models.deepseek_ocr.engines import Engine, Inputs, make_engine

if TYPE_CHECKING:
    from PIL.Image import Image

    from pytest_llmprof.config.schema import InferSettings
    from pytest_llmprof.models.base import Costs, Phases
    from pytest_llmprof.models.deepseek_ocr.tokenizers import Tokenizer

__all__ = ["DeepseekOcr"]

_PHASES = ("preprocess", "vision", "sam", "clip", "projector", "prefill", "decode")


class DeepseekOcr:
    """DeepSeek-OCR, ready to read pages. Implements `pytest_llmprof.models.base.LoadedModel`."""

    info: ModelInfo
    capabilities: Capabilities

    def __init__(
        self, model: Any, tokenizer: Tokenizer, *, mode: str, engine: str, weights: str, digest: str
    ) -> None:
        """Wrap transformers' *model*, on its device and in its dtype, and the *tokenizer* that goes with it.

        Raises `ModelError` where they don't fit together.
        """
        text = model.config.text_config
        eos, bos = _single(text.eos_token_id), _single(text.bos_token_id)
        if eos is None or bos is None:
            raise ModelError("the model's configuration names no begin or no end token")
        image = tokenizer.token_id(prompts.IMAGE)
        self._image_token: int = model.config.image_token_id if image is None else image
        self._vocabulary: int = text.vocab_size
        if not 0 <= self._image_token < self._vocabulary:
            raise ModelError(
                f"{prompts.IMAGE} has id {self._image_token}, beyond a vocabulary of {self._vocabulary}"
            )
        self._model: Any = model
        self._tokenizer = tokenizer
        self._mode = preprocessing.MODES[mode]
        self._bos, self._eos, self._pad = bos, eos, eos
        self._special = tuple(dict.fromkeys((*parsing.SPECIAL, *map(tokenizer.decode, ([bos], [eos])))))
        self._positions: int = text.max_position_embeddings
        self._device, self._dtype = model.lm_head.weight.device, model.lm_head.weight.dtype
        self._engine = make_engine(engine, model)
        self.capabilities = Capabilities(phases=_PHASES)
        self.info = ModelInfo(
            name="deepseek_ocr",
            weights=weights,
            digest=digest,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            device=str(self._device),
            dtype=str(self._dtype).removeprefix("torch."),
            mode=mode,
            engine=engine,
            details={
                **self._engine.details,
                "layers": text.num_hidden_layers,
                "hidden_size": text.hidden_size,
                "routed_experts": text.n_routed_experts,
                "experts_per_token": text.num_experts_per_tok,
                "vocabulary": text.vocab_size,
                "positions": text.max_position_embeddings,
            },
        )

    def generate(self, images: Sequence[Image], infer: InferSettings, phases: Phases) -> Iterator[Token]:
        """Yield the tokens of a batch of pictures as they come; see `LoadedModel.generate`."""
        return self._generate(self._engine, images, infer, phases)

    @torch.inference_mode()
    def _generate(
        self, engine: Engine, images: Sequence[Image], infer: InferSettings, phases: Phases
    ) -> Iterator[Token]:
        self._loaded()
        if not images:
            return
        limits = generation.Limits(
            max_new_tokens=infer.max_new_tokens,
            positions=self._positions,
            eos=None if infer.ignore_eos else self._eos,
            pad=self._pad,
            ngram=infer.no_repeat_ngram_size,
        )
        with phases.phase("preprocess"):
            inputs = self._inputs(images, infer)
        tokens = engine.generate(inputs, limits, phases)
        del inputs  # the engine drops the pictures once they are read
        yield from tokens

    def encoder(self, images: Sequence[Image]) -> Callable[[], list[torch.Tensor]]:
        """Preprocess and upload the pictures once; return the vision tower on them as a call to be measured alone.

        Each call gives each page's features [image tokens, hidden]. They are transformers' modules called one by
        one, whatever the engine: what an engine makes of them is the phase `vision` of its pages.
        """
        model = self._loaded()
        views = [preprocessing.page_views(image, self._mode) for image in images]
        overviews, crops = self._pixels(views)
        grids = [page.grid for page in views]

        @torch.inference_mode()
        def encode() -> list[torch.Tensor]:
            return vision.page_features(model, overviews, crops, grids, NoPhases())

        return encode

    def prompt(self, infer: InferSettings) -> str:
        """The prompt's full text."""
        return prompts.prompt_text(infer.prompt)

    def prompt_kind(self, infer: InferSettings) -> str:
        """What `infer.prompt` asks for: "markdown", "free" or "other"."""
        return prompts.prompt_kind(infer.prompt)

    def text(self, ids: Sequence[int]) -> str:
        """Decode token ids, special tokens included."""
        return self._tokenizer.decode(ids)

    def parse(self, text: str, size: tuple[int, int]) -> ParsedOutput:
        """Read an answer about a picture of *size* (width, height)."""
        return parsing.parse(text, size, self._special)

    def shape_key(self, image: Image, infer: InferSettings) -> object:
        """The crop grid: with mode and prompt, which are the model's and the run's, it gives every shape."""
        return (self.info.mode, preprocessing.crop_grid(image.size, self._mode), self.prompt(infer))

    def costs(self, images: Sequence[Image], infer: InferSettings, tokens: Sequence[int]) -> Costs:
        """What a batch takes; see `Costed.costs`.

        Runs it once more to count the experts it is routed to, eagerly: a CUDA graph does not tell.
        """
        from pytest_llmprof.models.deepseek_ocr import costs
        from pytest_llmprof.models.deepseek_ocr.engines.reference import ReferenceEngine

        model = self._loaded()
        grids = [preprocessing.crop_grid(image.size, self._mode) for image in images]
        text = sum(map(len, self._prompt_ids(infer)))
        batch = costs.Batch(
            overview=self._mode.size,
            crops=sum(columns * rows for columns, rows in grids if (columns, rows) != (1, 1)),
            prompts=tuple(text + preprocessing.image_tokens(grid, self._mode) for grid in grids),
            steps=max(max(tokens, default=1) - 1, 0),
        )
        routing = costs.count_routing(
            model,
            batch,
            lambda limits, phases: self._generate(ReferenceEngine(model), images, replace(infer, **limits), phases),
        )
        return costs.batch_costs(model.config, batch, self._dtype.itemsize, routing, costs.router_itemsize(model))

    def close(self) -> None:
        """Free the weights; the model cannot run afterwards."""
        self._model = None
        self._engine.close()
        gc.collect()  # the modules refer to one another in circles
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _loaded(self) -> Any:
        if self._model is None:
            raise ModelError("the model was closed")
        return self._model

    def _inputs(self, images: Sequence[Image], infer: InferSettings) -> Inputs:
        views = [preprocessing.page_views(image, self._mode) for image in images]
        overviews, crops = self._pixels(views)
        before, after = self._prompt_ids(infer)
        batch = generation.layout(
            [before + self._picture(page.grid) + after for page in views], device=self._device
        )
        places = tuple(padding + len(before) for padding in batch.padding)
        return Inputs(overviews, crops, tuple(page.grid for page in views), batch, places)

    def _pixels(self, views: Sequence[preprocessing.PageViews]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The views' overviews and crops on the device."""
        tiles = [tile for page in views if page.crops is not None for tile in page.crops]
        return self._upload([page.overview for page in views]), self._upload(tiles) if tiles else None

    def _upload(self, pixels: Sequence[torch.Tensor]) -> torch.Tensor:
        # As bytes, and each view as it lies in memory: half the traffic, and no rearranging on the CPU.
        return preprocessing.normalize([view.to(self._device) for view in pixels], self._dtype)

    def _picture(self, grid: preprocessing.CropGrid) -> list[int]:
        return [self._image_token] * preprocessing.image_tokens(grid, self._mode)

    def _prompt_ids(self, infer: InferSettings) -> tuple[list[int], list[int]]:
        """The token ids before and after the picture's."""
        before, after = map(self._tokenizer.encode, prompts.split_prompt(infer.prompt))
        if max([*before, *after], default=0) >= self._vocabulary:
            raise ModelError(
                f"the tokenizer gives ids outside the model's vocabulary of {self._vocabulary}: "
                f"tokenizer.json and the weights do not belong together"
            )
        return [self._bos, *before], after


def _single(token: int | list[int] | None) -> int | None:
    return token[0] if isinstance(token, list) else token
