#!/usr/bin/python3
"""Benchmarks of qchain against its peers: runs the rows, checks that the results are right, and prints what came out.

Disks are made in a temporary folder, which needs about 20 GiB, and removed afterwards. QCHAIN_RELEASE is the program that
is measured; without it, build/release/cli/qchain. Exits with 1 if a row failed or a result was wrong; a bar that is missed
is shown, and is not a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from measure import NotHere, Verdict, WrongResult
from rows import ROWS
from setting import Bench

import report
from qemu_tools import FixtureError

SCHEMA = "qchain.bench"

# Where tiny disks are made: whatever else keeps the machine's disk busy does not hold them up.
_MEMORY = "/dev/shm"


def _has_room(folder: str) -> bool:
    return os.path.isdir(folder) and shutil.disk_usage(folder).free >= 1 << 30


def _run_row(bench: Bench, name: str) -> dict[str, Any]:
    """What came out of a row, for the JSON."""
    title, function = ROWS[name]
    verdicts: list[Verdict] = []
    skipped = failed = ""
    bench.races.clear()
    try:
        for verdict in function(bench):
            # Tiny disks are held to nothing.
            verdicts.append(replace(verdict, bar="", met=None) if bench.quick else verdict)
    except NotHere as reason:
        skipped = str(reason)
    except (WrongResult, FixtureError, AssertionError, OSError) as error:
        failed = f"{type(error).__name__}: {error}"
    return {"name": name, "title": title, "skipped": skipped, "failed": failed,
            "contenders": [measured.to_json() for measured in bench.races if measured.seconds],
            "verdicts": [asdict(verdict) for verdict in verdicts]}


def _measure(args: argparse.Namespace, done: dict[str, Any]) -> dict[str, Any]:
    """All rows that are asked for; the others as they are in `done`. What is measured is kept row by row."""
    built = Path(__file__).resolve().parents[2] / "build/release/cli/qchain"
    qchain = Path(os.environ.get("QCHAIN_RELEASE") or built).resolve()
    if not os.access(qchain, os.X_OK):
        sys.exit(f"bench.py: {qchain}: not there; run tests/bench/run, which builds it")
    place = args.folder or (_MEMORY if args.quick and _has_room(_MEMORY) else None)
    with tempfile.TemporaryDirectory(prefix="qc-bench-", dir=place) as folder:
        bench = Bench(qchain, Path(folder), args.quick, args.runs)
        document = {"schema": SCHEMA, "version": 1, "settings": {"quick": args.quick, "runs": args.runs},
                    "machine": report.machine(bench.folder), "versions": report.versions(qchain), "rows": []}
        rows = {row["name"]: row for row in done.get("rows", [])}
        for name in args.only or ROWS:
            rows[name] = row = _run_row(bench, name)
            document["rows"] = [rows[known] for known in ROWS if known in rows]
            if args.json not in (None, "-"):
                Path(args.json).write_text(json.dumps(document, indent=1))
            print(report.text_of_row(row) + "\n", file=sys.stderr if args.json == "-" else sys.stdout, flush=True)
    return document


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that all rows work: the times mean nothing")
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help="these rows")
    parser.add_argument("--runs", type=int, help="measured runs of each command (default: 5, with --quick 1)")
    parser.add_argument("--json", metavar="FILE", nargs="?", const="-",
                        help="write all that was measured; without FILE to standard output")
    parser.add_argument("--markdown", metavar="FILE", help="write the page of results")
    parser.add_argument("--from", dest="source", metavar="FILE", help="take what --json wrote earlier, and measure only the rows of --only again")
    parser.add_argument("--folder", metavar="DIR",
                        help="where the disks are made (default: the folder for temporary files; tiny ones in memory)")
    parser.add_argument("--list", action="store_true", help="list the rows")
    args = parser.parse_args()
    args.runs = args.runs or (1 if args.quick else 5)
    return args


def main() -> int:
    args = _parse()
    if args.list:
        print("\n".join(f"{name:<16} {title}" for name, (title, _) in ROWS.items()))
        return 0
    document = json.loads(Path(args.source).read_text()) if args.source else {}
    if args.only or not args.source:
        document = _measure(args, document)
    if args.json == "-":
        json.dump(document, sys.stdout, indent=1)
    elif args.json:
        Path(args.json).write_text(json.dumps(document, indent=1))
    if args.markdown:
        Path(args.markdown).write_text(report.markdown(document))
    return 1 if any(row["failed"] for row in document["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
