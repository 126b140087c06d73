"""What was measured, for people: the table, and the page of results; and on which machine, with which versions."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

_M = 1 << 20

_VERSIONS = {
    "qchain": (),  # the one that is measured
    "QEMU": ("qemu-img", "--version"),
    "libnbd": ("nbdcopy", "--version"),
    "nbdkit": ("nbdkit", "--version"),
    "libvirt": ("libvirtd", "--version"),
    "virtnbdbackup": ("virtnbdbackup", "--version"),
    "OpenSSL": ("openssl", "version"),
    "compiler": ("c++", "--version"),
}


def versions(qchain: Path) -> dict[str, str]:
    """What each program says of itself."""
    return {name: _first_line(*(argv or (str(qchain), "--version"))) for name, argv in _VERSIONS.items()}


def machine(folder: Path) -> dict[str, str]:
    processor = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {"processor": processor[1] if processor else os.uname().machine,
            "cores": str(os.cpu_count()),
            "memory": f"{int(memory[1]) / _M:.1f} GiB" if memory else "unknown",
            "kernel": os.uname().release.split("-")[0],
            "file system": _first_line("stat", "-f", "-c", "%T", str(folder))}


def _first_line(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        return "not installed"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else "unknown"


def text_of_row(row: dict[str, Any]) -> str:
    """A row as it is printed, when it is done."""
    lines = [f"{row['name']}: {row['title']}"]
    if row["skipped"]:
        lines.append(f"  left out: {row['skipped']}")
    if row["failed"]:
        lines.append(f"  FAILED: {row['failed']}")
    for one in row["contenders"]:
        lines.append(f"  {_name(one):<50} {one['median']:9.3f} s  ({one['min']:.3f} to {one['max']:.3f})"
                     f" {one['peak_bytes'] / _M:8.1f} MiB")
    lines += [f"  {verdict['text']}{_bar(verdict)}" for verdict in row["verdicts"]]
    return "\n".join(lines)


def markdown(document: dict[str, Any]) -> str:
    """The page of results."""
    settings = document["settings"]
    lines = ["# Results", "",
             "Written by `tests/bench/bench.py --markdown`; `tests/bench/run` measures anew. `LIMITS.md` says what stands in the "
             "way of the bars that were missed. Seconds are medians of "
             f"{settings['runs']} runs after a warm-up, in which the contenders took turns, with the fastest and the slowest; "
             "memory is the peak of the process in any run; servers are not counted. What is scaled did only that part of the "
             "work. All disks lie on one file system."]
    if settings["quick"]:
        lines += ["", "**Tiny sizes (`--quick`): the times mean nothing.**"]
    lines += ["", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in [*document["machine"].items(), *document["versions"].items()]]
    lines += ["", "| row | result | bar | met |", "|---|---|---|---|"]
    for row in document["rows"]:
        for verdict in row["verdicts"]:
            lines.append(f"| {row['name']} | {verdict['text']} | {verdict['bar']} | {_met(verdict)} |")
        if row["skipped"] or row["failed"]:
            why = f"left out: {row['skipped']}" if row["skipped"] else f"FAILED: {row['failed']}"
            lines.append(f"| {row['name']} | {why} | | |")
    for row in document["rows"]:
        if not row["contenders"]:
            continue
        lines += ["", f"## {row['name']}", "", row["title"] + ".", "",
                  "| command | median s | min | max | processor s | peak MiB |", "|---|---:|---:|---:|---:|---:|"]
        lines += [f"| {_name(one)} | {one['median']:.3f} | {one['min']:.3f} | {one['max']:.3f} "
                  f"| {one['processor_seconds']:.3f} | {one['peak_bytes'] / _M:.1f} |" for one in row["contenders"]]
    return "\n".join(lines) + "\n"


def _name(contender: dict[str, Any]) -> str:
    scaled = contender["scaled_by"]
    return contender["name"] if scaled == 1 else f"{contender['name']} (scaled by {scaled:.1f})"


def _bar(verdict: dict[str, Any]) -> str:
    return f" (bar: {verdict['bar']}, {_met(verdict)})" if verdict["bar"] else ""


def _met(verdict: dict[str, Any]) -> str:
    return {True: "met", False: "MISSED", None: ""}[verdict["met"]]
