"""Write a checkpoint of training as a model folder: config.json, model.safetensors, tokenizer.json, MODEL_CARD.md.

    python export.py --run DIR --out DIR [--figures evaluation.json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import checkpoint
import tokens
import torch
from model import SIZES, TINY_SIZES, build, config
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pytest_llmprof.models.deepseek_ocr.translate import released_config

__all__ = ["averaged", "export", "write"]

CARD = Path(__file__).resolve().parent / "MODEL_CARD.md"


def averaged(run: Path) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The model with the averaged weights of *run*, its sizes, and the run's state."""
    tensors, state = checkpoint.load(run)
    sizes = TINY_SIZES if state["tiny"] else SIZES
    model = build(sizes)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(tensors[f"average/model.{name}"])
    return model, sizes, state


def write(model: Any, sizes: dict[str, Any], out: Path) -> None:
    """Write *model* in bfloat16 under the released key names, its config and its tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        model.to(torch.bfloat16).save_pretrained(scratch)
        save_file(load_file(Path(scratch) / "model.safetensors"), out / "model.safetensors", {"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors leaves it readable to its owner alone
    text = json.dumps(released_config(config(sizes)) | {"torch_dtype": "bfloat16"}, indent=1)
    (out / "config.json").write_text(text + "\n", encoding="utf-8")
    tokens.save(out / "tokenizer.json")


def export(run: Path, out: Path, figures: Path | None = None) -> dict[str, Any]:
    """Export *run* and return its state. {figures} in the model card becomes the text of *figures*."""
    model, sizes, state = averaged(run)
    write(model, sizes, out)
    if CARD.exists():
        table = figures.read_text("utf-8") if figures else "not measured yet"
        (out / "MODEL_CARD.md").write_text(CARD.read_text("utf-8").replace("{figures}", table), encoding="utf-8")
    return state


def main() -> None:
    """Export, and print the size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figures", type=Path)
    options = parser.parse_args()
    state = export(options.run, options.out, options.figures)
    with safe_open(options.out / "model.safetensors", "pt") as file:
        keys = len(file.keys())
    size = (options.out / "model.safetensors").stat().st_size
    print(f"step {state['step']}: {keys} tensors, {size:,} bytes")


if __name__ == "__main__":
    main()
