"""Every command of README.md and docs/ runs here as it stands, or says where it runs or what it needs.

The directory holds what the commands speak of, and its ini file makes runs small: a key on the command line wins over
it. What a user would replace (`BEFORE`, a path of their own) is replaced. pytest and llmprof run in this process.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from plugin_bench import warm_up
from saved_runs import write_run

from pytest_llmprof.cli import main

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = {
    "dataset.limit": "1",
    "infer.max_new_tokens": "8",
    "measure.rounds": "1",
    "measure.warmup": "0",
    "pipeline/torch_profiler": "min",
}
LARGER = {
    "comparing.md": {"measure.rounds": "2"},  # a comparison asks for the noise of rounds
    "profiling.md": {"infer.max_new_tokens": "82"},  # windows that begin late
    "quickstart.md": {"infer.max_new_tokens": "22"},
}

ELSEWHERE = {
    "README.md": {
        'python3 -m venv .venv && .venv/bin/pip install -q -e . && .venv/bin/python -m pytest benchmarks '
        "--llmprof-stage=torch_profiler": "tests/ci/test_workflows.py::test_a_step_in_a_clean_clone",
        'python3 -m venv .venv && .venv/bin/pip install -q -e ".[test]" && .venv/bin/python -m pytest tests -n 2 '
        "--dist worksteal": "tests/ci/test_workflows.py::test_a_step_in_a_clean_clone",
    },
    "benchmarks.md": {
        "pytest benchmarks/sweeps --llmprof-stage=direct_inference":
            "tests/plugin/test_plugin_sweeps.py::test_one_of_each_sweep_runs_and_the_command_line_beats_it",
    },
    "ci.md": {
        'cat llmprof-runs/latest/summary.md >> "$GITHUB_STEP_SUMMARY"':
            "tests/ci/test_workflows.py::test_the_summary_goes_to_the_job",
        "llmprof init --model /models/DeepSeek-OCR": "tests/cli/test_init.py::test_a_model_of_its_own",
    },
    "comparing.md": {
        "llmprof ab --a-ref origin/main --b-ref HEAD --metric tpot_ms:1% --metric cer:0.005 --minutes 30 --format "
        "markdown --out ab benchmarks > ab.md || code=$?": "tests/cli/test_ab.py::test_two_revisions",
        'cat ab.md >> "$GITHUB_STEP_SUMMARY"': "tests/ci/test_workflows.py::test_the_summary_goes_to_the_job",
        'exit "${code:-0}"': "tests/cli/test_ab.py::test_two_overrides",
    },
    "engines.md": {
        "pytest benchmarks --llmprof-override infer=compiled": "tests/models/test_model_compiled.py::test_pages",
    },
    "extending.md": {
        "pytest --llmprof-stage=cold,torch_profiler --llmprof-override pipeline.cold.limit_ms=500":
            "tests/docs/test_docs.py::test_the_plugin_of_extending_md_runs",
    },
    "models.md": {
        "pytest benchmarks --llmprof-config-dir=conf --llmprof-override model=my_ocr":
            "tests/models/test_any_model_run.py::test_a_family_is_a_preset_and_its_boxes_a_hook",
        "python benchmarks/compare_models.py out glm=glm_ocr:/models/GLM-OCR "
        "lighton=lighton_ocr:/models/LightOnOCR-2 --set dataset=image_folder dataset.root=scans":
            "tests/models/test_any_model_run.py::test_compare_models_as_a_script",
        "pytest benchmarks --llmprof-override model=glm_ocr --llmprof-override model.path=/models/GLM-OCR":
            "tests/models/test_any_model_run.py::test_a_family_is_a_preset_and_its_boxes_a_hook",
    },
    "nsight.md": {
        "pytest benchmarks --llmprof-stage=nsys --llmprof-override pipeline.nsys.capture=decode --llmprof-override "
        "pipeline.nsys.occurrences=3":
            "tests/plugin/test_plugin_nsys.py::test_occurrences_of_one_phase_and_one_that_never_opens",
        "pytest benchmarks --llmprof-stage=nsys --llmprof-override 'pipeline.nsys.env={LD_LIBRARY_PATH: "
        "/opt/nsys-libs}'": "tests/plugin/test_plugin_nsys.py::test_phases_and_predictions",
    },
    "statistics.md": {
        "python benchmarks/gates/simulate.py --gates 3000 --seed 2027":
            "tests/compare/test_simulation.py::test_recorded_noise",
        "python benchmarks/gates/replay.py": "tests/compare/test_replay.py::test_the_promised_rates_hold",
        "python benchmarks/gates/record.py OUT --minutes 8":
            "tests/compare/test_replay.py::test_a_process_is_recorded",
        "python benchmarks/gates/record.py OUT --levels 0,5 --rounds 16 --minutes 10":
            "tests/compare/test_replay.py::test_a_process_is_recorded",
        "python benchmarks/gates/record.py OUT --duet --levels 0,2,5 --rounds 8":
            "tests/compare/test_replay.py::test_a_duet_is_recorded",
    },
}
"""Commands that another test runs, or what they come to: by its file and name. They take minutes or need a program."""

FULL_SIZE = "a GPU: the model at its full size; tests/plugin/test_plugin_sweeps.py runs these sweeps at their smallest"
NOT_HERE = {
    "benchmarks.md": {
        "pytest benchmarks/sweeps/test_engines.py --llmprof-stage=static_analysis --llmprof-override "
        "model=deepseek_ocr_random --llmprof-override measure.rounds=3": FULL_SIZE,
        "pytest benchmarks/sweeps/test_modes.py -k test_page --llmprof-stage=static_analysis --llmprof-override "
        "model=deepseek_ocr_random --llmprof-override infer=reference": FULL_SIZE,
        'pytest benchmarks/sweeps/test_modes.py benchmarks/sweeps/test_batch.py -k "test_page or test_batch" '
        "--llmprof-stage=static_analysis --llmprof-override model=deepseek_ocr_random --llmprof-override "
        "infer=reference": FULL_SIZE,
        "pytest benchmarks/sweeps --llmprof-stage=direct_inference --llmprof-override model=deepseek_ocr_random":
            FULL_SIZE,
        "pytest benchmarks/sweeps/test_decode.py --llmprof-stage=torch_profiler --llmprof-override measure.rounds=5":
            "a GPU: its numbers are of one; tests/plugin/test_plugin_sweeps.py runs this sweep at its smallest",
    },
    "ci.md": {
        "pip install pytest-github-actions-annotate-failures": "it changes the environment; the extra test has it",
        'pytest --dist=loadgroup -o testpaths=benchmarks --llmprof-stage=torch_profiler --tx '
        '"ssh=gpu1//python=/srv/venv/bin/python//chdir=/srv/project//env:CUDA_VISIBLE_DEVICES=0" --tx '
        '"ssh=gpu1//python=/srv/venv/bin/python//chdir=/srv/project//env:CUDA_VISIBLE_DEVICES=1" --tx '
        '"ssh=gpu2//python=/srv/venv/bin/python//chdir=/srv/project//env:CUDA_VISIBLE_DEVICES=0"':
            "other machines; tests/cluster/test_ssh.py runs workers through a real sshd",
        "llmprof submit --cluster slurm --shards 8 --slurm-partition=gpu --slurm-gres=gpu:1 --slurm-time=60 "
        "-o llmprof-runs/nightly -- benchmarks --llmprof-stage=torch_profiler":
            "a Slurm cluster with GPUs; tests/cluster/test_submit.py submits to a real Slurm without",
    },
    "comparing.md": {
        "llmprof merge RUN... -o RUN": "no command but its form; ci.md has some that run here",
        "llmprof submit --cluster slurm --shards N -- ARGS": "no command but its form",
    },
    "nsight.md": {
        "pytest benchmarks --llmprof-stage=torch_profiler,nsys,ncu": "a GPU, for ncu; tests/stages has ncu's output",
        "pytest benchmarks --llmprof-stage=nsys,ncu --llmprof-override pipeline.ncu.kernels=top:3 --llmprof-override "
        "pipeline.ncu.set=full": "a GPU, for ncu",
        "ln -s /usr/lib/nsight-systems/host-linux-x64 /usr/lib/x86_64-linux-gnu/nsight-systems/":
            "it changes the system",
        "pip install nvtx==0.2.11": "it changes the environment; .ci/run installs this version beside an old nsys",
    },
    "overhead.md": {
        "pytest benchmarks/sweeps/test_overhead.py --llmprof-stage=direct_inference --llmprof-override "
        "model=deepseek_ocr_random --llmprof-override infer=fast": FULL_SIZE,
    },
    "quickstart.md": {
        "python3 -m venv .venv && . .venv/bin/activate && pip install -e .":
            "an installation, as in README's commands, which CI runs",
    },
    "statistics.md": {
        "llmprof ab --a infer=compiled --b infer=fast --minutes 8 --metric tpot_ms benchmarks/test_pages.py -k free "
        "--llmprof-stage=direct_inference --llmprof-override model=deepseek_ocr_random --llmprof-override "
        "dataset.limit=1 --llmprof-override infer.ignore_eos=true --llmprof-override infer.max_new_tokens=65 "
        "--llmprof-override measure.rounds=5 --llmprof-override "
        "pipeline.direct_inference.output.prediction.enable=true": "a GPU: its numbers are of one",
        "GATES_MINUTES=9 .ci/gpu OUT gates": "a GPU",
        "python benchmarks/gates/record.py OUT --duet --levels 0,1 --rounds 16 --device cuda --engine fast "
        "--minutes 12": "a GPU",
    },
}
"""Commands that cannot run on any machine that runs these tests, with what they need."""

FIRST = {
    "llmprof merge shard-1 shard-2 shard-3 -o llmprof-runs/all": [
        "pytest benchmarks --llmprof-shard 2/3 --llmprof-run-dir=shard-2",
        "pytest benchmarks --llmprof-shard 3/3 --llmprof-run-dir=shard-3",
    ],
    "llmprof merge shards -o llmprof-runs/all --save main": [
        f"pytest benchmarks --llmprof-shard {number}/2 --llmprof-run-dir=shards/{number}" for number in (1, 2)
    ],
    "llmprof doctor": ["llmprof init --dry-run"],
    "pytest-benchmark compare llmprof-runs/latest/benchmark.json": ["pytest benchmarks"],
}
"""What must have run before a command: the text around it says so."""

CODES = {
    "--fail-on": (0, 1, 3),
    "--llmprof-compare": (0, 1),
    "--llmprof-stage=torch_profiler,nsys": (0, 1),
    "llmprof ab": (0, 1, 3),
    "infer.max_new_token=3": (4,),
}
"""Exit codes by a part of the command: what one finds that holds something against a limit is not known, and a
misspelled key is an error. All others end with 0."""


def commands(document: Path) -> Iterator[str]:
    """The commands in a document's blocks, one line each and without comments: all lines in bash, those after `$` in
    text, and the steps of a workflow."""
    text = document.read_text(encoding="utf-8")
    for language, block in re.findall(r"^```(bash|text|yaml)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        begin = {"bash": "", "text": r"\$ ", "yaml": r"\s*- run: "}[language]
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            command = re.sub(r"\s+#\s.*$", "", line).strip() if re.match(begin, line) else ""
            if command := re.sub(f"^{begin.removeprefix(chr(92) + 's*')}", "", command):
                yield command


ALL = {document.name: list(dict.fromkeys(commands(document))) for document in DOCUMENTS}
HERE: dict[str, list[str]] = {}
"""Those that run here, each in the first document that has it."""
for _name, _found in ALL.items():
    _known = {*ELSEWHERE.get(_name, {}), *NOT_HERE.get(_name, {}), *(one for done in HERE.values() for one in done)}
    HERE[_name] = [one for one in _found if one not in _known]


def test_each_list_names_commands_that_are_there():
    for listed in (ELSEWHERE, NOT_HERE):
        for name, found in listed.items():
            assert not set(found) - set(ALL[name]), name
    assert not set(FIRST) - {one for found in HERE.values() for one in found}
    assert sum(map(len, HERE.values())) > 50


@pytest.mark.parametrize("place", sorted({place for found in ELSEWHERE.values() for place in found.values()}))
def test_the_tests_that_run_commands_are_there(place):
    file, _, name = place.partition("::")
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module", autouse=True)
def warm():
    warm_up()


@pytest.fixture
def workplace(pytester, monkeypatch, tmp_path, name):
    """A directory like a user's: benchmarks, pages, earlier runs, a git repository."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for variable in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
        monkeypatch.delenv(variable, raising=False)
    path = pytester.path
    lines = "".join(f"    {key}={value}\n" for key, value in {**SMALL, **LARGER.get(name, {})}.items())
    (path / "pytest.ini").write_text(f"[pytest]\naddopts = -p no:cacheprovider\nllmprof_override =\n{lines}")
    (path / "benchmarks").mkdir()
    text = (ROOT / "benchmarks" / "test_pages.py").read_text(encoding="utf-8")
    gate = '@pytest.mark.llmprof_gate(cer="<=0.01")\n'
    assert gate in text  # half an answer would break it
    (path / "benchmarks" / "test_pages.py").write_text(text.replace(gate, ""), encoding="utf-8")
    for place in ("a", "letters/b", "drafts/c"):
        image = path / "scans" / f"{place}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(next((ROOT / "pytest_llmprof" / "datasets").rglob("*.png")).read_bytes())
        image.with_suffix(".txt").write_text("true text")
    for side in ("before", "after"):
        for number in range(3):
            write_run(tmp_path / side / str(number), started=f"2026-11-2{number}T10:15:0{len(side) - 5}+00:00")
    for arguments in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "x"], ["tag", "v0.1"]):
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=path, check=True, capture_output=True)
    return path


def stand_ins(tmp_path: Path) -> dict[str, str]:
    """What a user would write in place of these words."""
    return {
        "/models/DeepSeek-OCR": str(ROOT / "pytest_llmprof/models/deepseek_ocr/tiny_reader"),
        "/tmp/gallery": str(tmp_path / "gallery"),
        "llmprof-runs/2026-11-24T10-15-00": "llmprof-runs/latest",
        "BEFORE": str(tmp_path / "before"),
        "AFTER": str(tmp_path / "after"),
        "NAME": "main",
    }


@pytest.fixture
def run(workplace, pytester, monkeypatch, tmp_path) -> Callable[[str], int]:
    """Run one command; gives its exit code."""
    stub = tmp_path / "stub"
    stub.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests/cli/stub_python.py"} "$@"\n')
    stub.chmod(0o755)

    def one(command: str) -> int:
        for word, real in stand_ins(tmp_path).items():
            command = command.replace(word, real)
        program, *arguments = shlex.split(command)
        if program == "pytest":
            return int(pytester.runpytest_inprocess(*arguments, no_reraise_ctrlc=True).ret)
        if program == "pytest-benchmark":
            return subprocess.run([sys.executable, "-m", "pytest_benchmark", *arguments], check=False).returncode
        assert program == "llmprof", command
        if arguments[0] == "ab":  # its processes write a run at once: 12 real ones take minutes
            (workplace / "speed.txt").write_text("0.5")
            arguments = [re.sub(r"^(old|new)/bin/python$", str(stub), word) for word in arguments]
            sides = [f"--{side}-python={stub}" for side in "ab" if f"--{side}-python" not in arguments]
            arguments[1:1] = sides
        if arguments[0] == "merge":  # the document shows two ways to one directory
            shutil.rmtree(workplace / "llmprof-runs" / "all", ignore_errors=True)
        return main(arguments)

    return one


@pytest.mark.slow
def test_a_quick_look_holds_the_gate(pytester, monkeypatch):
    """As it stands, without the small runs' ini: whole answers to as many pages as each document's command takes."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    of_few = [one for found in HERE.values() for one in found if "dataset.limit=" in one and "dataset=" not in one]
    assert {re.search(r"dataset\.limit=(\d+)", one)[1] for one in of_few} == {"2"}
    (quick,) = [one for one in of_few if one in HERE["quickstart.md"]]
    (pytester.path / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "test_pages.py", pytester.path / "benchmarks")
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", *shlex.split(quick)[1:])
    result.assert_outcomes(passed=2)
    for file in pytester.path.glob("llmprof-runs/latest/*/*/*/metrics.json"):
        gates = json.loads(file.read_bytes())["gates"]
        assert [(gate["name"], gate["outcome"]) for gate in gates] == [("cer", "passed")]


def allowed(command: str) -> tuple[int, ...]:
    """The exit codes that are as the document says."""
    return next((codes for part, codes in CODES.items() if part in command), (0,))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, found in HERE.items() if found])
def test_commands(name, run, workplace, capfd):
    for command in HERE[name]:
        for before in FIRST.get(command, ()):
            assert run(before) == 0, before
        code = run(command)
        shown = capfd.readouterr()
        assert code in allowed(command), f"{command}\n{shown.out[-3000:]}\n{shown.err[-3000:]}"
        if code == 4:  # the document shows the message
            (message,) = [line for line in shown.err.splitlines() if line.startswith("ERROR: ")]
            assert f"\n$ {command}\n{message}\n" in (ROOT / "docs" / name).read_text(encoding="utf-8")
