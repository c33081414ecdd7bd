"""The reader: sizes, and a forward pass for training over the parameters of transformers' own class.

The forward pass computes what `UnlimitedOcrForConditionalGeneration` computes (a test compares outputs and
gradients) but with few, large kernels:
- SAM's decomposed relative positions become extra dimensions of query and key: with q' = (q/sqrt(d), q.Rh, q.Rw) and
  k' = (k, onehot(row), onehot(column)), q'.k' is the biased score, so a fused attention kernel needs no bias;
- neighbouring windowed layers stay in window layout;
- all experts of a layer run as one product, weighted by the router's top-k mask.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pages import CELL_SLOTS, SIZE, SLOT_OF
from tokens import BOS, EOS, IMAGE, VOCABULARY
from torch import Tensor, nn

from pytest_llmprof.models.checkpoint import open_checkpoint
from pytest_llmprof.models.deepseek_ocr.loader import load_weights

__all__ = ["SIZES", "TINY_SIZES", "Reader", "build", "config", "initialise"]

SIZES: dict[str, Any] = {
    "sam": {"hidden_size": 128, "num_hidden_layers": 5, "num_attention_heads": 4, "mlp_dim": 512, "window_size": 8,
            "global_attn_indexes": [3], "output_channels": 96, "downsample_channels": [192, 256]},
    "clip": {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 1024},
    "text": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
             "intermediate_size": 768, "n_routed_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": 2,
             "moe_intermediate_size": 192},
}
TINY_SIZES: dict[str, Any] = {
    "sam": {**SIZES["sam"], "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 128,
            "global_attn_indexes": [1], "output_channels": 16, "downsample_channels": [24, 32]},
    "clip": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128},
    "text": {**SIZES["text"], "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 2, "intermediate_size": 64, "moe_intermediate_size": 16},
}
"""For tests."""


def config(sizes: dict[str, Any] = SIZES) -> Any:
    """The transformers configuration of *sizes*."""
    from transformers.models.unlimited_ocr import UnlimitedOcrConfig

    layers = sizes["text"]["num_hidden_layers"]
    return UnlimitedOcrConfig(
        vision_config={
            "sam_config": {**sizes["sam"], "image_size": SIZE, "patch_size": 16},
            "encoder_config": {**sizes["clip"], "image_size": 112, "patch_size": 14},
        },
        text_config={
            **sizes["text"], "vocab_size": VOCABULARY, "max_position_embeddings": 8192, "bos_token_id": BOS,
            "eos_token_id": EOS, "layer_types": ["full_attention"] * layers, "first_k_dense_replace": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        image_token_id=IMAGE,
    )


def build(sizes: dict[str, Any] = SIZES, seed: int = 0) -> Any:
    """A fresh model in float32, with weights that train well."""
    from transformers.models.unlimited_ocr import UnlimitedOcrForConditionalGeneration

    torch.manual_seed(seed)
    model = UnlimitedOcrForConditionalGeneration(config(sizes))
    with torch.no_grad():
        for module in model.model.vision_tower.sam_encoder.modules():  # its own initialiser leaves them at about 0
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                fan_in = module.weight[0].numel()
                nn.init.trunc_normal_(module.weight, std=min(0.05, fan_in**-0.5))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(model.model.vision_tower.sam_encoder.pos_embed, std=0.02)
        nn.init.normal_(model.model.vision_tower.vision_encoder.embeddings.position_embedding.weight, std=0.02)
    return model


def initialise(model: Any, folder: Path) -> None:
    """Copy the weights of the exported model in *folder* into *model*.

    Tables of tokens may have fewer rows there. Raises ModelError for a folder that is not a model.
    """
    exported = load_weights(open_checkpoint(folder), torch.device("cpu"), torch.float32)
    with torch.no_grad():
        for (name, p), (other, value) in zip(model.named_parameters(), exported.named_parameters(), strict=True):
            if name != other or p.shape[1:] != value.shape[1:] or len(p) < len(value):
                raise ValueError(f"{folder}: {other} {[*value.shape]} does not fit {name} {[*p.shape]}")
            p[: len(value)].copy_(value)


# layers as pure functions of (hidden states, parameters), so that equal layers share one compiled kernel set


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps).to(x.dtype)


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def _relative(query: Tensor, table_h: Tensor, table_w: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """query [n, heads, side*side, d] -> its scores with the rows and the columns, each [n, heads, side*side, side]."""
    n, heads, _, width = query.shape
    grid = query.reshape(n, heads, side, side, width)
    spots = torch.arange(side, device=query.device)
    index = spots[:, None] - spots[None, :] + side - 1
    rows = torch.einsum("nhrcd,rkd->nhrck", grid, table_h.to(query.dtype)[index])
    columns = torch.einsum("nhrcd,ckd->nhrck", grid, table_w.to(query.dtype)[index])
    return rows.reshape(n, heads, -1, side), columns.reshape(n, heads, -1, side)


def sam_layer(x: Tensor, p: list[Tensor], heads: int, eps: float) -> Tensor:
    """A SAM layer on x [n, side*side, width]: n pages for a global layer, n windows for a windowed one."""
    n, tokens, width = x.shape
    side = int(tokens**0.5)
    n1w, n1b, qkv_w, qkv_b, rel_h, rel_w, out_w, out_b, n2w, n2b, up_w, up_b, down_w, down_b = p
    qkv = _linear(_norm(x, n1w, n1b, eps), qkv_w, qkv_b).reshape(n, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind(0)
    size = query.shape[-1]
    rows, columns = _relative(query, rel_h, rel_w, side)
    spots = torch.arange(tokens, device=x.device)
    row_of = F.one_hot(spots // side, side).to(x.dtype).expand(n, heads, tokens, side)
    column_of = F.one_hot(spots % side, side).to(x.dtype).expand(n, heads, tokens, side)
    query = torch.cat([query * size**-0.5, rows, columns], -1)
    key = torch.cat([key, row_of, column_of], -1)
    value = F.pad(value, (0, 2 * side))
    mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., :size]
    x = x + _linear(mixed.transpose(1, 2).reshape(n, tokens, width), out_w, out_b)
    return x + _linear(F.gelu(_linear(_norm(x, n2w, n2b, eps), up_w, up_b)), down_w, down_b)


def clip_layer(x: Tensor, p: list[Tensor], heads: int, eps: float) -> Tensor:
    """A CLIP layer on x [pages, 65, width]."""
    n, tokens, width = x.shape
    n1w, n1b, qw, qb, kw, kb, vw, vb, out_w, out_b, n2w, n2b, up_w, up_b, down_w, down_b = p
    normed = _norm(x, n1w, n1b, eps)
    qkv = _linear(normed, torch.cat([qw, kw, vw]), torch.cat([qb, kb, vb]))
    query, key, value = qkv.reshape(n, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    mixed = F.scaled_dot_product_attention(query, key, value)
    x = x + _linear(mixed.transpose(1, 2).reshape(n, tokens, width), out_w, out_b)
    hidden = _linear(_norm(x, n2w, n2b, eps), up_w, up_b)
    return x + _linear(hidden * torch.sigmoid(1.702 * hidden), down_w, down_b)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


def _attend(x: Tensor, p: list[Tensor], cos: Tensor, sin: Tensor, heads: int, eps: float) -> Tensor:
    n, tokens, width = x.shape
    norm, qw, kw, vw, out_w = p
    qkv = _linear(_rms(x, norm, eps), torch.cat([qw, kw, vw]))
    query, key, value = qkv.reshape(n, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return x + _linear(mixed.transpose(1, 2).reshape(n, tokens, width), out_w)


def dense_layer(x: Tensor, p: list[Tensor], cos: Tensor, sin: Tensor, heads: int, eps: float) -> Tensor:
    """A text layer without experts."""
    x = _attend(x, p[:5], cos, sin, heads, eps)
    norm, gate, up, down = p[5:]
    a, b = _linear(_rms(x, norm, eps), torch.cat([gate, up])).chunk(2, -1)
    return x + _linear(F.silu(a) * b, down)


def route(logits: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Router logits [tokens, experts] -> the weights (0 where not chosen) and the load-balance loss."""
    scores = logits.softmax(-1)
    chosen = torch.zeros_like(scores).scatter(-1, scores.topk(top, -1).indices, 1.0)
    balance = scores.shape[-1] / top * (scores.mean(0) * chosen.mean(0)).sum()
    return scores * chosen, balance


def expert_layer(
    x: Tensor, p: list[Tensor], cos: Tensor, sin: Tensor, heads: int, eps: float, top: int
) -> tuple[Tensor, Tensor]:
    """A text layer with experts, and its load-balance loss."""
    x = _attend(x, p[:5], cos, sin, heads, eps)
    norm, router, gate_up, down, shared_gate, shared_up, shared_down = p[5:]
    normed = _rms(x, norm, eps).reshape(-1, x.shape[-1])
    experts, width = gate_up.shape[0], x.shape[-1]
    with torch.autocast(x.device.type, enabled=False):
        weights, balance = route(F.linear(normed.float(), router), top)
    a, b = _linear(normed, gate_up.reshape(-1, width)).reshape(-1, experts, 2, down.shape[-1]).unbind(2)
    hidden = (F.silu(a) * b * weights.to(x.dtype)[..., None]).reshape(len(normed), -1)
    mixed = _linear(hidden, down.permute(1, 0, 2).reshape(width, -1))
    a, b = _linear(normed, torch.cat([shared_gate, shared_up])).chunk(2, -1)
    return x + (mixed + _linear(F.silu(a) * b, shared_down)).reshape(x.shape), balance


def stem(pixels: Tensor, weight: Tensor, bias: Tensor, table: Tensor) -> Tensor:
    """pixels [pages, 3, 512, 512] -> patches [pages, 32, 32, width]."""
    n, side = len(pixels), SIZE // 16
    patches = pixels.reshape(n, 3, side, 16, side, 16).permute(0, 2, 4, 1, 3, 5).reshape(n, side, side, -1)
    return _linear(patches, weight.flatten(1), bias) + table.to(pixels.dtype)


def neck(x: Tensor, p: list[Tensor], eps: float) -> Tensor:
    """SAM's neck and its two downsampling convolutions: [pages, 32, 32, width] -> [pages, channels, 8, 8]."""
    c1, n1w, n1b, c2, n2w, n2b, c3, c4 = p
    x = _norm(_linear(x, c1.flatten(1)), n1w, n1b, eps).permute(0, 3, 1, 2)
    x = F.conv2d(x, c2.to(x.dtype), padding=1).permute(0, 2, 3, 1)
    x = _norm(x, n2w, n2b, eps).permute(0, 3, 1, 2)
    x = F.conv2d(x, c3.to(x.dtype), stride=2, padding=1)
    return F.conv2d(x, c4.to(x.dtype), stride=2, padding=1)


def losses(hidden: Tensor, norm: Tensor, head: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Mean cross-entropy of the labels that are not -100."""
    logits = _linear(_rms(hidden, norm, eps), head).float()
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def slot_loss(cells: Tensor, weight: Tensor, bias: Tensor, slots: Tensor) -> Tensor:
    """Cross-entropy of the characters in the slots; cells [pages, 64, width], slots [pages, 64, CELL_SLOTS]."""
    logits = _linear(cells, weight, bias).reshape(-1, weight.shape[0] // CELL_SLOTS).float()
    return F.cross_entropy(logits, slots.flatten())


class Reader(nn.Module):
    """transformers' model with the auxiliary head, trained by the functions above."""

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype
        self.head_alone = False
        """Whether the auxiliary loss trains its head and nothing before it."""
        self.classes = max(SLOT_OF.values()) + 1
        self.slot_head = nn.Linear(model.config.text_config.hidden_size, CELL_SLOTS * self.classes)
        nn.init.normal_(self.slot_head.weight, std=0.02)
        with torch.no_grad():  # most slots are empty
            self.slot_head.bias.zero_().view(CELL_SLOTS, self.classes)[:, 0] = 4.0
        self._f: dict[str, Callable[..., Any]] = {
            f.__name__: f
            for f in (sam_layer, clip_layer, dense_layer, expert_layer, stem, neck, losses, slot_loss)
        }

    def compile(self, **options: Any) -> None:
        """Compile each kind of layer once for each shape (instead of the whole model)."""
        torch._dynamo.config.cache_size_limit = 64
        self._f = {name: torch.compile(f, dynamic=False, **options) for name, f in self._f.items()}

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels [pages, 3, 512, 512], normalised -> projected cells [pages, 64, width]."""
        sam, clip = self.model.model.vision_tower.sam_encoder, self.model.model.vision_tower.vision_encoder
        c = sam.config
        embed = sam.patch_embed.projection
        x = self._f["stem"](pixels.to(self.dtype), embed.weight, embed.bias, sam.pos_embed)
        n, side, _, width = x.shape
        parts, window = side // c.window_size, c.window_size
        windowed = False
        for layer in sam.layers:
            if (layer.window_size > 0) != windowed:
                windowed = not windowed
                if windowed:
                    x = x.reshape(n, parts, window, parts, window, width)
                    x = x.permute(0, 1, 3, 2, 4, 5).reshape(n * parts * parts, window * window, width)
                else:
                    x = x.reshape(n, parts, parts, window, window, width).permute(0, 1, 3, 2, 4, 5)
            if not windowed:
                x = x.reshape(n, side * side, width)
            a, m = layer.attn, layer.mlp
            p = [layer.layer_norm1.weight, layer.layer_norm1.bias, a.qkv.weight, a.qkv.bias, a.rel_pos_h, a.rel_pos_w,
                 a.proj.weight, a.proj.bias, layer.layer_norm2.weight, layer.layer_norm2.bias, m.lin1.weight,
                 m.lin1.bias, m.lin2.weight, m.lin2.bias]
            x = self._f["sam_layer"](x, p, c.num_attention_heads, c.layer_norm_eps)
        if windowed:
            x = x.reshape(n, parts, parts, window, window, width).permute(0, 1, 3, 2, 4, 5)
        s, t = sam.neck, sam.proj
        x = self._f["neck"](
            x.reshape(n, side, side, width),
            [s.conv1.weight, s.layer_norm1.weight, s.layer_norm1.bias, s.conv2.weight, s.layer_norm2.weight,
             s.layer_norm2.bias, t.conv1.weight, t.conv2.weight], s.layer_norm1.eps,
        )
        seen = x.flatten(2).transpose(1, 2)
        e = clip.embeddings
        x = torch.cat([e.class_embedding.to(self.dtype).expand(n, 1, -1), seen], 1)
        x = x + e.position_embedding.weight.to(self.dtype)
        eps = clip.config.layer_norm_eps
        x = _norm(x, clip.pre_layrnorm.weight, clip.pre_layrnorm.bias, eps)
        for layer in clip.encoder.layers:
            a, m = layer.self_attn, layer.mlp
            p = [layer.layer_norm1.weight, layer.layer_norm1.bias, a.q_proj.weight, a.q_proj.bias, a.k_proj.weight,
                 a.k_proj.bias, a.v_proj.weight, a.v_proj.bias, a.out_proj.weight, a.out_proj.bias,
                 layer.layer_norm2.weight, layer.layer_norm2.bias, m.fc1.weight, m.fc1.bias, m.fc2.weight, m.fc2.bias]
            x = self._f["clip_layer"](x, p, clip.config.num_attention_heads, eps)
        projector = self.model.model.multi_modal_projector
        return _linear(torch.cat([x[:, 1:], seen], -1), projector.weight, projector.bias)

    def prefix(self, cells: Tensor) -> Tensor:
        """BOS, the rows of cells with a newline each, and the separator: [pages, 74, width]."""
        core = self.model.model
        n, _, width = cells.shape
        newline = core.image_newline.to(cells.dtype).expand(n, 8, 1, width)
        rows = torch.cat([cells.reshape(n, 8, 8, width), newline], 2).reshape(n, 72, width)
        first = core.language_model.embed_tokens.weight[BOS].to(cells.dtype).expand(n, 1, width)
        return torch.cat([first, rows, core.view_separator.to(cells.dtype).expand(n, 1, width)], 1)

    def read(self, prefix: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (before the last norm) of the last prefix token and *ids*, and the load-balance loss."""
        text = self.model.model.language_model
        c = text.config
        x = torch.cat([prefix, F.embedding(ids, text.embed_tokens.weight).to(self.dtype)], 1)
        spots = torch.arange(x.shape[1], device=x.device)[None]
        cos, sin = (part.to(self.dtype)[:, None] for part in text.rotary_emb(x.float(), spots))
        balance = torch.zeros((), device=x.device)
        for layer in text.layers:
            a, m = layer.self_attn, layer.mlp
            p = [layer.input_layernorm.weight, a.q_proj.weight, a.k_proj.weight, a.v_proj.weight, a.o_proj.weight,
                 layer.post_attention_layernorm.weight]
            if hasattr(m, "experts"):
                s = m.shared_experts
                p += [m.gate.weight, m.experts.gate_up_proj, m.experts.down_proj, s.gate_proj.weight, s.up_proj.weight,
                      s.down_proj.weight]
                x, extra = self._f["expert_layer"](
                    x, p, cos, sin, c.num_attention_heads, c.rms_norm_eps, c.num_experts_per_tok
                )
                balance = balance + extra
            else:
                p += [m.gate_proj.weight, m.up_proj.weight, m.down_proj.weight]
                x = self._f["dense_layer"](x, p, cos, sin, c.num_attention_heads, c.rms_norm_eps)
        return x[:, prefix.shape[1] - 1 :], balance

    def forward(self, pixels: Tensor, ids: Tensor, labels: Tensor, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three losses: of the next token, of the slots' characters, of the experts' balance.

        pixels [pages, 3, 512, 512]; ids [pages, text]; labels the same (-100 = not asked); slots [pages, 32, 64].
        """
        cells = self.encode(pixels)
        n = len(pixels)
        rows, columns = slots.shape[1] // 8, slots.shape[2] // 8
        grid = slots.reshape(n, 8, rows, 8, columns).permute(0, 1, 3, 2, 4).reshape(n, 64, -1)
        seen = self._f["slot_loss"](
            cells.detach() if self.head_alone else cells, self.slot_head.weight, self.slot_head.bias, grid.long()
        )
        hidden, balance = self.read(self.prefix(cells), ids)
        text = self.model.model.language_model
        read = self._f["losses"](
            hidden[:, :-1], text.norm.weight, self.model.lm_head.weight, labels, text.config.rms_norm_eps
        )
        return read, seen, balance
