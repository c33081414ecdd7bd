"""The ban of repeated n-grams, on the device."""

from __future__ import annotations

import torch
from torch import Tensor


def ban_repeats(ids: Tensor, scores: Tensor, ngram: int) -> Tensor:
    """Return *scores* [rows, vocabulary], -inf where a token would repeat an n-gram of *ids* [rows, length].

    Bans what transformers' `NoRepeatNGramLogitsProcessor` bans, prompt included, without leaving the device.
    """
    length = ids.shape[1]
    if ngram <= 0 or length < ngram:
        return scores
    vocabulary = scores.shape[1]
    tail = ids[:, length - ngram + 1 :]
    earlier = ids.unfold(1, ngram, 1)
    repeats = (earlier[..., :-1] == tail[:, None]).all(-1)
    # Tokens that are not banned go into an extra column after the vocabulary.
    last = earlier[..., -1]
    banned = torch.where(repeats & (last >= 0), last, vocabulary)
    mask = scores.new_zeros((scores.shape[0], vocabulary + 1), dtype=torch.bool).scatter_(1, banned, True)
    return scores.masked_fill(mask[:, :vocabulary], float("-inf"))
