"""A stand-in for `python -m pytest` that writes a run at once. Overrides say what it does:

`tpot=0.6` its time (without it, that in the file speed.txt here), `end=CODE` how it ends, `say=TEXT` what it prints,
`from=NUMBER` from which process on it does (default: 1), `sleep=SECONDS` how long it takes, `status=STATUS` what
run.json says. In a duet it waits for the other process before it writes; with `deaf=1` it is older than that.
"""

import os
import random
import socket
import sys
import time
from pathlib import Path

if sys.argv[1] == "-c":  # asked for its packages
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "compare"))
from saved_runs import write_run

assert sys.argv[1:3] == ["-m", "pytest"]
overrides = [one.partition("=")[2] for one in sys.argv if one.startswith("--llmprof-override=")]
options = dict(one.split("=", 1) for one in overrides)
directory = Path(next(one.partition("=")[2] for one in sys.argv if one.startswith("--llmprof-run-dir=")))
print(options.get("say", ""), flush=True)
duet = os.environ.get("LLMPROF_DUET", "").split(",")[0] if "deaf" not in options else ""
time.sleep(float(options.get("sleep", 0)))
code = int(options.get("end", 0)) if int(directory.name) >= int(options.get("from", 1)) else 0
if code < 0:
    os.kill(os.getpid(), -code)
if duet:
    other = socket.socket(fileno=int(duet))
    try:
        other.sendall(b"x")
        met = other.recv(1)
    except ConnectionError:
        met = b""
    if not met:
        print("ERROR: the process beside this one ended")
        sys.exit(4)
if code in (0, 1):
    tpot = float(options["tpot"]) if "tpot" in options else float(Path("speed.txt").read_text())
    write_run(directory, tpot=tpot * random.uniform(0.9995, 1.0005), duet=bool(duet))
    path = directory / "run.json"
    path.write_text(path.read_text().replace('"complete"', f'"{options.get("status", "complete")}"'))
sys.exit(code)
