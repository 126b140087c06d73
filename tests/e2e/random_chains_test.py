"""Random chains of a live disk: every layer is that disk at that point in time.

Each case has a seed: QCHAIN_SEED=N QCHAIN_CASES=1 repeats case N, QCHAIN_CASES runs more than the default.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
import unittest
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import blkhash
from harness import SOAK, K, M, Case, sha256

from export import Export
from qemu_tools import FixtureError

SEED = int(os.environ.get("QCHAIN_SEED") or 1)
CASES = int(os.environ.get("QCHAIN_CASES") or (20 if SOAK else 8))

LAYER_CLUSTERS = [f"{4 << n}K" for n in range(10)]


@dataclass
class Point:
    """A restore point: a layer, the checkpoint that it is, and what the disk was then."""

    image: Path
    format: str
    checkpoint: str
    reference: Path
    parent: Point | None
    manifest: bool = True

    @property
    def proven(self) -> bool:
        """Whether manifests cover all of it: a raw image has none."""
        return all(p.manifest and p.format == "qcow2" for p in self.chain)

    @property
    def chain(self) -> list[Point]:
        return [self] + (self.parent.chain if self.parent else [])


# The file, and the offset in it; no offset where the data is compressed, and nothing at all where there are zeros.
Source: TypeAlias = tuple[str, int | None] | None


@dataclass(frozen=True)
class Piece:
    """A range of the disk that one layer supplies."""

    start: int
    end: int
    source: Source


class Disk:
    """A live disk with random operations, and a log of them."""

    def __init__(self, rng: random.Random, folder: Path) -> None:
        self.rng = rng
        self.size = self._any_size()
        self.history: list[str] = []
        self._cut_in_a_cluster = False
        self.cluster = 1 << rng.randint(9, 21)
        base = self._base(folder)
        self.note(f"disk of {self.size} bytes, clusters of {self.cluster}, base of {base.stat().st_size if base else 0}")
        self.export = Export.start(folder, self.size, cluster_size=self.cluster, base_raw=base)

    def note(self, line: str) -> None:
        self.history.append(line)

    def live(self, actions: int, resize: bool) -> None:
        """The guest goes on, between two backups."""
        for _ in range(actions):
            if resize and self.rng.random() < 0.12:
                self._resize()
            else:
                self.io([self._write() for _ in range(self.rng.randint(1, 4))])

    def writes(self, count: int) -> list[str]:
        return [self._write() for _ in range(count)]

    def io(self, commands: list[str]) -> None:
        self.note(f"io {commands}")
        self.export.io(*commands)

    def _any_size(self) -> int:
        upper = self.rng.choice([16 * K, 300 * K, 3 * M, 9 * M, 20 * M])
        unit = self.rng.choice([512, 512, 4 * K, 64 * K])
        return max(unit, self.rng.randint(1, upper) // unit * unit)

    def _base(self, folder: Path) -> Path | None:
        if self.rng.random() > 0.3:
            return None
        base = folder / "base.raw"
        base.write_bytes(self.rng.randbytes(4 * K) * (self._any_size() // (4 * K) + 1))
        return base

    def _resize(self) -> None:
        """Grows, shrinks, or shrinks and grows again; the last leaves wrong bitmaps.

        What a shrink cuts out of the middle of a cluster comes back as zeros that QEMU calls data: resize_test.py has that
        case. Here a disk that was cut so does not grow again.
        """
        small = self.rng.randint(1, self.size // 512) * 512
        aligned = small // self.cluster * self.cluster
        if self._cut_in_a_cluster or not aligned or self.rng.random() < 0.15:
            sizes = [small]
            self._cut_in_a_cluster = True
        else:
            sizes = self.rng.choice([[aligned], [self.size + self._any_size()], [aligned, self.size],
                                     [aligned, aligned + self._any_size()]])
        for size in sizes:
            self.note(f"resize {size}")
            self.export.resize(size)
            self.size = size

    def _write(self) -> str:
        unit = self.rng.choice([1, 512, 512, 4 * K, 64 * K, self.cluster])
        length = max(unit, min(self.rng.choice([512, 4 * K, 64 * K, 300 * K, 2 * M]), self.size) // unit * unit)
        length = min(self.rng.randint(1, length // unit) * unit, self.size)
        start = self.rng.choice([0, self.size - length, *[self.rng.randint(0, self.size - length) // unit * unit] * 4])
        verb = self.rng.choice([f"write -P {self.rng.randint(1, 255)}", f"write -P {self.rng.randint(1, 255)}", "write -P 0",
                                "write -z", "write -z -u", "discard"])
        if verb == "discard" and unit < 512:
            verb = "write -z"
        return f"{verb} {start} {length}"


class RandomChains(Case):

    def test_every_restore_point_is_the_disk_of_its_time(self) -> None:
        print(f"QCHAIN_SEED={SEED} QCHAIN_CASES={CASES}", flush=True)
        for number in range(CASES):
            folder = self.path(f"case{number}")
            folder.mkdir()
            RandomChain(self, SEED + number, folder).run()


class RandomChain:
    """One case."""

    def __init__(self, test: Case, seed: int, folder: Path) -> None:
        self.test = test
        self.seed = seed
        self.rng = random.Random(seed)
        self.folder = folder
        self.points: list[Point] = []

    def run(self) -> None:
        disk = Disk(self.rng, self.folder)
        self.disk = disk
        try:
            with disk.export:
                for number in range(self.rng.randint(1, 5)):
                    self._next_point(number)
            for point in self.points:
                self._prove(point)
        except (AssertionError, FixtureError, OSError, ValueError, KeyError) as error:
            history = "\n  ".join(disk.history)
            raise AssertionError(f"repeat with QCHAIN_SEED={self.seed} QCHAIN_CASES=1\n  {history}\n{error}") from error

    # -- a restore point ------------------------------------------------------------------------------------------------

    def _next_point(self, number: int) -> None:
        rng = self.rng
        self.disk.live(rng.randint(0, 5), resize=number > 0)
        parent = rng.choice([None, self.points[-1], self.points[-1], rng.choice(self.points)]) if self.points else None
        several = len(self.points) > 1 and rng.random() < 0.3
        uri = self._begin(f"check{number}", parent, several)
        point = Point(self.folder / f"layer{number}", "qcow2", f"check{number}", self.folder / f"{number}.raw", parent)
        if not parent and rng.random() < 0.2:
            point.format = "raw"
        self.disk.export.reference(point.reference)

        options = self._options(point, several)
        parents = {p.image: sha256(p.image) for p in point.chain[1:]}
        with self._guest_writes_meanwhile():
            document = self._qchain("pull", uri, "-o", point.image, *options, *self._speed(), "--json").json
        self._check_counts(document, point)
        self._check_digest(document, point)
        self._verify(point, uri)
        if rng.random() < 0.25:
            self._same_bytes_again(uri, options)
        self.points.append(point)
        self._check_layer(point, uri, several)
        if rng.random() < 0.3:
            digest = self._qchain("digest", uri, *self._speed()).out.split()[0]
            self.test.assertEqual(digest, blkhash.of_file(point.reference))
        for image, digest in parents.items():
            self.test.assertEqual(sha256(image), digest, f"{image} was changed")
        self.disk.note("end")
        self.disk.export.end()

    def _begin(self, checkpoint: str, parent: Point | None, several: bool) -> str:
        granularity = self.rng.choice([None, *(1 << bits for bits in range(9, 22))])
        since = parent.checkpoint if parent else self.rng.choice([None, *(p.checkpoint for p in self.points)])
        also = [p.checkpoint for p in self.points] if several else []
        self.disk.note(f"backup {checkpoint} since {since}, granularity {granularity}, also {also}")
        return self.disk.export.backup(checkpoint, since, granularity=granularity, also=also)

    def _options(self, point: Point, several: bool) -> list[str]:
        """Those that decide about the bytes of the layer."""
        if point.format == "raw":
            return ["--format", "raw"]
        options = ["--checkpoint", point.checkpoint]
        if self.rng.random() < 0.3:
            options += ["--extended-l2", "--cluster-size", self.rng.choice(LAYER_CLUSTERS[2:])]
        elif self.rng.random() < 0.8:
            options += ["--cluster-size", self.rng.choice(LAYER_CLUSTERS)]
        if self.rng.random() < 0.1:
            point.manifest = False
            options += ["--digest", "none"]
        if self.rng.random() < 0.5:
            options += ["--compress", self.rng.choice(["zlib", "zlib:1", "zstd", "zstd:9"])]
        if point.parent:
            options += ["--parent", str(point.parent.image), "--since", point.parent.checkpoint]
            if point.parent.format == "raw":
                options += ["--parent-format", "raw"]
            if several:
                options += ["--bitmap", self.rng.choice(["backup-vda", point.parent.checkpoint])]
        return options

    def _speed(self) -> list[str]:
        options = []
        if self.rng.random() < 0.7:
            options += ["--connections", str(self.rng.randint(1, 6))]
        if self.rng.random() < 0.7:
            options += ["--requests", str(self.rng.choice([1, 2, 7, 16, 40]))]
        return options

    def _guest_writes_meanwhile(self) -> "Meanwhile":
        batches = [self.disk.writes(3) for _ in range(self.rng.choice([0, 0, 1, 4]))]
        return Meanwhile(self.disk, batches)

    # -- proof ----------------------------------------------------------------------------------------------------------

    def _verify(self, point: Point, uri: str) -> None:
        if point.format == "qcow2":
            document = self._qchain("verify", point.image, "--against", uri, *self._speed(), "--json").json
            self.test.assertEqual(document["chain_digest"], blkhash.of_file(point.reference))
            self.test.assertEqual(document["compared_bytes"], point.reference.stat().st_size)

    def _same_bytes_again(self, uri: str, options: list[str]) -> None:
        """Other connections, the same bytes; the second pull is one of many requests, the first of one at a time."""
        again = [self.folder / "again1", self.folder / "again2"]
        identity = [] if "raw" in options[:2] else ["--layer-id", "00000000-1111-4222-8333-444444444444"]
        for image, speed in zip(again, (["--connections", "1", "--requests", "1"], ["--connections", "5"])):
            self._qchain("pull", uri, "-o", image, *options, *identity, *speed, env={"SOURCE_DATE_EPOCH": "1700000000"})
        self.test.assert_same_bytes(*again)
        for image in again:
            image.unlink()
            image.with_name(f"{image.name}.manifest").unlink(missing_ok=True)

    def _check_counts(self, document: dict[str, Any], point: Point) -> None:
        """The output of pull for the layer: the three kinds cover the disk."""
        size = point.reference.stat().st_size
        if point.format == "raw":
            self.test.assertEqual(document["data_bytes"] + document["zero_bytes"], size)
            return
        self.test.assertEqual(document["virtual_size"], size)
        self.test.assertEqual(document["data_bytes"] + document["zero_bytes"] + document["inherited_bytes"], size)
        self.test.assertEqual(document["kind"], "increment" if point.parent else "full")

    def _check_digest(self, document: dict[str, Any], point: Point) -> None:
        """The digest of the whole disk, computed with the parent's, equals that of an independent program."""
        if point.format == "qcow2":
            expected = "sha256:" + blkhash.of_file(point.reference) if point.proven else None
            self.test.assertEqual(document["digest"], expected)

    def _check_layer(self, point: Point, uri: str, several: bool) -> None:
        """What the layer itself holds: no data cluster of zeros, and nothing that did not change."""
        if point.format == "raw":
            return
        info = self._qchain("chaininfo", point.image, "--map", "--json").json
        cluster = info["layers"][0]["cluster_size"] // (32 if "extended L2" in info["layers"][0]["features"] else 1)
        held = [m for m in info["map"] if m["layer"] == 0 and m["kind"] != "inherit"]
        content = point.reference.read_bytes()
        for mapping in (m for m in held if m["kind"] == "data"):
            for at in range(mapping["start"], mapping["start"] + mapping["length"], cluster):
                self.test.assertTrue(any(content[at:at + cluster]), f"the cluster at {at:#x} is stored, and is all zeros")
        if not point.parent or any(line.startswith("resize") for line in self.disk.history):
            return  # after a shrink, what the bitmap missed is held too
        bitmap = point.parent.checkpoint if several else "backup-vda"
        dirty = self._dirty_clusters(uri, bitmap, cluster)
        for mapping in held:
            first, last = mapping["start"] // cluster, (mapping["start"] + mapping["length"] - 1) // cluster
            outside = set(range(first, last + 1)) - dirty
            self.test.assertFalse(outside, f"these clusters of {cluster} are held and not dirty: {sorted(outside)}")

    def _dirty_clusters(self, uri: str, bitmap: str, cluster: int) -> set[int]:
        """By QEMU's client, which shows a dirty range as one without data."""
        socket = uri.partition("socket=")[2]
        options = f"driver=nbd,export=vda,server.type=unix,server.path={socket},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}"
        extents = json.loads(self.test.run_tool("qemu-img", "map", "--output=json", "--image-opts", options))
        return {number for extent in extents if not extent["data"] and extent["length"]
                for number in range(extent["start"] // cluster, (extent["start"] + extent["length"] - 1) // cluster + 1)}

    def _prove(self, point: Point) -> None:
        """All checks of a restore point after the job has ended."""
        test = self.test
        digest = blkhash.of_file(point.reference)
        test.assertEqual(self._qchain("digest", point.image, "--format", point.format).out.split()[0], digest)
        if point.format == "raw":
            test.assert_same_bytes(point.image, point.reference)
            return
        test.assert_sound(point.image)
        test.assert_holds(point.image, point.reference)
        restored = self.folder / "restored.raw"
        expect = 0 if point.proven else 4
        test.qchain("restore", point.image, restored, expect=expect)
        test.assert_same_bytes(restored, point.reference)
        restored.unlink()
        test.qchain("check", point.image, "--strict")
        test.qchain("verify", point.image, *self._speed(), expect=expect)
        if not point.proven and self.rng.random() < 0.5:
            self._seal(point)
        self._check_map(point)

    def _seal(self, point: Point) -> None:
        """Missing manifests, made from the current content; on a copy, so that the others are not changed."""
        copy = self.folder / "sealed"
        copy.mkdir()
        for p in point.chain:
            for file in self.folder.glob(p.image.name + "*"):
                self.test.run_tool("cp", "--sparse=always", file, copy)
        document = self.test.qchain("verify", copy / point.image.name, "--seal", "--json").json
        self.test.assertEqual(document["sealed"][-1]["root"], "sha256:" + blkhash.of_file(point.reference))
        self.test.qchain("verify", copy / point.image.name)
        self.test.run_tool("rm", "-r", copy)

    def _check_map(self, point: Point) -> None:
        """chaininfo and QEMU say the same of every byte: zeros, or from which file and where in it."""
        info = self._qchain("chaininfo", point.image, "--map", "--json").json
        files = [str(p.image) for p in point.chain]
        self.test.assertEqual([str((self.folder / layer["file"]).resolve()) for layer in info["layers"]], files)
        ours = ((m["start"], m["length"], (files[m["layer"]], None if m.get("compressed") else m["host_offset"])
                 if m["kind"] == "data" else None) for m in info["map"])
        extents = json.loads(self.test.run_tool("qemu-img", "map", "--output=json", "-f", "qcow2", point.image))
        qemu = ((e["start"], e["length"], (files[e["depth"]], e.get("offset")) if e["data"] else None) for e in extents)
        self.test.assertEqual(list(merged(ours)), list(merged(qemu)), f"the map of {point.image}")

    def _qchain(self, *argv: str | Path, env: dict[str, str] | None = None) -> Any:
        return self.test.qchain(*argv, env=env)


class Meanwhile:
    """The guest writes while the pull runs."""

    def __init__(self, disk: Disk, batches: list[list[str]]) -> None:
        self.batches = batches
        self.disk = disk
        self.thread = threading.Thread(target=self._write)
        self.error: Exception | None = None

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.thread.join()
        if self.error:
            raise self.error

    def _write(self) -> None:
        try:
            for commands in self.batches:
                self.disk.io(commands)
        except FixtureError as error:
            self.error = error


def merged(extents: Iterator[tuple[int, int, Source]]) -> Iterator[Piece]:
    """Extents in order as the fewest pieces that say the same."""
    last: Piece | None = None
    for start, length, source in extents:
        piece = Piece(start, start + length, source)
        if last and last.end == piece.start and _continues(last, piece):
            last = Piece(last.start, piece.end, last.source)
            continue
        if last:
            yield last
        last = piece
    if last:
        yield last


def _continues(one: Piece, other: Piece) -> bool:
    if one.source is None or other.source is None:
        return one.source is other.source
    if one.source[1] is None or other.source[1] is None:
        return one.source == other.source
    return one.source[0] == other.source[0] and one.source[1] + one.end - one.start == other.source[1]


if __name__ == "__main__":
    unittest.main()
