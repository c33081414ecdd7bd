"""The hub: what it may do to the one who asks it for a model. Issue 15, line 16."""

from __future__ import annotations

import _thread
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from pytest_llmprof.config.schema import InferSettings, ModelSettings
from pytest_llmprof.errors import ModelError
from pytest_llmprof.models import checkpoint
from pytest_llmprof.models.checkpoint import find_here, resolve, size_in_hub
from pytest_llmprof.models.deepseek_ocr.checks import checks
from pytest_llmprof.models.from_transformers import checks as document_checks
from pytest_llmprof.models.from_transformers.checkpoint import WANTED

SHA = "0123456789abcdef0123456789abcdef01234567"
INFO = f'{{"_id": "1", "id": "owner/model", "modelId": "owner/model", "sha": "{SHA}", "siblings": []}}'
FILES = [("config.json", 9), ("a.safetensors", 1000), ("b.safetensors", 2000), ("code.py", 5), ("old.bin", 7)]
FILES += [("preprocessor_config.json", 5 << 30)]  # of a size that is seen
TREE = '[{"type": "file", "oid": "x", "size": 9, "path": "config.json"}]'

Answer = Callable[[socket.socket, str], None]


def silent(connection: socket.socket, path: str) -> None:
    """Accepts and never answers."""


def dripping(connection: socket.socket, path: str) -> None:
    """A header that never ends."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    with suppress(OSError):  # closed at last
        while True:
            connection.sendall(b"x")
            time.sleep(0.1)


def answered(text: str, status: str = "200 OK", head: str = "") -> bytes:
    lines = [
        f"HTTP/1.1 {status}",
        "Content-Type: application/json",
        f"Content-Length: {len(text)}",
        head,
        "Connection: close",
    ]
    return ("\r\n".join(line for line in lines if line) + f"\r\n\r\n{text}").encode()


def silent_after_the_first_answer(connection: socket.socket, path: str) -> None:
    if "/tree/" not in path:
        connection.sendall(answered(INFO))


def silent_in_the_files(connection: socket.socket, path: str) -> None:
    if "/resolve/" not in path:
        connection.sendall(answered(TREE if "/tree/" in path else INFO))


def slow(connection: socket.socket, path: str, size: int = 6 << 20) -> None:
    """A file of 6 MiB, of which one arrives each second."""
    if "/resolve/" not in path:
        connection.sendall(answered(TREE.replace("9", str(size)) if "/tree/" in path else INFO))
        return
    head = ["HTTP/1.1 200 OK", f"Content-Length: {size}", f"X-Repo-Commit: {SHA}", f'ETag: "{SHA}"', "", ""]
    with suppress(OSError):
        connection.sendall("\r\n".join(head).encode())
        for _ in range(size >> 16):
            time.sleep(1 / 16)
            connection.sendall(b"x" * (1 << 16))


def endless(connection: socket.socket, path: str) -> None:
    slow(connection, path, 1 << 30)


def no_such_model(connection: socket.socket, path: str) -> None:
    connection.sendall(answered("{}", "404 Not Found", "X-Error-Code: RepoNotFound"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Answer], None]]:
    """Starts a hub of our own, and gives the cache a place of its own."""
    servers: list[socket.socket] = []
    connections: list[socket.socket] = []
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()

    def serve(server: socket.socket, answer: Answer) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:  # closed: the test has ended
                return
            connections.append(connection)
            path = connection.recv(65536).decode("latin-1").split(" ")[1]
            threading.Thread(target=answer, args=(connection, path), daemon=True).start()

    def start(answer: Answer) -> None:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)
        threading.Thread(target=serve, args=(server, answer), daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        files = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + files)

    yield start
    for one in (*servers, *connections):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
    for thread in threading.enumerate():  # ours, and those that it has started
        if thread.name == "hub":
            thread.join(20)
            assert not thread.is_alive()
    assert not checkpoint._given_up
    huggingface_hub.close_session()


def error(seconds: float = 1.0, revision: str | None = None) -> str:
    """The one line that loading ends with, soon."""
    begin = time.monotonic()
    with pytest.raises(ModelError) as caught:
        resolve("owner/model", revision, seconds)
    assert time.monotonic() - begin < 20
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("answer", [silent, dripping, silent_after_the_first_answer, silent_in_the_files])
def test_a_hub_that_falls_silent(hub: Callable[[Answer], None], answer: Answer) -> None:
    hub(answer)
    text = error(revision="v1")
    assert text.startswith("model.path=owner/model is no directory here, and the hub (http://127.0.0.1:")
    assert text.endswith(" is not reachable for it at revision v1: it sent nothing for 1 s (model.hub_timeout_s)")


def test_a_slow_hub_is_not_silent(hub: Callable[[Answer], None]) -> None:
    """huggingface_hub would write 10 MiB at a time: to the one who watches the files, nothing for ten seconds."""
    hub(slow)
    assert (resolve("owner/model", None, 4.5) / "config.json").stat().st_size == 6 << 20


def test_a_download_ends_at_ctrl_c(hub: Callable[[Answer], None], tmp_path: Path) -> None:
    """This process ends only after huggingface_hub's threads."""
    hub(endless)

    def press() -> None:
        while not any(file.stat().st_size for file in tmp_path.rglob("*.incomplete")):
            time.sleep(0.1)
        _thread.interrupt_main()

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        resolve("owner/model", None, 20.0)
    (download,) = [thread for thread in threading.enumerate() if thread.name == "hub"]
    download.join(15)
    assert not download.is_alive()
    assert constants.HF_HUB_OFFLINE is False


def test_a_silent_hub_costs_no_model_that_the_cache_has(hub: Callable[[Answer], None], tmp_path: Path) -> None:
    hub(silent)
    folder = tmp_path / "cache" / "models--owner--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(SHA)
    (folder / "snapshots" / SHA).mkdir(parents=True)
    (folder / "snapshots" / SHA / "config.json").write_text("{}")
    assert resolve("owner/model", None, 1.0) == folder / "snapshots" / SHA


def test_a_silent_hub_is_not_asked_again_until_the_first_request_ends(hub: Callable[[Answer], None]) -> None:
    hub(dripping)
    error()
    begin = time.monotonic()
    assert error().endswith("is not reachable for it: it was silent for an earlier model")
    assert time.monotonic() - begin < 1


def test_a_hub_that_is_not_there(hub: Callable[[Answer], None], monkeypatch: pytest.MonkeyPatch) -> None:
    hub(silent)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert "is not reachable for it: " in error()


def test_a_hub_without_the_model(hub: Callable[[Answer], None]) -> None:
    hub(no_such_model)
    assert "and the hub gave no such model: " in error()


def test_offline(hub: Callable[[Answer], None], monkeypatch: pytest.MonkeyPatch) -> None:
    hub(silent)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    text = error(revision="v1")
    assert "HF_HUB_OFFLINE is set, so only the cache is read, which has no whole copy of it at revision v1" in text


def test_a_full_disk_is_not_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    assert f"its copy from the hub cannot be kept in {constants.HF_HUB_CACHE}: No space left on device" in error()


def test_a_file_that_huggingface_hub_does_not_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above 50 GB it wants another package."""

    def large(*_: object, **__: object) -> str:
        raise ValueError("The file is too large. Install `hf_xet`")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", large)
    assert error().endswith("no directory here, and its download fails: The file is too large. Install `hf_xet`")


def with_files(connection: socket.socket, path: str) -> None:
    assert "blobs=" in path
    siblings = ", ".join(f'{{"rfilename": "{name}", "size": {size}}}' for name, size in FILES)
    connection.sendall(answered(INFO.replace('"siblings": []', f'"siblings": [{siblings}]')))


def test_the_size_of_a_download(hub: Callable[[Answer], None], tmp_path: Path) -> None:
    """Of the files that would be fetched, without fetching any."""
    hub(with_files)
    assert find_here("owner/model", None) is None
    assert size_in_hub("owner/model", None, 5.0) == 3009
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (silent, "gave no answer for owner/model in 1 s"),
        (dripping, "gave no answer for owner/model in 1 s"),
        (no_such_model, "the hub gave no model owner/model at revision v1"),
    ],
)
def test_a_hub_that_cannot_tell_the_size(hub: Callable[[Answer], None], answer: Answer, why: str) -> None:
    hub(answer)
    begin = time.monotonic()
    with pytest.raises(ModelError) as caught:
        size_in_hub("owner/model", "v1", 1.0)
    assert time.monotonic() - begin < 10
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_doctor_says_what_would_be_downloaded(hub: Callable[[Answer], None]) -> None:
    hub(with_files)
    weights, _ = checks(ModelSettings(path="owner/model", device="cpu"), InferSettings())
    assert (weights.status, weights.found) == ("warning", "owner/model is not in the cache; the hub has it, 0.00 GiB")
    assert str(weights.mend).endswith("hf download owner/model")


def test_doctor_looks_for_the_files_that_a_model_wants(
    hub: Callable[[Answer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document model's processor, too: without it the cache has no whole copy."""
    hub(with_files)
    real, asked = huggingface_hub.snapshot_download, []

    def noted(*given: Any, **options: Any) -> Any:
        asked.append(options["allow_patterns"])
        return real(*given, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", noted)
    settings = ModelSettings(name="transformers", path="owner/model", device="cpu")
    weights, _ = document_checks.checks(settings, InferSettings())
    assert weights.found == "owner/model is not in the cache; the hub has it, 5.00 GiB"
    assert asked == [list(WANTED)]
