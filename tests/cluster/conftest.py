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
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest
import slurm_server

from pytest_llmprof.compare.saved import saved_run
from pytest_llmprof.records.run import RunRecord

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugin"))
pytest.register_assert_rewrite("plugin_bench")

from plugin_bench import Bench, files  # noqa: E402

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


class Suite:
    """Six tests of the echo model, and llmprof submit on them. A test is told by files what it is to do."""

    TESTS = """
import os, signal, time, pytest
from pathlib import Path
@pytest.mark.parametrize("x", range(6))
def test_pages(llmprof, x):
    llmprof.run()
    Path(f"began-{x}").touch()
    if Path(f"fail-{x}").exists():
        pytest.fail("as it was told")
    if Path(f"die-{x}").exists():
        Path(f"die-{x}").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    while Path(f"wait-{x}").exists():
        time.sleep(0.05)
"""
    ARGUMENTS = (
        *("--llmprof-stage=direct_inference", "--llmprof-override=model=echo", "--llmprof-override=dataset=blank"),
        *("--llmprof-override=infer.prompt='hello world'", "--llmprof-override=output/torch=full"),
    )

    def __init__(self, bench: Bench) -> None:
        self.path = bench.path
        self.environment = dict(os.environ)
        bench.echo()
        bench.test(self.TESTS)

    def tell(self, what: str, *tests: int) -> None:
        """Have tests *what*: fail, die or wait."""
        for test in tests:
            (self.path / f"{what}-{test}").touch()

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start llmprof submit in a process group of its own."""
        program = "import sys; from pytest_llmprof.cli import main; sys.exit(main())"
        return subprocess.Popen(
            [sys.executable, "-c", program, "submit", *words],
            cwd=self.path,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def submit(self, *words: str, code: int = 0) -> list[str]:
        """Run it to its end. Gives its lines."""
        process = self.start(*words)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == code, out
        assert "Traceback" not in out
        return out.splitlines()

    def new(self, cluster: str, *words: str) -> list[str]:
        """The words of a new run of two shards."""
        return [f"--cluster={cluster}", "--shards=2", "-o", "run", *words, "--", *self.ARGUMENTS]

    def check(self, outcomes: dict[str, int]) -> None:
        """The joined run is whole: each test once, with its files."""
        record = msgspec.json.decode((self.path / "run" / "run.json").read_bytes(), type=RunRecord)
        assert record.status == "complete"
        assert [shard.shard.index for shard in record.merged] == [1, 2]
        assert sorted(test.id for test in record.tests) == [
            f"test_it.py::test_pages[{x}-direct_inference]" for x in range(6)
        ]
        assert Counter(test.outcome for test in record.tests) == outcomes
        found = files(self.path / "run")
        for test in record.tests:
            assert {f"{test.dir}/metrics.json", f"{test.dir}/viz/predictions.md"} <= found
        assert saved_run(self.path / "run").status == "complete"


@pytest.fixture
def suite(bench: Bench) -> Suite:
    """A suite to submit."""
    return Suite(bench)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Mapping[str, str]]:
    """A Slurm on this machine; the environment variables with which its commands find it."""
    try:
        with slurm_server.slurm() as variables:
            yield variables
    except slurm_server.Unavailable as error:
        pytest.skip(f"no Slurm: {error}")
