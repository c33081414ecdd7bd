"""The pytest plugin, the only room that imports pytest. Importing it is cheap: no torch, nothing is composed."""

from pytest_llmprof.plugin.manager import (
    pytest_addhooks,
    pytest_addoption,
    pytest_cmdline_main,
    pytest_configure,
    pytest_load_initial_conftests,
    pytest_plugins,
)

__all__ = [
    "pytest_addhooks",
    "pytest_addoption",
    "pytest_cmdline_main",
    "pytest_configure",
    "pytest_load_initial_conftests",
    "pytest_plugins",
]
