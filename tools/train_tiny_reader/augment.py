"""Colours, blur and noise: ink coverage -> what a camera or a screen shows. Runs on the GPU, a batch at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["normalise", "photograph", "turn"]


def turn(ink: Tensor, angles: Tensor) -> Tensor:
    """Turn pages counter-clockwise about their middle; *angles* in degrees, on the CPU, one a page."""
    where = angles.nonzero().flatten()
    if not len(where):
        return ink
    some = torch.deg2rad(angles[where]).to(ink.device)
    zero = torch.zeros_like(some)
    matrix = torch.stack([some.cos(), -some.sin(), zero, some.sin(), some.cos(), zero], -1).reshape(-1, 2, 3)
    grid = F.affine_grid(matrix, [len(where), 1, *ink.shape[1:]], align_corners=False)
    where = where.to(ink.device)
    turned = F.grid_sample(ink[where, None].float(), grid, align_corners=False)
    return ink.index_copy(0, where, turned[:, 0].round().to(ink.dtype))


def photograph(ink: Tensor, seed: int, strength: float = 1.0) -> Tensor:
    """ink uint8 [pages, 512, 512] -> pixels 0..255, float32 [pages, 3, 512, 512], rounded as a file would be.

    Every page gets its own paper and ink colour (one in seven light on dark), some get blur, grain, specks or a
    shade across the page. *strength* 0 leaves black on white. Equal seeds give equal pictures on one device.
    """
    device, n = ink.device, len(ink)
    dice = torch.Generator(device=device).manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=dice, device=device)

    def some(share: float) -> Tensor:
        return (rand(n, 1, 1) < share * min(1.0, strength)).float()

    cover = ink.float() / 255
    for axis in (1, 2):  # a small binomial blur, of its own width each page and direction
        amount = rand(n, 1, 1) * 0.28 * some(0.35)
        cover = cover + amount * (cover.roll(1, axis) + cover.roll(-1, axis) - 2 * cover)
    paper = 255 - (rand(n, 1) * 50 + rand(n, 3) * 22 * (rand(n, 1) < 0.4)) * strength
    pen = (rand(n, 1) * 80 + rand(n, 3) * 50 * (rand(n, 1) < 0.25)) * strength
    dark = (rand(n, 1) < 0.14 * strength).float()
    paper, pen = paper + dark * (pen - paper), pen + dark * (paper - pen)
    gap = rand(n, 1) * 0.35 * (rand(n, 1) < 0.25) * strength  # faint ink
    pen = pen + gap * (paper - pen)
    pixels = paper[..., None, None] + cover[:, None] * (pen - paper)[..., None, None]
    grain = torch.randn((n, *ink.shape[1:]), generator=dice, device=device) * rand(n, 1, 1) * 12 * some(0.4)
    where = rand(n, *ink.shape[1:])
    density = rand(n, 1, 1) * 0.08 * some(0.25)
    specks = torch.where(where < density, (torch.frac(where * 5417.0) - 0.5) * 140, 0.0)
    slope = torch.linspace(-1, 1, ink.shape[1], device=device)
    tilt = (rand(n, 1, 1) - 0.5) * 50 * some(0.2)
    shade = tilt * slope[None, :, None] + (rand(n, 1, 1) - 0.5) * 50 * some(0.2) * slope[None, None]
    return (pixels + (grain + specks + shade)[:, None]).clamp(0, 255).round()


def normalise(pixels: Tensor) -> Tensor:
    """Pixels 0..255 -> the model's input (mean and standard deviation 0.5)."""
    return pixels / 127.5 - 1
