"""What the sweeps share: parameters with the keys that they set, engines that cannot run, tables."""

import json
from contextlib import closing

import pytest

from pytest_llmprof.errors import ModelError
from pytest_llmprof.models.base import NoPhases


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


def why_not(request):
    """Why this test's engine cannot run its batch on this machine, in the engine's own words; None where it can.

    It is asked for the first token of the batch, since a model that is kept was loaded for another size.
    """
    try:
        model = request.getfixturevalue("llmprof_model")
        infer = request.getfixturevalue("llmprof_config").infer
        pages = request.getfixturevalue("llmprof_dataset")[: infer.batch_size]
        with closing(model.generate([page.load() for page in pages], infer, NoPhases())) as tokens:
            next(tokens, None)
    except (ModelError, pytest.skip.Exception) as error:
        return str(error)
    return None


def markdown(head, rows):
    """A table, laid out to be read as it is: its first column is text, the others are figures."""
    widths = [max(3, *map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = [f":{'-' * (widths[0] - 1)}", *(f"{'-' * (width - 1)}:" for width in widths[1:])]

    def line(cells):
        padded = [cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]
        return f"| {' | '.join(padded)} |\n"

    return "".join(map(line, [head, rule, *rows]))


def publish(out_dir, name, found, text, capsys):
    """Write *found* to NAME.json and its table *text* to NAME.md in *out_dir*, and print the table."""
    (out_dir / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (out_dir / f"{name}.md").write_text(text, encoding="utf-8")
    with capsys.disabled():
        print(f"\n{text}\n{out_dir / f'{name}.md'}")
