"""A Slurm of one node on this machine: munged, slurmctld and slurmd with a configuration and a state of their own.

Needs root and Debian's packages slurmctld, slurmd, slurm-client and munge. To run a command beside it:
`python tests/cluster/slurm_server.py COMMAND`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_CONFIG = """\
ClusterName=llmprof
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=10
MinJobAge=60
SchedulerParameters=sched_interval=1,batch_sched_delay=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


class Unavailable(Exception):
    """Why there is no Slurm here."""


@contextmanager
def slurm() -> Iterator[Mapping[str, str]]:
    """Run it in the block. Gives the environment variables with which its commands find it. Raises `Unavailable`."""
    if os.geteuid() != 0:
        raise Unavailable("only root can start munged and slurmd")
    programs = {name: _program(name) for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")}
    place = Path(tempfile.mkdtemp(prefix="llmprof-slurm-"))
    place.chmod(0o755)
    servers: list[subprocess.Popen[bytes]] = []
    environment = {**os.environ, "SLURM_CONF": str(place / "slurm.conf")}

    def start(name: str, *words: str) -> None:
        with (place / f"{name}.log").open("wb") as log:
            servers.append(subprocess.Popen([programs[name], *words], stdout=log, stderr=log, env=environment))

    def wait(what: str, done: list[str]) -> None:
        end = time.monotonic() + 30
        while subprocess.run(done, capture_output=True, env=environment).returncode:
            if time.monotonic() > end or any(server.poll() is not None for server in servers):
                logs = "; ".join(
                    lines[-1] for path in sorted(place.glob("*.log")) if (lines := path.read_text().splitlines())
                )
                raise Unavailable(f"{what} does not answer: {logs}")
            time.sleep(0.1)

    try:
        (place / "key").write_bytes(secrets.token_bytes(1024))
        (place / "key").chmod(0o400)
        for name in ("state", "spool"):
            (place / name).mkdir()
        _configure(place)
        files = [f"--{name}-file={place}/{name}" for name in ("key", "pid", "log", "seed")]
        start("munged", "--foreground", "--force", f"--socket={place}/munge.socket", *files)
        wait("munged", ["munge", f"--socket={place}/munge.socket", "--no-input"])
        start("slurmctld", "-D")
        wait("slurmctld", [programs["scontrol"], "ping"])
        start("slurmd", "-D", "-N", socket.gethostname())
        wait("slurmd", ["bash", "-c", "sinfo -h -o %T | grep -qx -e idle"])
        yield {"SLURM_CONF": environment["SLURM_CONF"]}
    finally:
        for server in reversed(servers):
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        shutil.rmtree(place, ignore_errors=True)


def _configure(place: Path) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    text = _CONFIG.format(
        place=place,
        host=socket.gethostname(),
        controller=_free_port(),
        daemon=_free_port(),
        cpus=len(os.sched_getaffinity(0)),
        memory=memory * 9 // 10,
    )
    (place / "slurm.conf").write_text(text)


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        raise Unavailable(f"there is no program {name} (Debian: slurmctld, slurmd, slurm-client, munge)")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    with slurm() as variables:
        sys.exit(subprocess.run(sys.argv[1:], env={**os.environ, **variables}).returncode)
