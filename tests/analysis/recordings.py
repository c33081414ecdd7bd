"""Keep what a stage recorded for tests/data: `python tests/analysis/recordings.py STAGE_DIR tests/data/nsys-2025-h200`.

Of nsys an export cut down to what is read of it, of ncu its raw.csv, both packed, and beside it as JSON what the stage
reported of it, for `test_recordings.py`. A few tokens of one page of a tiny model are enough: some 100 kB.
"""

from __future__ import annotations

import gzip
import json
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

_CALL = ("nameId", "globalTid", "start", "end", "correlationId")
_DEVICE = ("start", "end", "correlationId", "globalPid")
KEPT = {
    "NVTX_EVENTS": ("start", "end", "eventType", "text", "textId", "domainId", "globalTid"),
    "CUPTI_ACTIVITY_KIND_RUNTIME": _CALL,
    "CUPTI_ACTIVITY_KIND_DRIVER": _CALL,
    "CUPTI_ACTIVITY_KIND_KERNEL": (*_DEVICE, "demangledName", "graphNodeId"),
    "CUPTI_ACTIVITY_KIND_MEMCPY": (*_DEVICE, "copyKind", "bytes", "srcKind", "dstKind"),
    "CUPTI_ACTIVITY_KIND_MEMSET": _DEVICE,
    "ENUM_CUDA_MEM_KIND": ("id", "name", "label"),
}
_TEXTS = ("textId", "nameId", "demangledName")


def cut(source: Path, target: Path) -> None:
    """Write the tables and columns of *source* that are read, and the texts they name, to *target*."""
    with tempfile.TemporaryDirectory() as temporary:
        small = Path(temporary) / "small.sqlite"
        with closing(sqlite3.connect(small)) as base:
            base.execute("attach ? as whole", (str(source),))
            there = {name for (name,) in base.execute("select name from whole.sqlite_master where type = 'table'")}
            used = []
            for table in there & KEPT.keys():
                has = {row[1] for row in base.execute(f"pragma whole.table_info({table})")}
                columns = [name for name in KEPT[table] if name in has]
                base.execute(f"create table {table} as select {','.join(columns)} from whole.{table}")
                used += [f"select {name} from {table}" for name in columns if name in _TEXTS]
            texts = " union ".join(used)
            base.execute(f"create table StringIds as select id, value from whole.StringIds where id in ({texts})")
            base.commit()
        pack(small, target)


def pack(source: Path, target: Path) -> None:
    """Write *source* gzipped to *target*, the same bytes each time."""
    target.write_bytes(gzip.compress(source.read_bytes(), 9, mtime=0))


if __name__ == "__main__":
    stage, out = Path(sys.argv[1]), sys.argv[2]
    if stage.name == "nsys":
        cut(stage / "nsys.sqlite", Path(f"{out}.sqlite.gz"))
    else:
        pack(stage / "raw.csv", Path(f"{out}.csv.gz"))
    metrics = json.loads((stage / "metrics.json").read_text(encoding="utf-8"))[stage.name]
    Path(f"{out}.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
