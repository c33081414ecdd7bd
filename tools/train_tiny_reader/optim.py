"""Muon for the hidden matrices, AdamW for the rest.

Muon (Jordan et al., 2024): the momentum of a matrix, made orthogonal by five Newton-Schulz steps. The step is scaled
by 0.2 sqrt(max(rows, columns)) so that its root mean square is AdamW's (Liu et al., "Muon is scalable", 2025).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Optimizer", "is_matrix"]


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon takes it: weights of hidden linear maps and of experts; no tables, heads, routers, norms."""
    if parameter.ndim < 2 or (min(parameter.shape[-2:]) < 16 and parameter.ndim < 4):
        return False
    skip = ("embed", "slot_head", "lm_head", "rel_pos", "pos_embed", "gate.weight")
    return not any(part in name for part in skip)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly; [n, rows, columns], in bfloat16."""
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Optimizer:
    """Both optimizers over the named parameters of *module*, and the average of its weights."""

    def __init__(
        self, module: nn.Module, *, muon: bool = True, lr: float = 1.5e-3, matrix_lr: float = 3e-3,
        decay: float = 0.02, momentum: float = 0.95, average: float = 0.9995,
    ) -> None:
        named = list(module.named_parameters())
        self.lr, self.matrix_lr, self.decay, self.momentum, self.average = lr, matrix_lr, decay, momentum, average
        self.matrices = [(name, p) for name, p in named if muon and is_matrix(name, p)]
        chosen = {name for name, _ in self.matrices}
        self.others = [(name, p) for name, p in named if name not in chosen]
        self.buffers = {name: torch.zeros_like(p) for name, p in self.matrices}
        wide = [p for name, p in self.others if p.ndim >= 2]
        thin = [p for name, p in self.others if p.ndim < 2]
        fused = named[0][1].is_cuda
        self.adamw = torch.optim.AdamW(
            [{"params": wide, "weight_decay": decay}, {"params": thin, "weight_decay": 0.0}],
            lr=lr, betas=(0.9, 0.98), eps=1e-8, fused=fused,
        )
        self.ema = {name: p.detach().clone() for name, p in named if "slot_head" not in name}
        self._named = named
        self._groups: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for name, p in self.matrices:
            for view, buffer in zip(_slices(p.detach()), _slices(self.buffers[name]), strict=True):
                self._groups[tuple(view.shape)].append((view, buffer))

    @torch.no_grad()
    def step(self, scale: float, updates: int) -> None:
        """One update with learning rates times *scale*; *updates* so far set how long the average looks back."""
        if self.matrices:
            grads = [p.grad for _, p in self.matrices]
            moments = [self.buffers[name] for name, _ in self.matrices]
            torch._foreach_lerp_(moments, grads, 1 - self.momentum)
            ahead = torch._foreach_lerp(grads, moments, self.momentum)
            views: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for tensor in ahead:
                for view in _slices(tensor):
                    views[tuple(view.shape)].append(view)
            rate = self.matrix_lr * scale
            targets, changes = [], []
            for shape, members in self._groups.items():
                turned = orthogonal(torch.stack(views[shape])).float()
                targets += [weight for weight, _ in members]
                changes += list((turned * (-rate * 0.2 * max(shape) ** 0.5)).unbind(0))
            torch._foreach_mul_(targets, 1 - rate * self.decay)
            torch._foreach_add_(targets, changes)
        for group in self.adamw.param_groups:
            group["lr"] = self.lr * scale
        self.adamw.step()
        keep = min(self.average, (1 + updates) / (10 + updates))
        names = list(self.ema)
        weights = dict(self._named)
        torch._foreach_lerp_([self.ema[name] for name in names], [weights[name] for name in names], 1 - keep)

    def clear(self) -> None:
        """Forget the gradients."""
        for _, p in self._named:
            p.grad = None

    def clip(self, most: float) -> Tensor:
        """Scale the gradients down to a norm of *most*; their norm before."""
        return nn.utils.clip_grad_norm_([p for _, p in self._named], most, foreach=True)

    def state(self) -> dict[str, Tensor]:
        """Every tensor that a resumed run needs: average/, momentum/, first/, second/ and steps."""
        out = {f"average/{name}": value for name, value in self.ema.items()}
        out |= {f"momentum/{name}": value for name, value in self.buffers.items()}
        for name, p in self.others:
            kept: dict[str, Any] = self.adamw.state.get(p, {})
            if kept:
                out |= {f"first/{name}": kept["exp_avg"], f"second/{name}": kept["exp_avg_sq"]}
        return out

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Take back what `state` gave, after *updates* updates; moments that are not there stay zero."""
        for name, value in self.ema.items():
            value.copy_(tensors[f"average/{name}"])
        for name, value in self.buffers.items():
            if f"momentum/{name}" in tensors:
                value.copy_(tensors[f"momentum/{name}"])
        for name, p in self.others:
            if f"first/{name}" in tensors and f"second/{name}" in tensors:
                self.adamw.state[p] = {
                    "step": torch.tensor(float(updates), device=p.device if self.adamw.defaults["fused"] else None),
                    "exp_avg": tensors[f"first/{name}"].to(p.device, p.dtype, copy=True),
                    "exp_avg_sq": tensors[f"second/{name}"].to(p.device, p.dtype, copy=True),
                }


def _slices(tensor: Tensor) -> list[Tensor]:
    """A parameter as matrices: experts one by one, a convolution as outputs by inputs."""
    if tensor.ndim == 3:
        return list(tensor.unbind(0))
    return [tensor.view(len(tensor), -1) if tensor.ndim > 2 else tensor]
