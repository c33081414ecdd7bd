"""Colours, blur and noise: ink coverage -> what a camera or a screen shows. Runs on the GPU, batch by batch.

The lowest bit of the coverage marks the pixels in the page's second colour, its tint (see `pages.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["develop_normalised", "normalise", "photograph", "turn"]


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
    planes = torch.stack([ink[where] & 254, 254 * (ink[where] & 1)], 1)
    cover, tint = F.grid_sample(planes.float(), grid, align_corners=False).round().to(ink.dtype).unbind(1)
    return ink.index_copy(0, where, (cover & 254) | (tint > 127))


def develop(
    ink: Tensor, blur: Tensor, papers: Tensor, pens: Tensor, grain: Tensor, specks: Tensor, shade: Tensor
) -> Tensor:
    """The pixel work of `photograph`, in one piece so that it compiles into one kernel.

    ink uint8 [n, 512, 512]; blur [2, n, 1, 1] (down, across); papers, pens [2, n, 3] (beside the tint, on it); grain
    float and specks uniform [n, 512, 512] with their strengths inside; shade [2, n, 1, 1].
    -> float32 [n, 3, 512, 512], 0..255 rounded.
    """
    cover, tint = (ink & 254).float() / 254, (ink & 1).float()[:, None]
    for axis in (1, 2):  # a small binomial blur
        cover = cover + blur[axis - 1] * (cover.roll(1, axis) + cover.roll(-1, axis) - 2 * cover)
    slope = torch.linspace(-1, 1, ink.shape[1], device=ink.device)
    extra = grain + specks + shade[0] * slope[None, :, None] + shade[1] * slope[None, None]
    (paper, tinted), (pen, written) = papers[..., None, None], pens[..., None, None]
    paper, pen = paper + tint * (tinted - paper), pen + tint * (written - pen)
    pixels = paper + cover[:, None] * (pen - paper)
    return (pixels + extra[:, None]).clamp(0, 255).round()


def photograph(ink: Tensor, seed: int, develop: Callable[..., Tensor] = develop) -> Tensor:
    """ink uint8 [n, 512, 512] -> what *develop* makes of it: pixels 0..255, float32 [n, 3, 512, 512].

    Every page gets its own paper and ink colour (one in seven light on dark) and a tint: three in five near the paper,
    with the page's ink on it, the others near the ink, with the paper's colour as ink on it. Some get blur, grain,
    specks or a shade across the page. Equal seeds give equal images on one kind of device.
    """
    device, n = ink.device, len(ink)
    dice = torch.Generator(device=device).manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=dice, device=device)

    def some(share: float) -> Tensor:
        return (rand(n, 1, 1) < share).float()

    blur = torch.stack([rand(n, 1, 1) * 0.28 * some(0.35) for _ in range(2)])
    paper = 255 - rand(n, 1) * 50 - rand(n, 3) * 22 * (rand(n, 1) < 0.4)
    pen = rand(n, 1) * 80 + rand(n, 3) * 50 * (rand(n, 1) < 0.25)
    dark = (rand(n, 1) < 0.14).float()
    paper, pen = paper + dark * (pen - paper), pen + dark * (paper - pen)
    pen = pen + rand(n, 1) * 0.35 * (rand(n, 1) < 0.25) * (paper - pen)  # faint ink
    grain = torch.randn(ink.shape, generator=dice, device=device).mul_(rand(n, 1, 1) * 12 * some(0.4))
    specks, density = rand(*ink.shape), rand(n, 1, 1) * 0.08 * some(0.25)
    specks = torch.where(specks < density, (torch.frac(specks * 5417.0) - 0.5) * 140, 0.0)
    shade = torch.stack([(rand(n, 1, 1) - 0.5) * 50 * some(0.2) for _ in range(2)])
    hue, strong = rand(n, 3) - 0.5, (rand(n, 1) < 0.4).float()
    hue = (hue - hue.mean(1, keepdim=True)) * (80 + 80 * strong)
    share = rand(n, 1) * 0.25 + strong * (0.65 + rand(n, 1) * 0.1)
    tinted = (paper + share * (pen - paper) + hue).clamp(0, 255)
    written = pen + strong * (paper - pen)
    return develop(ink, blur, torch.stack([paper, tinted]), torch.stack([pen, written]), grain, specks, shade)


def normalise(pixels: Tensor) -> Tensor:
    """Pixels 0..255 -> the model's input (mean and standard deviation 0.5)."""
    return pixels / 127.5 - 1


def develop_normalised(*inputs: Tensor) -> Tensor:
    """`develop`, normalised, in bfloat16."""
    return normalise(develop(*inputs)).bfloat16()
