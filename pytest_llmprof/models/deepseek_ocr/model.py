"""The loaded model: implements the adapter protocol with the other modules of this package."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.base import Capabilities, ModelInfo, NoPhases, ParsedOutput, Token
from pytest_llmprof.models.deepseek_ocr import generation, parsing, preprocessing, prompts, vision
from pytest_llmprof.models.deepseek_ocr.engines import Engine, Inputs, make_engine
from pytest_llmprof.models.deepseek_ocr.views import make_views

if TYPE_CHECKING:
    from PIL.Image import Image

    from pytest_llmprof.config.schema import InferSettings
    from pytest_llmprof.models.base import Costs, Phases
    from pytest_llmprof.models.deepseek_ocr.tokenizers import Tokenizer

_PHASES = ("preprocess", "vision", "sam", "clip", "projector", "prefill", "decode")


class DeepseekOcr:
    """DeepSeek-OCR, ready to read pages. Implements `pytest_llmprof.models.base.LoadedModel`."""

    def __init__(
        self, network: Any, tokenizer: Tokenizer, *, mode: str, engine: str, weights: str, digest: str
    ) -> None:
        """Wrap transformers' model *network*, on its device and in its dtype, and its *tokenizer*.

        Raises `ModelError` where the two do not fit together.
        """
        text = network.config.text_config
        eos, bos = _single(text.eos_token_id), _single(text.bos_token_id)
        if eos is None or bos is None:
            raise ModelError("the model's configuration names no begin or no end token")
        image = tokenizer.token_id(prompts.IMAGE)
        self._image_token: int = network.config.image_token_id if image is None else image
        self._vocabulary: int = text.vocab_size
        if not 0 <= self._image_token < self._vocabulary:
            raise ModelError(f"{prompts.IMAGE} has id {self._image_token}, beyond a vocabulary of {self._vocabulary}")
        self.network: Any = network
        """transformers' model; None once closed."""
        self.tokenizer = tokenizer
        self.mode = preprocessing.MODES[mode]
        self.eos: int = eos
        """Token that ends an answer."""
        self.positions: int = text.max_position_embeddings
        """A prompt and its answer must fit in these."""
        self._bos: int = bos
        self._special = tuple(dict.fromkeys((*parsing.SPECIAL, *map(tokenizer.decode, ([bos], [eos])))))
        self._device, self._dtype = network.lm_head.weight.device, network.lm_head.weight.dtype
        self.engine = make_engine(engine, network)
        self._views: Any = make_views(engine, self.mode, self._device, self._dtype)
        self.capabilities = Capabilities(phases=_PHASES, block=self.engine.block)
        self.info = ModelInfo(
            name="deepseek_ocr",
            weights=weights,
            digest=digest,
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            device=str(self._device),
            dtype=str(self._dtype).removeprefix("torch."),
            mode=mode,
            engine=engine,
            note=self._views.note,
            details={
                **self.engine.details,
                "preprocess": self._views.how,
                "layers": text.num_hidden_layers,
                "hidden_size": text.hidden_size,
                "routed_experts": text.n_routed_experts,
                "experts_per_token": text.num_experts_per_tok,
                "vocabulary": text.vocab_size,
                "positions": text.max_position_embeddings,
            },
        )

    def generate(self, images: Sequence[Image], infer: InferSettings, phases: Phases) -> Iterator[Token]:
        """Yield the tokens of a batch of images as they come; see `LoadedModel.generate`."""
        return self.generate_with(self.engine, images, infer, phases)

    @torch.inference_mode()
    def generate_with(
        self, engine: Engine, images: Sequence[Image], infer: InferSettings, phases: Phases
    ) -> Iterator[Token]:
        """`generate` with another engine."""
        self._check_open()
        if not images:
            return
        limits = generation.Limits(
            max_new_tokens=infer.max_new_tokens,
            positions=self.positions,
            eos=None if infer.ignore_eos else self.eos,
            pad=self.eos,
            ngram=infer.no_repeat_ngram_size,
        )
        with phases.phase("preprocess"):
            inputs = self.preprocess(images, infer)
        tokens = engine.generate(inputs, limits, phases)
        del inputs  # the engine frees the images once they are read
        yield from tokens

    def encoder(self, images: Sequence[Image]) -> Callable[[], list[torch.Tensor]]:
        """Preprocess and upload the images once; return a function that runs the vision tower on them, to be measured.

        Each call returns each page's features [image tokens, hidden]. It calls transformers' modules one by one,
        whatever the engine; the engine's own way is the phase `vision` of its pages.
        """
        self._check_open()
        network = self.network
        overviews, crops, grids = self._views(images, self.mode)

        @torch.inference_mode()
        def encode() -> list[torch.Tensor]:
            return vision.page_features(network, overviews, crops, grids, NoPhases())

        return encode

    def prompt(self, infer: InferSettings) -> str:
        """The prompt's full text."""
        return prompts.prompt_text(infer.prompt)

    def prompt_kind(self, infer: InferSettings) -> str:
        """What `infer.prompt` asks for: "markdown", "free" or "other"."""
        return prompts.prompt_kind(infer.prompt)

    def text(self, ids: Sequence[int]) -> str:
        """Decode token ids, special tokens included."""
        return self.tokenizer.decode(ids)

    def parse(self, text: str, size: tuple[int, int]) -> ParsedOutput:
        """Read an answer about an image of *size* (width, height)."""
        return parsing.parse(text, size, self._special)

    def shape_key(self, image: Image, infer: InferSettings) -> object:
        """Mode, crop grid and prompt: together they set every shape."""
        return (self.info.mode, preprocessing.crop_grid(image.size, self.mode), self.prompt(infer))

    def costs(self, images: Sequence[Image], infer: InferSettings, tokens: Sequence[int]) -> Costs:
        """FLOPs and bytes of a batch; see `Costed.costs`.

        Runs the batch once more, eagerly, to count the experts it is routed to: a CUDA graph does not show them.
        """
        from pytest_llmprof.models.deepseek_ocr import costs
        from pytest_llmprof.models.deepseek_ocr.engines.reference import ReferenceEngine

        self._check_open()
        network = self.network
        grids = [preprocessing.crop_grid(image.size, self.mode) for image in images]
        text = sum(map(len, self._prompt_ids(infer)))
        batch = costs.Batch(
            overview=self.mode.size,
            crops=sum(columns * rows for columns, rows in grids if (columns, rows) != (1, 1)),
            prompts=tuple(text + preprocessing.image_tokens(grid, self.mode) for grid in grids),
            steps=max(max(tokens, default=1) - 1, 0),
        )

        def run(changes: Mapping[str, Any], phases: Phases) -> Iterator[Token]:
            return self.generate_with(ReferenceEngine(network), images, replace(infer, **changes), phases)

        routing = costs.count_routing(network, batch, run)
        return costs.batch_costs(network.config, batch, self._dtype.itemsize, routing, costs.router_itemsize(network))

    def close(self) -> None:
        """Free the weights; the model cannot run afterwards."""
        self.network = self._views = None
        self.engine.close()
        gc.collect()  # the modules refer to one another in circles
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def preprocess(self, images: Sequence[Image], infer: InferSettings) -> Inputs:
        """A batch of images and its prompts as tensors on the device."""
        overviews, crops, grids = self._views(images, self.mode)
        before, after = self._prompt_ids(infer)
        counts = (preprocessing.image_tokens(grid, self.mode) for grid in grids)
        batch = generation.pad_prompts(
            [[*before, *[self._image_token] * count, *after] for count in counts], self._device
        )
        return Inputs(overviews, crops, grids, batch, tuple(padding + len(before) for padding in batch.padding))

    def _check_open(self) -> None:
        if self.network is None:
            raise ModelError("the model was closed")

    def _prompt_ids(self, infer: InferSettings) -> tuple[list[int], list[int]]:
        """The token ids before and after the image's."""
        before, after = map(self.tokenizer.encode, prompts.split_prompt(infer.prompt))
        if max([*before, *after], default=0) >= self._vocabulary:
            raise ModelError(
                f"the tokenizer gives ids outside the model's vocabulary of {self._vocabulary}: "
                "tokenizer.json and the weights do not belong together"
            )
        return [self._bos, *before], after


def _single(token: int | list[int] | None) -> int | None:
    return token[0] if isinstance(token, list) else token
