"""`--llmprof-stage=static_analysis`: FLOPs, bytes, floors, MFU and MBU, from the options to the files."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ElementTree

import pytest
from plugin_bench import clean, files

STAGE = ["--llmprof-stage=static_analysis"]
RANDOM = ("model.weights=random", "infer.max_new_tokens=5")
"""Random weights never end an answer early: four decode steps."""
SLOW = ("pipeline.static_analysis.peak_tflops=1000", "pipeline.static_analysis.bandwidth_gbs=10000")
"""A card that no CPU reaches."""
GATED = """
import pytest

@pytest.mark.llmprof_gate(decode_mbu=">=0.5")
def test_pages(llmprof):
    llmprof.run()
"""
NAMES = [f"{phase}_{kind}" for kind in ("mfu", "mbu") for phase in ("vision", "prefill", "decode")]


def metrics(bench, test="test_it/test_pages") -> dict:
    return json.loads((bench.stage_dir(test, "static_analysis") / "metrics.json").read_text(encoding="utf-8"))


def report(bench, test="test_it/test_pages") -> str:
    return (bench.stage_dir(test, "static_analysis") / "report.md").read_text(encoding="utf-8")


def test_with_peaks_of_ones_own(bench):
    bench.test()
    bench.passed(*RANDOM, *SLOW, args=STAGE)
    found = metrics(bench)
    block = found["static_analysis"]
    assert block["applicable"] is True
    assert block["peaks"]["flops"] == 1e15
    assert block["peaks"]["source"] == "; ".join(SLOW)
    assert list(block["phases"]) == ["vision", "sam", "clip", "projector", "prefill", "decode"]
    for name, phase in block["phases"].items():
        assert phase["flops"] > 0
        assert sum(phase["parts"].values()) == phase["bytes"]
        assert phase["ms"] == pytest.approx(found["figures"][f"{name}_ms"])  # one page, one round
        assert phase["mfu"] == pytest.approx(phase["flops"] / 1e15 / (phase["ms"] / 1e3))
        assert phase["mbu"] == pytest.approx(phase["bytes"] / 1e13 / (phase["ms"] / 1e3))
        assert phase["parent"] == ("vision" if name in ("sam", "clip", "projector") else None)
    decode = block["phases"]["decode"]
    for name in NAMES:
        phase, _, kind = name.partition("_")
        assert found["figures"][name] == block["phases"][phase][kind]
        assert 0 < found["figures"][name] < 1
    assert decode["bound"] == "memory"
    step = block["decode_step"]
    assert (step["steps"], step["flops"] * 4, step["bytes"] * 4) == (4, decode["flops"], decode["bytes"])
    assert step["floor_tokens_per_s"] == pytest.approx(1e3 / step["floor_ms"])
    (batch,) = block["batches"]
    assert (batch["tokens"], batch["details"]["experts_counted"]) == ([5], True)
    text = report(bench)
    assert "## Roofline" in text
    assert "| decode | memory | " in text
    assert "counted at the router in a pass outside the clock" in text
    assert "over 100 %" not in text


def test_files(bench):
    bench.test()
    bench.passed(*RANDOM, *SLOW, args=STAGE)
    directory = bench.stage_dir(stage="static_analysis")
    assert files(directory) == {
        "config.yaml",
        "environment.json",
        "inputs.jsonl",
        "metrics.json",
        "report.md",
        "roofline.csv",
        "roofline.md",
        "roofline.svg",
    }
    phases = metrics(bench)["static_analysis"]["phases"]
    with (directory / "roofline.csv").open(encoding="utf-8") as stream:
        rows = {row["phase"]: row for row in csv.DictReader(stream)}
    assert set(rows) == set(phases)
    assert int(rows["decode"]["bytes"]) == phases["decode"]["bytes"]
    assert int(rows["decode"]["cache_bytes"]) == phases["decode"]["parts"]["cache"]
    assert float(rows["vision"]["mfu"]) == phases["vision"]["mfu"]
    assert rows["sam"]["parent"] == "vision"
    picture = ElementTree.parse(directory / "roofline.svg").getroot()
    texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"FLOP / byte", "1.00 PFLOP/s", "10.0 TB/s"} <= set(texts)
    assert [text for text in texts if text.startswith("decode, ")]


def test_on_a_cpu_there_are_flops_and_bytes_and_no_shares(bench):
    bench.test(GATED)
    bench.passed(*RANDOM, args=STAGE)
    found = metrics(bench)
    assert all(found["figures"][name] is None for name in NAMES)
    assert found["static_analysis"]["phases"]["decode"]["flops"] > 0
    assert "it ran on a CPU" in found["static_analysis"]["peaks"]["reason"]
    assert found["gates"][0]["outcome"] == "not applicable"
    assert "MFU, MBU and floors that need a missing peak are n/a: it ran on a CPU" in report(bench)


def test_a_gate_can_fail(bench):
    bench.test(GATED)
    result = bench.run(*RANDOM, *SLOW, args=STAGE)
    result.assert_outcomes(failed=1)
    clean(result)
    result.stdout.fnmatch_lines(["llmprof_gate: decode_mbu is *, limit >=0.5"])


def test_over_100_percent_is_flagged(bench):
    bench.test()
    low = ("pipeline.static_analysis.peak_tflops=0.000001", "pipeline.static_analysis.bandwidth_gbs=10000")
    bench.passed(*RANDOM, *low, args=STAGE)
    found = metrics(bench)
    assert found["figures"]["vision_mfu"] > 1
    (line,) = [line for line in report(bench).splitlines() if "over 100 %" in line]
    assert line.startswith("> **Note:** over 100 %: vision MFU ")
    assert "MBU" not in line


def test_batches_count_the_experts_of_each_step(bench):
    bench.test()
    bench.passed(*RANDOM, "dataset.limit=3", "infer.batch_size=2", args=STAGE)
    found = metrics(bench)
    pair, single = found["static_analysis"]["batches"]
    assert [len(pair["pages"]), len(single["pages"])] == [2, 1]
    assert single["details"]["experts_decode_step"] == 6  # three layers, top 2
    assert 6 <= pair["details"]["experts_decode_step"] <= 12
    assert pair["details"]["experts_counted"] is True
    assert len({sample["page"] for sample in found["samples"]}) == 3


def test_turned_off_it_only_measures(bench):
    bench.test()
    bench.passed(*RANDOM, "pipeline.static_analysis.enable=false", args=STAGE)
    found = metrics(bench)
    assert "static_analysis" not in found
    assert found["figures"]["decode_ms"] > 0
    assert "roofline.csv" not in files(bench.stage_dir(stage="static_analysis"))


def test_a_callable_is_not_applicable(bench):
    bench.test("def test_pages(llmprof):\n    assert llmprof.measure(sum, [1, 2]).decode_mfu is None\n")
    bench.passed(args=STAGE)
    block = metrics(bench)["static_analysis"]
    assert (block["applicable"], block["phases"]) == (False, {})
    assert "n/a: the FLOPs and bytes of a callable are not known" in report(bench)


def test_a_model_that_counts_no_costs_is_not_applicable(bench):
    bench.echo()
    bench.test()
    bench.passed("model=echo", "dataset=blank", "infer.prompt='hello world'", args=STAGE)
    assert metrics(bench)["static_analysis"]["reason"].startswith("the model echo does not count its costs")


def echo_with_costs(bench, body: str) -> None:
    """The echo, which counts its costs as *body* says."""
    bench.echo()
    path = bench.path / "conftest.py"
    method = f"""
    def costs(self, images, infer, tokens):
        from pytest_llmprof.models.base import Costs, PhaseCost

        {body}

    def prompt(self, infer):"""
    path.write_text(path.read_text().replace("\n    def prompt(self, infer):", method), encoding="utf-8")


def test_a_third_partys_costs(bench):
    decode = 'PhaseCost(1000 * sum(tokens), 10, {"weights": 10})'
    echo_with_costs(bench, f'return Costs({{"decode": {decode}, "<b>|x": PhaseCost(1, 1)}}, "| a _note_")')
    bench.test()
    bench.passed("model=echo", "dataset=blank", "infer.prompt='a b c'", *SLOW, args=STAGE)
    block = metrics(bench)["static_analysis"]
    assert block["phases"]["decode"]["flops"] == 3000
    assert block["phases"]["<b>|x"]["ms"] is None
    text = report(bench)
    assert "<b>|x" not in text
    assert "<b>" not in (bench.stage_dir(stage="static_analysis") / "roofline.svg").read_text()


def test_a_page_that_fails_leaves_the_others_costs(bench):
    from PIL import Image

    bench.test()
    root = bench.path / "scans"
    root.mkdir()
    Image.new("RGB", (60, 40), "white").save(root / "good.png")
    (root / "bad.png").write_bytes(b"no picture")
    overrides = ("dataset=image_folder", "dataset.root=scans", "dataset.limit=null", *RANDOM)
    bench.run(*overrides, args=STAGE).assert_outcomes(failed=1)
    (batch,) = metrics(bench)["static_analysis"]["batches"]
    assert batch["pages"] == ["good"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_on_a_gpu_of_the_table(bench, dtype):
    import torch

    from pytest_llmprof.stages.static_analysis.hardware import find_gpu

    name = torch.cuda.get_device_name(0)
    row = find_gpu(name)
    bench.test()
    keys = ("infer=reference", "model.device=cuda", f"model.dtype={dtype}", "measure.warmup=1")
    bench.passed(*RANDOM, *keys, args=STAGE)
    found = metrics(bench)
    block = found["static_analysis"]
    assert block["card"] == name
    if row is None:
        assert "is not in the table" in block["peaks"]["reason"]
        assert all(found["figures"][name] is None for name in NAMES)
        return
    assert block["peaks"]["flops"] == row.peak_tflops[dtype] * 1e12
    assert block["peaks"]["bandwidth"] == row.bandwidth_gbs * 1e9
    assert all(0 < found["figures"][name] < 1 for name in NAMES)
    assert block["batches"][0]["details"]["experts_counted"] is True


def test_costs_that_are_no_numbers_are_the_models_fault(bench):
    echo_with_costs(bench, 'return Costs({"decode": PhaseCost(flops=float("nan"), bytes=1)})')
    bench.test()
    result = bench.run("model=echo", "dataset=blank", "infer.prompt='a b c'", args=STAGE)
    result.assert_outcomes(failed=1)
    clean(result)
    text = "the model echo counts nan FLOPs and 1 bytes in phase decode: costs() must"
    result.stdout.fnmatch_lines([f"{text}*"])
    assert metrics(bench)["errors"][0]["error"].startswith(text)
