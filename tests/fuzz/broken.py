"""Strategies for broken input that all properties share."""

from __future__ import annotations

from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st

SLOW = settings(max_examples=max(settings.default.max_examples // 6, 10), phases=[Phase.explicit, Phase.generate])
"""Of a property that takes a tenth of a second for each case, or runs with many parameters: a sixth of the cases, and
none to find a simpler one."""

ODD_NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1e-9, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**30, 1e300, -1e300, 4e12, -4e12]),
    st.integers(),
    st.floats(),
)
ODD_TEXTS = st.one_of(
    st.sampled_from(["", "\x00", "\ud800", "a\u202eb", "|", "<script>", "`", "\x1b[31m", "n/a", "1,234", "x" * 5000]),
    st.text(max_size=20),
)
LEAVES = st.one_of(st.none(), st.booleans(), ODD_NUMBERS, ODD_TEXTS)


def json_values(leaves: st.SearchStrategy[Any] = LEAVES) -> st.SearchStrategy[Any]:
    """Well-formed JSON of any shape, and with numbers that JSON lacks (NaN)."""
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=12,
    )


def assert_one_line(error: Exception, start: str = "") -> None:
    """As our errors are; *start* is what the line begins with."""
    assert str(error)
    assert "\n" not in str(error)
    assert str(error).startswith(start)


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """*data* with some bytes changed, cut out, put in or repeated."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 40))
        what = draw(st.sampled_from(["cut", "put", "replace", "repeat", "end"]))
        new = draw(st.binary(max_size=8) | st.sampled_from([b"null", b"-", b"1e400", b"[", b"}", b'"', b",", b"\xff"]))
        middle = {"cut": b"", "put": new + data[at : at + length], "replace": new, "repeat": 2 * data[at : at + length]}
        data = data[:at] + (b"" if what == "end" else middle[what] + data[at + length :])
    return data


@st.composite
def with_odd_values(draw: st.DrawFn, value: Any) -> Any:
    """JSON like *value* with some of its parts replaced by others, renamed or left out."""

    def places(one: Any, path: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        inner = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
        return [path, *(place for key, part in inner for place in places(part, (*path, key)))]

    def changed(one: Any, path: tuple[Any, ...], new: Any) -> Any:
        if not path:
            return new
        copy = one.copy()
        if len(path) == 1 and new is ...:
            del copy[path[0]]
        else:
            copy[path[0]] = changed(one[path[0]], path[1:], new)
        return copy

    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(value, ())))
        new = draw(st.just(...) | json_values()) if path else draw(json_values())
        value = changed(value, path, new)
    return value
