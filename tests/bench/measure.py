"""Measuring: contenders that take turns, a small process that starts each of them, and what is concluded from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from harness import K, Argument, words  # noqa: E402

# A process counts what its parent held when it was started, so that it needs a small one. The lines of standard error are
# kept with the time at which they came.
_SPAWN = """import json, os, sys, time
read, write = os.pipe()
begin = time.monotonic()
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, write, 2)])
os.close(write)
lines = [(time.monotonic() - begin, line) for line in open(read, errors="replace")]
_, status, usage = os.wait4(pid, 0)
seconds = time.monotonic() - begin
with open(sys.argv[1], "w") as report:
    json.dump({"code": os.waitstatus_to_exitcode(status), "seconds": seconds, "processor": usage.ru_utime + usage.ru_stime,
               "peak": usage.ru_maxrss, "switches": usage.ru_nvcsw + usage.ru_nivcsw, "lines": lines}, report)"""

Lines = Sequence[tuple[float, str]]  # seconds since the beginning, and what was said


class WrongResult(Exception):
    """A contender failed, or did not do what it is measured at."""


class NotHere(Exception):
    """A peer cannot run on this machine; the row, or the peer, is left out."""


@dataclass(frozen=True)
class Contender:
    """A command that is measured. `check` gets what it printed, a file, after the last run, and raises WrongResult."""

    name: str
    argv: Sequence[Argument]
    outputs: Sequence[Path] = ()                       # files and folders that are removed before each run
    check: Callable[[Path], None] | None = None
    exit_code: int = 0
    before: Callable[[], None] = lambda: None          # in front of each run, and behind it: not measured
    after: Callable[[], None] = lambda: None
    scale: float = 1                                   # it does only this fraction of the work
    phase: Callable[[Lines], float] | None = None      # seconds of the part that counts


@dataclass
class Measured:
    """All runs of a contender: seconds (scaled up), and of the process itself without those who serve it."""

    name: str
    scale: float = 1
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    switches: list[int] = field(default_factory=list)  # of context, wanted or not
    peak: int = 0                                      # bytes, of the greatest process in any run

    @property
    def median(self) -> float:
        return median(self.seconds)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "scaled_by": 1 / self.scale, "seconds": self.seconds, "median": self.median,
                "min": min(self.seconds), "max": max(self.seconds), "processor_seconds": median(self.processor),
                "context_switches": median(self.switches), "peak_bytes": self.peak}


@dataclass(frozen=True)
class Verdict:
    """The result of a row: a value, its target, and whether that is met; without a target, just the value."""

    text: str
    bar: str = ""
    met: bool | None = None


Race = dict[str, Measured]


def race(folder: Path, contenders: Sequence[Contender], runs: int, quick: bool) -> Race:
    """Lets the contenders run in turns: a warm-up of each, then `runs` rounds, each begun by another one.

    What one has written is removed, and what else was written is on the disk, before the next one starts: none pays for
    another. `quick` does without this, and without the warm-up. Raises WrongResult.
    """
    measured = {contender.name: Measured(contender.name, contender.scale) for contender in contenders}
    for number in range(0 if quick else -1, runs):
        first = number % len(contenders)
        for contender in [*contenders[first:], *contenders[:first]]:
            report, said = _run_once(folder, contender, quick)
            if number >= 0:
                _add(measured[contender.name], contender, report)
            if number == runs - 1 and contender.check:
                contender.check(said)
    for contender in contenders:
        remove(*contender.outputs)
    return measured


def remove(*outputs: Path) -> None:
    for output in outputs:
        if output.is_dir():
            shutil.rmtree(output)
        output.unlink(missing_ok=True)


def _run_once(folder: Path, contender: Contender, quick: bool) -> tuple[dict[str, Any], Path]:
    remove(*contender.outputs)
    contender.before()
    if not quick:
        os.sync()
    said, report = folder / "said", folder / "report.json"
    argv = words([sys.executable, "-S", "-c", _SPAWN, report, *contender.argv])
    try:
        with said.open("wb") as out:
            subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=out,
                           check=True, timeout=7200)
    finally:
        contender.after()
    done = json.loads(report.read_text())
    if done["code"] != contender.exit_code:
        error = "".join(line for _, line in done["lines"])
        raise WrongResult(f"{contender.name}: exit {done['code']}: {' '.join(map(str, contender.argv))}: {error[-2000:]}")
    return done, said


def _add(measured: Measured, contender: Contender, report: dict[str, Any]) -> None:
    seconds = contender.phase(report["lines"]) if contender.phase else report["seconds"]
    measured.seconds.append(seconds / contender.scale)
    measured.processor.append(report["processor"])
    measured.switches.append(report["switches"])
    measured.peak = max(measured.peak, K * report["peak"])


def _label(measured: Measured) -> str:
    return measured.name if measured.scale == 1 else f"{measured.name} (scaled)"


def at_most(result: Race, us: str, peer: str, bar: float | None) -> Verdict:
    """`us` takes no more than `bar` times as long as `peer`."""
    ratio = result[us].median / result[peer].median
    text = f"{us}: {ratio:.2f}x the time of {_label(result[peer])}"
    return Verdict(text) if bar is None else Verdict(text, f"<= {bar:.2f}x", ratio <= bar)


def faster(result: Race, us: str, peer: str, bar: float | None) -> Verdict:
    """`us` is at least `bar` times as fast as `peer`."""
    ratio = result[peer].median / result[us].median
    text = f"{us}: {ratio:.2f}x as fast as {_label(result[peer])}"
    return Verdict(text) if bar is None else Verdict(text, f">= {bar:.2f}x", ratio >= bar)
