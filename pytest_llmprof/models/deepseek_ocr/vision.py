"""The vision tower's phases and the merge of its features into the prompt's embeddings.

The same arithmetic as transformers' `UnlimitedOcrModel.forward`, split where the phases end. It never waits for the
device: the prompt's layout says where the features go, and SAM's relative position tables, which depend on the
weights alone, are computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pytest_llmprof.models.base import Phases
    from pytest_llmprof.models.deepseek_ocr.preprocessing import CropGrid


def cache_position_tables(model: Any) -> None:
    """Make each SAM layer compute its relative position tables once for each size instead of at every call.

    The original indexes a device tensor from the CPU, which waits for the device twice a layer. The weights must not
    change afterwards.
    """
    for layer in model.model.vision_tower.sam_encoder.layers:
        if not isinstance(layer.attn.get_rel_pos, _PositionTables):
            layer.attn.get_rel_pos = _PositionTables(layer.attn.get_rel_pos)


class _PositionTables:
    """`get_rel_pos` with a cache: [query side, key side, head size] for each table and size."""

    def __init__(self, make: Any) -> None:
        self._make = make
        self._tables: dict[tuple[int, int, int], Tensor] = {}

    def __call__(self, q_size: int, k_size: int, rel_pos: Tensor) -> Tensor:
        key = (q_size, k_size, id(rel_pos))  # rel_pos is a parameter: it lives as long as this table
        if key not in self._tables:
            self._tables[key] = self._make(q_size, k_size, rel_pos)
        return self._tables[key]


def page_features(
    model: Any, overviews: Tensor, crops: Tensor | None, grids: Sequence[CropGrid], phases: Phases
) -> list[Tensor]:
    """Return each page's features [image tokens, hidden]: crops, overview, separator.

    *overviews* is [pages, 3, size, size]; *crops* is [all pages' crops, 3, 640, 640] in page order, or None.
    """
    whole = encode_views(model, overviews, phases)
    parts = encode_views(model, crops, phases) if crops is not None else None
    return arrange_pages(model, whole, parts, grids)


def _call(part: str, call: Callable[..., Any], *inputs: Tensor) -> Any:
    return call(*inputs)


def encode_views(model: Any, pixels: Tensor, phases: Phases, run: Callable[..., Any] = _call) -> Tensor:
    """Turn views [views, 3, size, size] into features [views, tokens, hidden]: phases sam, clip and projector.

    *run* gets each part's name, its function and its inputs; an engine can replay a CUDA graph there.
    """
    tower = model.model.vision_tower

    def join(local: Tensor, context: Tensor) -> Tensor:
        projected: Tensor = model.model.multi_modal_projector(torch.cat([context, local], dim=-1))
        return projected

    with phases.phase("sam"):
        local = run("sam", lambda views: tower.sam_encoder(views).last_hidden_state, pixels)
    with phases.phase("clip"):
        context = run("clip", lambda features: tower.vision_encoder(features).last_hidden_state, local)
        # Views cost the GPU nothing, but making them takes the host longer than the projector runs.
        local, context = local.flatten(2).transpose(1, 2), context[:, 1:]
    with phases.phase("projector"):
        features: Tensor = run("projector", join, local, context)
    return features


def arrange_pages(model: Any, whole: Tensor, parts: Tensor | None, grids: Sequence[CropGrid]) -> list[Tensor]:
    """Put each page's features in the prompt's order, [image tokens, hidden], from those of overviews and crops."""
    newline, separator = model.model.image_newline, model.model.view_separator
    pages: list[Tensor] = []
    taken = 0
    for page, (columns, rows) in enumerate(grids):
        views = []
        if parts is not None and (columns, rows) != (1, 1):
            views.append(_with_newlines(_join_crops(parts[taken : taken + columns * rows], columns, rows), newline))
            taken += columns * rows
        views.append(_with_newlines(_square(whole[page]), newline))
        pages.append(torch.cat([*views, separator[None]]))
    return pages


def insert_features(embeddings: Tensor, features: Sequence[Tensor], image_starts: Sequence[int]) -> Tensor:
    """Write each page's *features* into its row of *embeddings* [pages, length, hidden], from its image start on."""
    for row, (page, start) in enumerate(zip(features, image_starts, strict=True)):
        embeddings[row, start : start + page.shape[0]] = page
    return embeddings


def _square(view: Tensor) -> Tensor:
    side = round(view.shape[0] ** 0.5)
    return view.reshape(side, side, -1)


def _join_crops(crops: Tensor, columns: int, rows: int) -> Tensor:
    """[crops, tokens, hidden] -> [rows * side, columns * side, hidden]"""
    side, hidden = round(crops.shape[1] ** 0.5), crops.shape[2]
    grid = crops.reshape(rows, columns, side, side, hidden).transpose(1, 2)
    return grid.reshape(rows * side, columns * side, hidden)


def _with_newlines(grid: Tensor, newline: Tensor) -> Tensor:
    """[rows, columns, hidden] -> [rows * (columns + 1), hidden]: a newline after each row."""
    ends = newline.expand(grid.shape[0], 1, -1)
    return torch.cat([grid, ends], dim=1).flatten(0, 1)
