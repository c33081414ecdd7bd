"""Metrics that every stage with a trace of the GPU has."""

from __future__ import annotations

from pytest_llmprof.records.catalogue import Metric

TRACE_METRICS = tuple(
    Metric(f"{name}_per_token", "", f"{label} a token", "lower", shown=("gate",), description=f"{text} a decode step.")
    for name, label, text in (
        ("host_launches", "Launches by the host", "Kernel and CUDA graph launches"),
        ("kernels", "Kernels", "Kernels on the GPU"),
        ("d2h_copies", "Device-to-host copies", "Device-to-host copies"),
        ("synchronisations", "Synchronisations", "Times the host waited for the GPU,"),
    )
)
"""Counts of a decode step, which is a token of each page of the batch; null without steps or without a GPU."""
