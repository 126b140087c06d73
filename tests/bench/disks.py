"""The disks of the benchmarks. All that is random follows from a seed, so that every run has the same ones."""

from __future__ import annotations

import json
import math
import random
import struct
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from measure import WrongResult

from harness import K, M, Argument, words

CLUSTER = 64 * K
_WORDS = ("backup checkpoint cluster dirty bitmap export extent guest layer manifest overlay parent point restore root "
          "segment snapshot table virtual zero and of the in a to is from with").split()


def tool(*argv: Argument, timeout: float = 3600) -> str:
    """Runs a program that has to succeed, and returns what it printed; raises WrongResult."""
    done = subprocess.run(words(argv), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                          timeout=timeout)
    if done.returncode != 0:
        raise WrongResult(f"{' '.join(map(str, argv))[:500]}: exit {done.returncode}: {(done.stderr + done.stdout)[-2000:]}")
    return done.stdout


def place(rng: random.Random, lengths: Sequence[int], units: int) -> list[range]:
    """Ranges of these lengths within `units`, in order, no two of which touch."""
    gaps = sorted(rng.sample(range(units - sum(lengths) + 1), len(lengths)))
    ranges, used = [], 0
    for gap, length in zip(gaps, lengths):
        ranges.append(range(gap + used, gap + used + length))
        used += length
    return ranges


def runs_of_data(size: int, data: int, seed: int = 1) -> Iterator[tuple[int, bytes]]:
    """Offsets and bytes: `data` bytes in runs of 64 KiB to 4 MiB on a disk of `size`; one half is text, one is noise."""
    rng = random.Random(seed)
    lengths: list[int] = []
    while sum(lengths) < data // CLUSTER:
        length = int(2 ** rng.uniform(0, math.log2(4 * M // CLUSTER)))
        lengths.append(min(length, data // CLUSTER - sum(lengths)))
    text = " ".join(rng.choices(_WORDS, k=M)).encode()
    for run in place(rng, lengths, size // CLUSTER):
        length = len(run) * CLUSTER
        at = rng.randrange(len(text) - 4 * M)
        yield run.start * CLUSTER, text[at:at + length] if rng.random() < 0.5 else rng.randbytes(length)


def make_disk(path: Path, size: int, data: int) -> None:
    """A qcow2 image of a disk with runs of data."""
    raw = path.with_suffix(".raw")
    with raw.open("wb") as file:
        file.truncate(size)
        for at, content in runs_of_data(size, data):
            file.seek(at)
            file.write(content)
    tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
    raw.unlink()


def make_sparse_file(path: Path, size: int, count: int) -> None:
    """A raw disk with `count` clusters of noise, scattered over all of it."""
    rng = random.Random(4)
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
        for (cluster,) in place(rng, [1] * count, size // CLUSTER):
            file.seek(cluster * CLUSTER)
            file.write(rng.randbytes(CLUSTER))


def scattered(size: int, clusters: int, fragments: int, seed: int = 2) -> list[range]:
    """Where an increment changes a disk: so many clusters, in so many fragments."""
    rng = random.Random(seed)
    lengths = [1] * fragments
    for _ in range(clusters - fragments):
        lengths[rng.randrange(fragments)] += 1
    return place(rng, lengths, size // CLUSTER)


def writes(ranges: Sequence[range]) -> list[str]:
    """What dirties them: commands of qemu-io."""
    return [f"write -q -P {number % 255 + 1} {run.start * CLUSTER} {len(run) * CLUSTER}"
            for number, run in enumerate(ranges)]


def make_changed(path: Path, backing: Path, ranges: Sequence[range]) -> None:
    """The disk of `backing` after writes to `ranges`, which the dirty bitmap `b0` has recorded."""
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", "qcow2", path)
    tool("qemu-img", "bitmap", "--add", "-g", CLUSTER, path, "b0")
    tool("qemu-io", "-f", "qcow2", *(word for command in writes(ranges) for word in ("-c", command)), path)


def make_scattered_image(path: Path, size: int, count: int, seed: int = 3) -> None:
    """A qcow2 image with `count` clusters of data, each by itself. All tables are there; the clusters are holes of the file.

    In order: header, refcount table, refcount blocks, L1 table, L2 tables, data.
    """
    rng = random.Random(seed)
    per_table = CLUSTER // 8
    tables = defaultdict(list)
    for (cluster,) in place(rng, [1] * count, size // CLUSTER):
        tables[cluster // per_table].append(cluster % per_table)
    l1_entries = size // CLUSTER // per_table
    l1_clusters = -(-8 * l1_entries // CLUSTER)
    others = 2 + l1_clusters + len(tables) + count
    blocks = -(-others // (CLUSTER // 2 - 1))
    l1_at, total = 2 + blocks, others + blocks
    header = struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 16, size, 0, l1_entries, l1_at * CLUSTER, CLUSTER, 1, 0,
                         0, 0, 0, 0, 4, 104)
    with path.open("wb") as file:
        file.write(header)
        file.seek(CLUSTER)
        file.write(struct.pack(f">{blocks}Q", *(CLUSTER * (2 + number) for number in range(blocks))))
        file.seek(2 * CLUSTER)
        file.write(struct.pack(">H", 1) * total)
        l1, table_at, data_at = [0] * l1_entries, l1_at + l1_clusters, l1_at + l1_clusters + len(tables)
        for number, entries in tables.items():
            l1[number] = 1 << 63 | table_at * CLUSTER
            l2 = [0] * per_table
            for entry in entries:
                l2[entry] = 1 << 63 | data_at * CLUSTER
                data_at += 1
            file.seek(table_at * CLUSTER)
            file.write(struct.pack(f">{per_table}Q", *l2))
            table_at += 1
        file.seek(l1_at * CLUSTER)
        file.write(struct.pack(f">{l1_entries}Q", *l1))
        file.truncate(total * CLUSTER)


def data_by_qemu(text: Path) -> list[tuple[int, int]]:
    """Ranges that the top layer keeps in its file, by what `qemu-img map --output=json` printed."""
    return _merged((entry["start"], entry["length"]) for entry in json.loads(text.read_text())
                   if "offset" in entry and entry["depth"] == 0)


def data_by_qchain(text: Path) -> list[tuple[int, int]]:
    """The same by `chaininfo --map --json`."""
    return _merged((entry["start"], entry["length"]) for entry in json.loads(text.read_text())["map"]
                   if entry["kind"] == "data")


def _merged(ranges: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, length in ranges:
        if merged and sum(merged[-1]) == start:
            merged[-1] = merged[-1][0], merged[-1][1] + length
        else:
            merged.append((start, length))
    return merged
