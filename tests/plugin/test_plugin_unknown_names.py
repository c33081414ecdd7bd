"""Names of ours that do not exist, in an ini file or as a marker: an error with the nearest, not silence."""

from __future__ import annotations

import pytest
from plugin_bench import clean

ALLOWED = (
    "llmprof_child_options, llmprof_columns, llmprof_compare, llmprof_config_dir, llmprof_override, llmprof_run_dir, "
    "llmprof_save, llmprof_share_gpu, llmprof_stage, llmprof_store, llmprof_strict"
)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("llmprof_stages", "llmprof_stage"),
        ("LLMPROF_Overrides", "llmprof_override"),
        ("llmprof-strict", "llmprof_strict"),
    ],
)
@pytest.mark.parametrize("file", ["pytest.ini", "pyproject.toml"])
def test_an_ini_key(bench, key, nearest, file):
    (bench.path / "pytest.ini").unlink()
    head = "[pytest]" if file == "pytest.ini" else "[tool.pytest.ini_options]"
    (bench.path / file).write_text(f"{head}\n{key} = 'x'\n")
    bench.test("def test_plain(): pass\n")
    text = f"unknown ini key {key} in {file} (did you mean '{nearest}'?); allowed: {ALLOWED}"
    assert bench.usage_error() == text


@pytest.mark.parametrize("workers", [[], ["-n1"]])
def test_an_ini_key_given_as_an_option(bench, workers):
    bench.test("def test_plain(): pass\n")
    text = bench.usage_error(args=["-o", "llmprof_stages=nsys", *workers], apart=True)
    assert "unknown ini key llmprof_stages in -o" in text
    assert "did you mean 'llmprof_stage'" in text


@pytest.mark.parametrize("key", ["llmprof_strict", "llmprof_share_gpu"])
def test_an_ini_value_that_is_no_switch(bench, key):
    """Not after the tests, not where it is read alone, and not without its name."""
    bench.ini(**{key: "maybe"})
    bench.test("def test_plain(): pass\n")
    text = f"the ini value {key} cannot be read: invalid truth value 'maybe'; it must be true or false"
    assert bench.usage_error() == text


def test_a_configuration_directory_is_named_by_what_gave_it(bench):
    bench.ini(llmprof_config_dir="nowhere")
    bench.test("def test_it(llmprof): pass\n")
    assert bench.usage_error().startswith(f"llmprof_config_dir={bench.path}/nowhere: ")
    assert bench.usage_error(args=["--llmprof-config-dir=gone"]).startswith("--llmprof-config-dir=")


def test_another_plugins_key(bench):
    bench.ini(llmprof_extra="x")
    (bench.path / "conftest.py").write_text("def pytest_addoption(parser): parser.addini('llmprof_extra', 'mine')\n")
    bench.test("def test_plain(): pass\n")
    bench.passed()


@pytest.mark.parametrize("workers", [[], ["-n1"]])
def test_a_marker(bench, workers):
    bench.ini()
    path = bench.path / "pytest.ini"
    path.write_text(path.read_text().replace("--strict-markers --strict-config", ""))
    bench.test(
        """
import pytest
@pytest.mark.llmprof_gates(cer="<=0.05")
def test_pages(llmprof):
    raise AssertionError("it ran")
@pytest.mark.other
def test_plain():
    pass
"""
    )
    result = (bench.run_apart if workers else bench.run)(args=workers)
    result.assert_outcomes(errors=1, passed=1, warnings=2)
    result.stdout.fnmatch_lines(
        ["*llmprof_gates of *: unknown marker (did you mean 'llmprof_gate'?); allowed: llmprof, llmprof_gate"]
    )
    assert "it ran" not in result.stdout.str()
    clean(result)
