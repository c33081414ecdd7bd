"""The table of GPUs: complete, dense, sourced, and matched by exact names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_llmprof.errors import LlmprofError
from pytest_llmprof.stages.static_analysis import hardware
from pytest_llmprof.stages.static_analysis.hardware import GpuPeaks, find_gpu, gpus, peaks_of, read_gpus

TABLE = Path(hardware.__file__).with_name("hardware.yaml")
EACH = pytest.mark.parametrize("card", gpus(), ids=lambda card: card.name)

WANTED = {
    "NVIDIA A100-SXM4-40GB",
    "NVIDIA A100-PCIE-40GB",
    "NVIDIA A100-SXM4-80GB",
    "NVIDIA A100 80GB PCIe",
    "NVIDIA H100 80GB HBM3",
    "NVIDIA H100 PCIe",
    "NVIDIA H100 NVL",
    "NVIDIA H200",
    "NVIDIA H200 NVL",
    "NVIDIA B200",
    "NVIDIA L4",
    "NVIDIA L40S",
    "NVIDIA A10",
    "NVIDIA GeForce RTX 3090",
    "NVIDIA GeForce RTX 4090",
    "NVIDIA GeForce RTX 5090",
    "AMD Instinct MI300X",
}


def test_the_gpus_that_people_have_are_there() -> None:
    assert {card.name for card in gpus()} == WANTED


@EACH
def test_an_entry_is_whole(card: GpuPeaks) -> None:
    for kind in ("float32", "tf32", "bfloat16", "float16"):
        assert card.peak_tflops[kind] is not None
    assert card.peak_tflops["bfloat16"] == card.peak_tflops["float16"]
    assert 1.9 < card.peak_tflops["bfloat16"] / card.peak_tflops["tf32"] < 2.1
    assert 100 < card.bandwidth_gbs < 10_000
    assert len(card.source) > 40


@EACH
def test_dense_is_half_of_the_advertised_sparse_number(card: GpuPeaks) -> None:
    assert set(card.sparse_tflops) == {kind for kind in card.peak_tflops if kind != "float32"} - {
        kind for kind, value in card.peak_tflops.items() if value is None
    }
    for kind, sparse in card.sparse_tflops.items():
        assert card.peak_tflops[kind] == pytest.approx(sparse / 2, rel=0.015), kind  # vendors round
    if card.halved:
        assert "sparsity" in card.source


def test_geforce_gpus_accumulate_in_float32() -> None:
    # On them the product rate with float32 accumulation is twice that of float32 without tensor cores.
    for name in ("3090", "4090", "5090"):
        card = find_gpu(f"NVIDIA GeForce RTX {name}")
        assert card is not None
        assert card.peak_tflops["bfloat16"] == pytest.approx(2 * card.peak_tflops["float32"], rel=0.01)


def test_names_are_matched_as_they_are() -> None:
    assert find_gpu("GeForce RTX 3090").name == "NVIDIA GeForce RTX 3090"  # as older drivers give it
    for name in ("NVIDIA H100", "nvidia h200", "NVIDIA H200 ", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "H200"):
        assert find_gpu(name) is None


def test_peaks_of_a_known_card() -> None:
    found = peaks_of("NVIDIA H200", "bfloat16")
    assert (found.flops, found.bandwidth, found.kind) == (989.5e12, 4.8e12, "bfloat16")
    assert "H200" in found.source
    assert found.reason is None
    assert peaks_of("NVIDIA H200", "float32").flops == 67e12
    tensor = peaks_of("NVIDIA H200", "float32", tf32=True)
    assert (tensor.flops, tensor.kind) == (494.5e12, "tf32")


def test_an_unknown_gpu_gives_nothing_and_says_so() -> None:
    found = peaks_of("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16")
    assert (found.flops, found.bandwidth, found.source) == (None, None, None)
    assert found.reason.startswith("GPU 'NVIDIA H100 80GB HBM3 MIG 1g.10gb' is not in the table")
    assert "it ran on a CPU" in peaks_of(None, "float32").reason
    lacking = peaks_of("NVIDIA A10", "fp8")
    assert (lacking.flops, lacking.bandwidth) == (None, 600e9)
    assert lacking.reason.startswith("the table has no fp8 peak of NVIDIA A10")


def test_the_users_own_peaks_go_first() -> None:
    both = peaks_of("NVIDIA H200", "bfloat16", peak_tflops=700, bandwidth_gbs=4000)
    assert (both.flops, both.bandwidth, both.reason) == (700e12, 4e12, None)
    assert both.source == "pipeline.static_analysis.peak_tflops=700; pipeline.static_analysis.bandwidth_gbs=4000"
    one = peaks_of("NVIDIA H200", "bfloat16", bandwidth_gbs=4000)
    assert (one.flops, one.bandwidth) == (989.5e12, 4e12)
    assert "datasheet" in one.source
    assert "bandwidth_gbs=4000" in one.source
    assert peaks_of("mine", "bfloat16", peak_tflops=1, bandwidth_gbs=1).reason is None
    assert "set its peaks" in peaks_of("mine", "bfloat16", peak_tflops=1).reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bandwidth_gbs": 0}, "Expected `float` > 0.0 - at `$[...][0].bandwidth_gbs`"),
        ({"bandwidth_gbs": None}, "Expected `float`, got `null` - at `$[...][0].bandwidth_gbs`"),
        ({"peak_tflops.bfloat16": -1}, "Expected `float` > 0.0 - at `$[...][0].peak_tflops"),
        ({"peak_tflops.bfloat16": 242}, "peak_tflops.bfloat16 is 242.0, over half of 242.0 with sparsity"),
        ({"peak_tflops.bfloat16": 120}, "peak_tflops.bfloat16 is 120.0, not half of 242.0"),
        ({"source": ""}, "Expected `str` of length >= 1 - at `$[...][0].source`"),
        ({"note": ...}, "Object missing required field `note`"),
        ({"speed": 1}, "Object contains unknown field `speed`"),
        ({"peak_tflops": {"float32": 1}}, "peak_tflops must have float32, tf32, bfloat16, float16, fp8"),
        ({"aliases": ["NVIDIA L4"]}, "NVIDIA L4 is listed twice"),
    ],
)
def test_a_broken_table_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = yaml.safe_load(TABLE.read_text(encoding="utf-8"))["gpus"]
    row = next(row for row in rows if row["name"] == "NVIDIA L4")
    for key, value in change.items():
        block, _, name = key.rpartition(".")
        if value is ...:
            del row[name]
        else:
            (row[block] if block else row)[name] = value
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"gpus": [row]}, sort_keys=False), encoding="utf-8")
    with pytest.raises(LlmprofError) as caught:
        read_gpus(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith("mine.yaml: ")
