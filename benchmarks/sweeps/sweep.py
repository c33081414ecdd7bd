"""One test parameter for each value of a sweep, with the keys that the value sets."""

import pytest


def sweep(values, *overrides):
    """Parameters for *values*; in *overrides* `{}` stands for the value. A key on the command line beats them."""
    return [
        pytest.param(
            value,
            id=str(value),
            marks=pytest.mark.llmprof(overrides=[override.format(value) for override in overrides]),
        )
        for value in values
    ]
