"""A training run on disk: safetensors pieces under 16 MiB and one JSON file.

Whole (nothing is rounded) or compact, for slow connections: weights keep 24 of their 32 bits; the average is stored as
its difference from the weights in 8-bit floats with one scale per tensor, and so are the optimizer's first moments; its
second moments are bfloat16. The optimizer's state comes last; a compact checkpoint loads without its last pieces.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["load", "save"]

PIECE = 15 * 1024 * 1024


def _pack(name: str, value: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    kind, _, rest = name.partition("/")
    if kind == "weights":
        octets = value.contiguous().view(torch.uint8).reshape(*value.shape, 4) if value.ndim else value
        return {name: octets[..., 1:].contiguous()}  # little-endian: drops the lowest 8 bits
    if kind in ("average", "momentum", "first"):
        if kind == "average":
            value = value - weights[f"weights/{rest}"]
        scale = value.abs().amax().clamp_min(1e-30) / 448
        return {name: (value / scale).to(torch.float8_e4m3fn), f"scale/{name}": scale.reshape(1)}
    return {name: value.bfloat16()}


def _unpack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name in sorted(tensors, key=lambda name: not name.startswith("weights/")):  # the average needs the weights
        value = tensors[name]
        kind, _, rest = name.partition("/")
        if kind == "weights":
            octets = torch.zeros(*value.shape[:-1], 4, dtype=torch.uint8)
            octets[..., 1:] = value
            out[name] = octets.view(torch.float32).squeeze(-1)
        elif kind == "average":
            out[name] = out[f"weights/{rest}"] + value.float() * tensors[f"scale/{name}"]
        elif kind in ("momentum", "first"):
            out[name] = value.float() * tensors[f"scale/{name}"]
        elif kind != "scale":
            out[name] = value.float()
    return out


def save(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any], *, compact: bool = False) -> list[Path]:
    """Write float32 *tensors* (named weights/..., average/..., momentum/..., first/..., second/...) and *state*.

    Returns the files. The JSON is written last, so a folder without it is an unfinished one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / "state.json", *folder.glob("piece-*.safetensors")):
        old.unlink(missing_ok=True)
    host = {name: value.detach().float().cpu() for name, value in tensors.items()}
    if compact:
        packed: dict[str, Tensor] = {}
        for name, value in host.items():
            packed |= _pack(name, value, host)
        host = packed
    pieces: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, value in host.items():
        if size + value.nbytes > PIECE and pieces[-1]:
            pieces.append({})
            size = 0
        pieces[-1][name] = value.contiguous()
        size += value.nbytes
    files = []
    for index, piece in enumerate(pieces):
        files.append(folder / f"piece-{index:02}.safetensors")
        save_file(piece, files[-1])
    files.append(folder / "state.json")
    text = json.dumps({"schema": 1, "compact": compact, "pieces": len(pieces), **state})
    files[-1].write_text(text, encoding="utf-8")
    return files


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote. Raises FileNotFoundError without state.json, or without a piece of a whole checkpoint."""
    state = json.loads((folder / "state.json").read_text("utf-8"))
    tensors: dict[str, Tensor] = {}
    for index in range(state["pieces"]):
        path = folder / f"piece-{index:02}.safetensors"
        if state["compact"] and not path.exists():
            print(f"{path.name} and what follows left out: the optimizer starts afresh where it has no state")
            break
        tensors |= load_file(path)
    return (_unpack(tensors) if state["compact"] else tensors), state
