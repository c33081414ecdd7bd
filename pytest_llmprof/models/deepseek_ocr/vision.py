"""The vision tower's phases and the merge of its features into the prompt's embeddings.

The same arithmetic as transformers' `UnlimitedOcrModel.forward`, split where the phases end and without
the places where that waits for the device: features go where the prompt's layout tells, and SAM's
relative position tables, which depend on the weights alone, are made once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pytest_llmprof.models.base import Phases
    from pytest_llmprof.models.deepseek_ocr.preprocessing import CropGrid

__all__ = ["assemble", "keep_position_tables", "merge", "page_features", "project"]


def keep_position_tables(model: Any) -> None:
    """Make each SAM layer look its relative position tables up once a size instead of at every call.

    The original indexes a device tensor from the CPU, which waits for the device twice a layer. The
    weights must not change afterwards.
    """
    for layer in model.model.vision_tower.sam_encoder.layers:
        if not isinstance(layer.attn.get_rel_pos, _PositionTables):
            layer.attn.get_rel_pos = _PositionTables(layer.attn.get_rel_pos)


class _PositionTables:
    """`get_rel_pos` with a memory: [query side, key side, head size] for each table and size."""

    def __init__(self, make: Any) -> None:
        self._make = make
        self._tables: dict[tuple[int, int, int], torch.Tensor] = {}

    def __call__(self, q_size: int, k_size: int, rel_pos: torch.Tensor) -> torch.Tensor:
        key = (q_size, k_size, id(rel_pos))  # rel_pos is a parameter: it lives as long as this table
        if key not in self._tables:
            self._tables[key] = self._make(q_size, k_size, rel_pos)
        return self._tables[key]


def page_features(
    model: Any,
    overviews: torch.Tensor,
    crops: torch.Tensor | None,
    grids: Sequence[CropGrid],
    phases: Phases,
) -> list[torch.Tensor]:
    """Return each page's features [image tokens, hidden]: crops, overview, separator.

    *overviews* is [pages, 3, size, size]; *crops* is [all pages' crops, 3, 640, 640] in page order, or None.
    """
    whole = project(model, overviews, phases)
    parts = project(model, crops, phases) if crops is not None else None
    return assemble(model, whole, parts, grids)


def _call(part: str, call: Callable[..., Any], *inputs: torch.Tensor) -> Any:
    return call(*inputs)


def project(
    model: Any, pixels: torch.Tensor, phases: Phases, run: Callable[..., Any] = _call
) -> torch.Tensor:
    """Take views [views, 3, size, size] to features [views, tokens, hidden].

    *run* is given each part's name, its function and its inputs; engines replay graphs there.
    """
    tower = model.model.vision_tower

    def join(local: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = model.model.multi_modal_projector(torch.cat([context, local], dim=-1))
        return projected

    with phases.phase("sam"):
        local = run("sam", lambda views: tower.sam_encoder(views).last_hidden_state, pixels)
    with phases.phase("clip"):
        context = run("clip", lambda features: tower.vision_encoder(features).last_hidden_state, local)
        # Views: nothing for the card to do, but the host takes longer to make them than the projector runs.
        local, context = local.flatten(2).transpose(1, 2), context[:, 1:]
    with phases.phase("projector"):
        features: torch.Tensor = run("projector", join, local, context)
    return features


def assemble(
    model: Any, whole: torch.Tensor, parts: torch.Tensor | None, grids: Sequence[CropGrid]
) -> list[torch.Tensor]:
    """Lay each page's features out, [image tokens, hidden], from those of overviews and crops."""
    newline, separator = model.model.image_newline, model.model.view_separator
    pages: list[torch.Tensor] = []
    taken = 0
    for page, (columns, rows) in enumerate(grids):
        views = []
        if parts is not None and (columns, rows) != (1, 1):
            views.append(_rows(_mosaic(parts[taken : taken + columns * rows], columns, rows), newline))
            taken += columns * rows
        views.append(_rows(_square(whole[page]), newline))
        pages.append(torch.cat([*views, separator[None]]))
    return pages


def merge(
    embeddings: torch.Tensor, features: Sequence[torch.Tensor], positions: Sequence[int]
) -> torch.Tensor:
    """Write each page's *features* into its row of *embeddings* [pages, length, hidden], at its position."""
    for row, (page, start) in enumerate(zip(features, positions, strict=True)):
        embeddings[row, start : start + page.shape[0]] = page
    return embeddings


def _square(view: torch.Tensor) -> torch.Tensor:
    side = round(view.shape[0] ** 0.5)
    return view.reshape(side, side, -1)


def _mosaic(crops: torch.Tensor, columns: int, rows: int) -> torch.Tensor:
    """[crops, tokens, hidden] -> [rows * side, columns * side, hidden]"""
    side, hidden = round(crops.shape[1] ** 0.5), crops.shape[2]
    grid = crops.reshape(rows, columns, side, side, hidden).transpose(1, 2)
    return grid.reshape(rows * side, columns * side, hidden)


def _rows(grid: torch.Tensor, newline: torch.Tensor) -> torch.Tensor:
    """[rows, columns, hidden] -> [rows * (columns + 1), hidden]: a newline after each row."""
    ends = newline.expand(grid.shape[0], 1, -1)
    return torch.cat([grid, ends], dim=1).flatten(0, 1)
