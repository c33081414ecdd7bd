"""Typed results: what a run writes and every reader decodes, and the catalogue of metrics. No torch, no pytest."""
