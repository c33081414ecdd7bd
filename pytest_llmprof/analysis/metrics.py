"""Metrics that every stage with a trace of the GPU has."""

from __future__ import annotations

from pytest_llmprof.records.catalogue import Metric


def _each_token(name: str, label: str, description: str) -> Metric:
    return Metric(name, "", label, "lower", shown=("gate",), description=description)


TRACE_METRICS = (
    _each_token(
        "host_launches_per_token", "Launches by the host a token", "Kernel and CUDA graph launches a decode step."
    ),
    _each_token("kernels_per_token", "Kernels a token", "Kernels on the GPU a decode step."),
    _each_token("d2h_copies_per_token", "Device-to-host copies a token", "Device-to-host copies a decode step."),
    _each_token(
        "synchronisations_per_token", "Synchronisations a token", "Times the host waited for the GPU, a decode step."
    ),
)
"""Counts of a decode step, which is a token of each page of the batch; null without steps or without a GPU."""
