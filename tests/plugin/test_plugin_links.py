"""Nothing is written through a link that lies in the way, nor by two sessions at once (issue 15, line 14)."""

from __future__ import annotations

import fcntl
import os

import pytest
from plugin_bench import clean, files, wait_for

ECHO = ("model=echo", "dataset=blank", "infer.prompt='hello world'", "output/torch=full")
ARGS = ["--llmprof-stage=direct_inference"]
SAVE_DIR = "pipeline.direct_inference.output.{}.save_dir={}"


def places(bench, directory):
    """Overrides that put both outputs into *directory*."""
    bench.echo()
    bench.test()
    return (*ECHO, *(SAVE_DIR.format(kind, directory) for kind in ("prediction", "visualization")))


def test_outputs_replace_links_and_leave_what_they_lead_to(bench, tmp_path):
    out, kept = tmp_path / "out", tmp_path / "kept.txt"
    out.mkdir()
    kept.write_text("mine\n")
    for name in ("predictions.jsonl", "predictions.md"):
        (out / name).symlink_to(kept)
    os.link(kept, tmp_path / "second name")
    bench.passed(*places(bench, out), args=ARGS)
    assert kept.read_text() == "mine\n"
    assert not (out / "predictions.jsonl").is_symlink()
    assert (out / "predictions.jsonl").read_text().count("\n") == 1
    assert (out / "predictions.md").read_text().startswith("# ")


def test_a_stage_directory_replaces_a_link(bench, tmp_path):
    bench.echo()
    bench.test()
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "mine.txt").write_text("mine\n")
    stage_dir = bench.path / "run" / "test_it" / "test_pages" / "direct_inference"
    stage_dir.parent.mkdir(parents=True)
    stage_dir.symlink_to(kept)
    bench.passed(*ECHO, args=[*ARGS, "--llmprof-run-dir=run"])
    assert files(kept) == {"mine.txt"}
    assert not stage_dir.is_symlink()
    assert {"metrics.json", "pred/predictions.jsonl", "viz/predictions.md"} <= files(stage_dir)


@pytest.mark.parametrize("part", ["test_it", "test_it/test_pages"])
def test_nothing_is_made_or_removed_behind_a_link(bench, tmp_path, part):
    bench.echo()
    bench.test()
    kept = tmp_path / "kept"
    for name in ("test_pages/direct_inference", "direct_inference"):
        (kept / name).mkdir(parents=True)
        (kept / name / "mine.txt").write_text("mine\n")
    before = files(kept)
    link = bench.path / "run" / part
    link.parent.mkdir(parents=True)
    link.symlink_to(kept)
    result = bench.run(*ECHO, args=[*ARGS, "--llmprof-run-dir=run"])
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*{part} is a link, and a run writes nothing behind one: remove it"])
    clean(result)
    assert files(kept) == before


def test_a_link_named_run_json_is_a_run(bench):
    bench.test()
    (bench.path / "run").mkdir()
    (bench.path / "run" / "run.json").symlink_to("nothing")
    assert "already holds a run" in bench.usage_error(args=["--llmprof-run-dir=run"])


def test_a_second_session_into_one_gallery_is_refused(bench, tmp_path):
    """Before its model loads; the first one's files stay whole. Later the place is free again."""
    out = tmp_path / "out"
    given = places(bench, out)
    first = bench.start(*given, "infer.prompt='slow one two'", args=ARGS)
    wait_for(bench.path / "slow.started")
    try:
        result = bench.run(*given, args=[*ARGS, "--llmprof-run-dir=second"])
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines([f"*save_dir*: another session writes into {out} now: set another directory"])
        clean(result)
    finally:
        first.kill()
        first.communicate(timeout=180)
    bench.passed(*given, args=[*ARGS, "--llmprof-run-dir=third"])


def test_one_output_in_use_is_enough(bench, tmp_path):
    bench.echo()
    bench.test()
    out = tmp_path / "out"
    out.mkdir()
    handle = os.open(out, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        result = bench.run(*ECHO, SAVE_DIR.format("prediction", out), args=ARGS)
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["*output.prediction.save_dir*another session writes into*"])
    finally:
        os.close(handle)
