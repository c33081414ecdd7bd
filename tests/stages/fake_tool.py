"""A stand-in for nsys and ncu. FAKE says what it does; it is a copy of this file under the tool's name.

It knows the options that the stages give, refuses a command without the child's, and either runs the child or
leaves in the child's run directory what a passed one would.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

NAME = Path(sys.argv[0]).name
MODE = os.environ.get("FAKE", "run")
TITLE = {"nsys": "NVIDIA Nsight Systems", "ncu": "NVIDIA (R) Nsight Compute Command Line Profiler"}[NAME]
ARGS = sys.argv[1:]


def option(name):
    return next(arg.partition("=")[2] for arg in ARGS if arg.startswith(name + "="))


def passed(records=True):
    run = Path(option("--llmprof-run-dir"))
    stage = run / "test" / "torch_profiler"
    stage.mkdir(parents=True)
    sample = {"round": 0, "page": "one", "batch_id": 0, "tokens": 3, "ttft_ms": 3.0, "tpot_ms": 1.0, "total_ms": 6.0}
    sample |= {"other_ms": 0.0, "phases": {"preprocess": 1.0, "prefill": 2.0, "decode": 3.0}, "peak_bytes": None}
    metrics = {"schema": 1, "test": "test", "id": "test_it.py::test", "stage": "torch_profiler", "kind": "pages"}
    (stage / "metrics.json").write_text(json.dumps({**metrics, "status": "ok", "samples": [sample]}))
    told = {"outcome": "passed", "error": None, "measured": MODE != "unmeasured", "dir": str(stage), "notes": []}
    if MODE.startswith("failed"):
        told |= {"outcome": "failed", "error": "cer 3 is over 2"}
    told["nvtx"] = {"version": "0.2.17", "records": records}
    (run / "outcome.json").write_text(json.dumps(told))


if ARGS == ["--version"]:
    if MODE == "broken":
        print("error while loading shared libraries: libfoo.so: cannot open shared object file", file=sys.stderr)
        sys.exit(127)
    version = "2019.1.1" if MODE == "old" else "2025.3.1.90-253135822126v0"
    print("GNU bash, version 5.2" if MODE == "other" else f"{TITLE}\nVersion {version}")
    sys.exit(0)
if ARGS[0] == "--import":
    if MODE == "noexport":
        print("==ERROR== The file is not a valid report.")
        sys.exit(9)
    Path(os.environ["FAKE_PID"]).write_text(os.environ.get("LC_ALL", "none"))
    print(Path(os.environ["FAKE_REPORT"]).read_text() if MODE != "empty" else "==WARNING== No kernels were profiled.")
    sys.exit(0)

child = ARGS[next(index for index, arg in enumerate(ARGS) if "python" in Path(arg).name):]
out = Path(ARGS[ARGS.index("-o") + 1])
print(f"{NAME}: progress 10%\r{NAME}: progress 100%")
if MODE == "crash":
    print("==ERROR== cannot start: the driver resource is unavailable")
    sys.exit(3)
if MODE == "hang":
    Path(os.environ["FAKE_PID"]).write_text(str(subprocess.Popen(["sleep", "300"], start_new_session=True).pid))
    time.sleep(300)
if MODE == "denied":
    print("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters")
    passed()
    sys.exit(1)
code = 0
if MODE == "run":
    code = subprocess.run(child, check=False).returncode
else:
    passed(records="dummy" not in MODE)
if MODE == "importer":
    print("Importer error status: The importer binary and its dependencies were not found.")
elif MODE in ("nothing", "dummy"):
    print("==WARNING== No kernels were profiled.")
elif MODE == "noexport" and NAME == "nsys":
    Path(f"{out}.nsys-rep").touch()
elif NAME == "nsys":
    Path(f"{out}.nsys-rep").touch()
    if MODE == "garbage":
        Path(f"{out}.sqlite").write_text("nothing of SQLite, and long enough to look at")
    else:
        shutil.copyfile(os.environ["FAKE_REPORT"], f"{out}.sqlite")
else:
    Path(f"{out}.ncu-rep").touch()
sys.exit({"badexit": 7, "failed": 1}.get(MODE, code))
