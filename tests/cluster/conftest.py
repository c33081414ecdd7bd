"""Servers for tests on this machine: an sshd, and a Slurm of one node. Where one cannot be had, its tests are skipped
with the reason."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugin"))
pytest.register_assert_rewrite("plugin_bench")

from plugin_bench import Bench  # noqa: E402

_SSHD = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {place}/host_key
AuthorizedKeysFile {place}/key.pub
PidFile {place}/sshd.pid
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
"""
_SSH = """\
Host loopback
    HostName 127.0.0.1
    Port {port}
    User {user}
    IdentityFile {place}/key
    IdentitiesOnly yes
    UserKnownHostsFile {place}/known_hosts
    StrictHostKeyChecking accept-new
    LogLevel ERROR
"""


@pytest.fixture
def bench(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench in an empty directory, as in tests/plugin."""
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
        monkeypatch.delenv(name, raising=False)
    return Bench(pytester)


def program(name: str) -> str:
    """The path of a program, also one for administrators; skips the test where there is none."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"there is no program {name}")
    return found


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="session")
def ssh_config() -> Iterator[Path]:
    """An sshd on this machine; the file of ssh's options with which its host is called "loopback"."""
    sshd, keygen, ssh = program("sshd"), program("ssh-keygen"), program("ssh")
    place = Path(tempfile.mkdtemp(prefix="llmprof-sshd-"))
    for name in ("host_key", "key"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(place / name)], check=True)
    port, config = free_port(), place / "ssh_config"
    (place / "sshd_config").write_text(_SSHD.format(port=port, place=place))
    config.write_text(_SSH.format(port=port, place=place, user=getpass.getuser()))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # a root's sshd wants it
    log = (place / "log").open("wb")
    server = subprocess.Popen([sshd, "-D", "-e", "-f", str(place / "sshd_config")], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 20
        while (done := subprocess.run([ssh, "-F", str(config), "loopback", "true"], capture_output=True)).returncode:
            if time.monotonic() > end or server.poll() is not None:
                said = (place / "log").read_text(errors="replace").strip() or done.stderr.decode(errors="replace")
                pytest.skip(f"sshd does not answer: {said.splitlines()[-1]}")
            time.sleep(0.1)
        yield config
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(place)
