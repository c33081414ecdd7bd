"""The collector leaves out what was there before, and is as it was afterwards."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from pytest_llmprof.measure import collector
from pytest_llmprof.measure.collector import frozen_garbage_collector, paused_garbage_collector


class Circle:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def not_frozen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(collector, "_ours", False)
    gc.unfreeze()
    yield
    gc.freeze()  # as for all other tests


def test_garbage_is_collected_before_and_what_lives_is_left_out() -> None:
    garbage = weakref.ref(Circle())
    with frozen_garbage_collector():
        assert garbage() is None
        assert gc.get_freeze_count() > 1000
        made = weakref.ref(Circle())
        gc.collect()
        assert made() is None
    assert gc.get_freeze_count() == 0


def test_without_collecting_garbage_stays() -> None:
    gc.disable()
    try:
        garbage = weakref.ref(Circle())
        with frozen_garbage_collector(collect=False):
            gc.collect()
            assert garbage() is not None
        gc.collect()
        assert garbage() is None
    finally:
        gc.enable()


def test_what_the_user_froze_stays_frozen_and_nothing_else_does() -> None:
    """A model that is made after the user's freeze must be collected once it is dropped."""
    gc.freeze()
    before = gc.get_freeze_count()
    model = Circle()
    with frozen_garbage_collector():
        pass
    assert 0 < gc.get_freeze_count() <= before  # less where other threads have let go of something since
    found = weakref.ref(model)
    del model
    gc.collect()
    assert found() is None


def test_a_block_within_another_neither_thaws_nor_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """To count what is frozen is to walk it: a tenth of a second for torch, transformers and pytest."""
    with frozen_garbage_collector():
        with monkeypatch.context() as patch:
            patch.delattr(gc, "get_freeze_count")
            with frozen_garbage_collector(collect=False):
                pass
            with paused_garbage_collector():
                made = [[] for _ in range(1000)]
        assert gc.get_freeze_count() > 1000
    assert gc.get_freeze_count() == 0
    assert len(made) == 1000


def test_paused_it_counts_nothing_where_little_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch is imported already, that is nothing."""
    gc.collect()
    monkeypatch.delattr(gc, "get_freeze_count")
    with paused_garbage_collector():
        made = [[] for _ in range(100)]
    assert len(made) == 100


def test_what_python_froze_itself_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPython 3.12 begins with some hundred frozen objects; models must be left out of collections and freed there."""
    count = gc.get_freeze_count
    monkeypatch.setattr(gc, "get_freeze_count", lambda: count() + 375)
    model = Circle()
    with frozen_garbage_collector():
        assert count() > 1000
    found = weakref.ref(model)
    del model
    gc.collect()
    assert found() is None


@pytest.mark.parametrize("enabled", [True, False])
def test_paused_it_collects_nothing_and_is_then_as_before(enabled: bool) -> None:
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with paused_garbage_collector():
            assert not gc.isenabled()
        assert gc.isenabled() is enabled
        with pytest.raises(ImportError), paused_garbage_collector():
            importlib.import_module("no_such_library")
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()


def test_what_was_made_while_paused_is_not_walked_at_its_end() -> None:
    gc.collect()
    collections = sum(one["collections"] for one in gc.get_stats())
    with paused_garbage_collector():
        made = [[] for _ in range(100_000)]
    made.append([])
    assert sum(one["collections"] for one in gc.get_stats()) == collections
    assert gc.get_freeze_count() == 0
    gc.freeze()  # by the user
    before = gc.get_freeze_count()
    with paused_garbage_collector():
        made += [[] for _ in range(1000)]
    assert 0 < gc.get_freeze_count() <= before  # less where something of the frozen has gone since


IMPORTS = """
import gc, sys
seen = {}
def note(phase, info):
    for name in ("torch", "transformers", "transformers.modeling_utils"):
        module = sys.modules.get(name)
        if phase == "start" and module is not None and getattr(module.__spec__, "_initializing", False):
            seen[name] = seen.get(name, 0) + 1
gc.callbacks.append(note)
from pytest_llmprof.config.schema import InferSettings, ModelSettings
from pytest_llmprof.models.deepseek_ocr import plugin
model = plugin().load(ModelSettings(weights="random", size="tiny", mode="tiny", device="cpu"), InferSettings())
assert gc.isenabled() and "transformers.modeling_utils" in sys.modules
print(seen)
"""


def test_nothing_is_collected_while_a_model_imports_its_libraries() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert done.stdout == "{}\n"
