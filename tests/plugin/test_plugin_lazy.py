"""Where no test asks for it the plugin does nothing: no heavy import, no composition, no directory."""

from __future__ import annotations

import pytest

PLAIN = """
import sys

def test_plain():
    # Hydra's own pytest plugin imports hydra; composing with it would load OmegaConf's and our modules.
    assert not {"torch", "transformers", "nvtx", "PIL", "numpy"} & set(sys.modules)
    assert not [name for name in sys.modules if name.startswith("pytest_llmprof.config.")]
    assert "pytest_llmprof.run.session" not in sys.modules
    assert not {"msgspec", "jinja2", "rapidfuzz", "psutil"} & set(sys.modules)
    assert "pytest_llmprof.plugin" in sys.modules

def test_nothing_was_composed(request):
    from hydra.core.global_hydra import GlobalHydra
    assert not GlobalHydra.instance().is_initialized()
    from pytest_llmprof.plugin.shared import SHARED
    assert not request.config.stash[SHARED].has_session
"""


@pytest.mark.parametrize(
    ("ini", "args"),
    [
        ({}, []),
        # Ini values are for the tests that ask: without one they are not even read for mistakes.
        ({"llmprof_stage": "torch_profiler"}, []),
        ({"llmprof_stage": "no_such_stage", "llmprof_run_dir": "/proc/nothing"}, []),
        ({}, ["-p", "no:benchmark", "-W", "error"]),
    ],
)
def test_serial(bench, ini, args):
    bench.ini(tiny=bool(ini), **ini)
    bench.test(PLAIN)
    result = bench.run_apart(args=args, fresh=True)
    result.assert_outcomes(passed=2)
    assert "llmprof:" not in result.stdout.str()
    assert not (bench.path / "llmprof-runs").exists()


def test_in_xdist_workers(bench):
    bench.ini(tiny=False)
    bench.test(
        PLAIN.partition("def test_nothing")[0].replace(
            '    assert "pytest_llmprof.run.session" not in sys.modules\n', ""
        )
    )
    result = bench.run_apart(args=["-n2"], fresh=True)
    result.assert_outcomes(passed=1)
    assert not (bench.path / "llmprof-runs").exists()


def test_a_test_that_asks_for_its_configuration_loads_no_torch(bench):
    bench.test(
        """
import sys
def test_it(llmprof_output, llmprof_config):
    assert not {"torch", "transformers", "nvtx"} & set(sys.modules)
"""
    )
    bench.run_apart(fresh=True).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "args", [["--collect-only"], ["--setup-plan"], ["-k", "nothing"], ["--deselect", "test_it.py"]]
)
def test_no_directory_where_nothing_runs(bench, args):
    bench.test()
    bench.run(args=args)
    assert not (bench.path / "llmprof-runs").exists()


def test_show_config_makes_no_directory(bench):
    bench.test()
    assert bench.run(args=["--llmprof-show-config"]).ret == 0
    assert not (bench.path / "llmprof-runs").exists()
