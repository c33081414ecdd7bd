"""Is the answer right? Error rates, boxes and repetition against the truth."""

from __future__ import annotations

from pytest_llmprof.quality.score import PageQuality, score_page, summarise

__all__ = ["PageQuality", "score_page", "summarise"]
