"""What the rows share: the disks and layers, each made when it is first asked for, and what was measured so far."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import disks
from disks import tool
from measure import Contender, Measured, Race, race

from harness import G, M, T, Argument, Server, qemu_nbd


@dataclass
class Bench:
    """A run of the benchmarks."""

    qchain: Path
    folder: Path
    quick: bool
    runs: int
    peaks: dict[str, int] = field(default_factory=dict)  # bytes, of each qchain command
    races: list[Measured] = field(default_factory=list)  # of the row that runs

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def race(self, *contenders: Contender, runs: int | None = None) -> Race:
        """Measures; what came out is part of the row."""
        result = race(self.folder, contenders, runs or self.runs, self.quick)
        self.races.extend(result.values())
        for contender in contenders:
            if contender.argv[0] == self.qchain:
                peak = result[contender.name].peak
                self.peaks[contender.name] = max(peak, self.peaks.get(contender.name, 0))
        return result

    def contender(self, name: str, *argv: Argument, output: str = "", exit_code: int = 0,
                  check: Callable[[Path], None] | None = None) -> Contender:
        """A command of qchain, which writes `output` and its manifest."""
        outputs = [self / output, self / f"{output}.manifest"] if output else []
        return Contender(name, [self.qchain, *argv], outputs, check, exit_code)

    # -- disks --------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def data(self) -> int:
        return self.size(1536 * M, 24 * M)

    @functools.cached_property
    def disk_size(self) -> int:
        return self.size(4 * G, 128 * M)

    @functools.cached_property
    def source(self) -> Path:
        """The disk as a qcow2 image."""
        disks.make_disk(self / "source.qcow2", self.disk_size, self.data)
        return self / "source.qcow2"

    @functools.cached_property
    def changes(self) -> list[range]:
        """The clusters of the increment."""
        return disks.scattered(self.size(4 * G, 128 * M), self.size(10_000, 240), self.size(8_503, 200))

    @functools.cached_property
    def changed(self) -> Path:
        """The disk after the changes, with a bitmap of them."""
        disks.make_changed(self / "changed.qcow2", self.source, self.changes)
        return self / "changed.qcow2"

    @functools.cached_property
    def full(self) -> Path:
        """A layer of qchain's that holds the disk."""
        with self.serve_source() as server:
            tool(self.qchain, "pull", server.uri, "-o", self / "full.qcow2")
        return self / "full.qcow2"

    @functools.cached_property
    def increment(self) -> Path:
        """The layer on top of it."""
        with self.serve_changed() as server:
            tool(self.qchain, "pull", server.uri, "-o", self / "increment.qcow2", "--parent", self.full)
        return self / "increment.qcow2"

    @functools.cached_property
    def huge(self) -> Path:
        """An image of a huge disk with scattered clusters."""
        disks.make_scattered_image(self / "huge.qcow2", self.size(16 * T, 64 * G), self.size(200_000, 500))
        return self / "huge.qcow2"

    def serve_source(self) -> contextlib.AbstractContextManager[Server]:
        return qemu_nbd(self.folder, "-f", "qcow2", self.source)

    def serve_changed(self) -> contextlib.AbstractContextManager[Server]:
        return qemu_nbd(self.folder, "-f", "qcow2", "-B", "b0", self.changed)

    # -- what is right ------------------------------------------------------------------------------------------------

    def holds(self, output: Argument, format: str, reference: Argument,
              reference_format: str = "qcow2") -> Callable[[Path], None]:
        """A check: QEMU finds the two equal."""
        def check(_: Path) -> None:
            tool("qemu-img", "compare", "-f", format, "-F", reference_format, output, reference)
        return check
