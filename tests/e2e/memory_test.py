"""Peak memory of a release build with large disks; not measured with sanitizers.

QCHAIN_RELEASE is the program; without it, build/release/cli/qchain. Disks are a quarter as large without QCHAIN_SOAK.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
import unittest
from pathlib import Path

from harness import SOAK, G, K, M, T, Argument, Case, end_process, nbdkit, patch, qemu_nbd, words

RELEASE = Path(os.environ.get("QCHAIN_RELEASE") or Path(__file__).resolve().parents[2] / "build/release/cli/qchain").resolve()
LIMIT = 64 * M
PART = 1 if SOAK else 4
FRAGMENTS = 200_000 // PART
MILLION = 1_000_000 // PART

# Blocks of 4 KiB with data, in a terabyte, and every other one of 2 GiB.
SCATTERED = ("sparse-random", f"size={T // PART}", "percent=0.1", "runlength=4096", "seed=1")
SIDE_BY_SIDE = ("sparse-random", f"size={2 * G // PART}", "percent=50", "runlength=4096", "seed=1")

# A process counts what its parent held when it was forked, so that it needs a small one.
MEASURE = """import os, sys
_, status, usage = os.wait4(os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:]), 0)
print(usage.ru_maxrss, usage.ru_utime + usage.ru_stime, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))"""


class Memory(Case):
    """"At most 64 MiB for any command at any size"."""

    @classmethod
    def setUpClass(cls) -> None:
        if not os.access(RELEASE, os.X_OK):
            raise FileNotFoundError(f"{RELEASE}: not there; build it: cmake --preset release && cmake --build --preset release")

    def qchain_in_64_mib(self, *argv: Argument, expect: int = 0) -> None:
        """Runs the release build; its resident set never grows past the limit."""
        begin = time.monotonic()
        with self.path("said").open("wb") as said:
            process = subprocess.Popen(words([sys.executable, "-c", MEASURE, RELEASE, *argv]), cwd=self.folder,
                                       stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.PIPE, text=True)
            self.addCleanup(end_process, process)
            err = process.communicate()[1]
        self.assertEqual(process.returncode, expect, err[:4000])
        kibibytes, processor = err.splitlines()[-1].split()
        peak = K * int(kibibytes)
        print(f"{argv[0]}: peak of {peak / M:.1f} MiB, {time.monotonic() - begin:.1f} s, "
              f"of the processor {float(processor):.1f} s", file=sys.stderr)
        self.assertLessEqual(peak, LIMIT, f"{argv}")

    def look_at(self, layer: str) -> None:
        """What costs as much as there are tables. The map comes last: assert_fragments counts in it."""
        self.qchain_in_64_mib("check", layer, "--json")
        self.qchain_in_64_mib("chaininfo", layer, "--map", "--json")

    def assert_fragments(self, least: int = FRAGMENTS, kind: str = "data") -> None:
        """What chaininfo has just said."""
        with self.path("said").open("rb") as said:
            self.assertGreaterEqual(sum(line.count(b'"kind":"%s"' % kind.encode()) for line in said), least)

    def hollow_disk(self, size: int, step: int) -> None:
        with self.path("disk").open("wb") as file:
            for at in range(0, size, step):
                file.seek(at)
                file.write(b"data")
            file.truncate(size)

    def test_sixteen_tebibytes(self) -> None:
        """Nearly all holes."""
        size = 16 * T // PART - 64 * K
        self.hollow_disk(T, 16 * G)
        with nbdkit(self.folder, "--filter=truncate", "file", self.path("disk"), f"truncate={size}") as server:
            self.qchain_in_64_mib("pull", server.uri, "-o", "layer.qcow2")
            self.qchain_in_64_mib("verify", "layer.qcow2", "--against", server.uri)
        self.look_at("layer.qcow2")

    def test_a_terabyte_of_scattered_fragments(self) -> None:
        """Nearly each has an L2 table of its own."""
        with nbdkit(self.folder, *SCATTERED) as server:
            self.qchain_in_64_mib("pull", server.uri, "-o", "layer.qcow2", "--cluster-size", "4K")
        self.look_at("layer.qcow2")
        self.assert_fragments()

    def test_large_clusters(self) -> None:
        """Where the buffer of a piece has room for one cluster more, and that is much of it."""
        with nbdkit(self.folder, "sparse-random", f"size={T // PART}", "percent=0.1", f"runlength={M}", "seed=1") as server:
            self.qchain_in_64_mib("pull", server.uri, "-o", "layer.qcow2", "--cluster-size", "1M")

    def test_many_fragments_side_by_side(self) -> None:
        with nbdkit(self.folder, *SIDE_BY_SIDE) as server:
            self.qchain_in_64_mib("pull", server.uri, "-o", "layer.qcow2", "--cluster-size", "4K")
            self.qchain_in_64_mib("verify", "layer.qcow2", "--against", server.uri)
        self.qchain_in_64_mib("digest", "layer.qcow2")
        self.qchain_in_64_mib("restore", "layer.qcow2", "restored.raw")
        self.look_at("layer.qcow2")
        self.assert_fragments()

    def pull_every_other_cluster(self, size: int, *backing: Argument) -> None:
        """An increment on full.qcow2, of a disk with the same bytes: every other bit of the dirty bitmap is set."""
        self.run_tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4K", *backing, "live.qcow2", size)
        self.run_tool("qemu-img", "bitmap", "--add", "-g", 4 * K, "live.qcow2", "b0")
        a_bit_of_each_cluster = [word for at in range(0, size, 128 * M) for word in ("-c", f"write -z {at} 4k")]
        self.run_tool("qemu-io", "-f", "qcow2", *a_bit_of_each_cluster, "live.qcow2")
        for offset in bitmap_clusters(self.path("live.qcow2").read_bytes()):
            patch(self.path("live.qcow2"), offset, b"\xaa" * 4 * K)
        with qemu_nbd(self.folder, "-B", "b0", "-f", "qcow2", self.path("live.qcow2")) as server:
            self.qchain_in_64_mib("pull", server.uri, "-o", "layer.qcow2", "--parent", "full.qcow2")
        self.look_at("layer.qcow2")

    def test_an_increment_of_many_fragments(self) -> None:
        with nbdkit(self.folder, "pattern", f"{2 * G // PART}") as data:
            self.qchain_in_64_mib("pull", data.uri, "-o", "full.qcow2", "--cluster-size", "4K")
            self.pull_every_other_cluster(2 * G // PART, "-b", data.uri, "-F", "raw")
        self.assert_fragments()

    def test_a_million_fragments(self) -> None:
        """Of zeros, so that there is nothing but fragments."""
        self.image("full.qcow2", size=8 * G // PART, options=["cluster_size=4K"])
        self.pull_every_other_cluster(8 * G // PART)
        self.assert_fragments(MILLION, "zero")

    def test_as_many_workers_as_there_can_be(self) -> None:
        """Each has pieces of the disk in memory: over a long line there are many, and clusters of 2 MiB are large."""
        with nbdkit(self.folder, "--filter=delay", "pattern", "256M", "rdelay=5ms") as server:
            for options in ([], ["--compress", "zstd"]):
                for cluster_size in ("2M", "64K"):
                    self.qchain_in_64_mib("pull", server.uri, "-o", "layer.qcow2", "--force", "--cluster-size", cluster_size,
                                          *options)
            self.qchain_in_64_mib("pull", server.uri, "-o", "disk.raw", "--format", "raw")
            self.qchain_in_64_mib("verify", "layer.qcow2", "--against", server.uri, "--connections", "16")
            self.qchain_in_64_mib("verify", "layer.qcow2", "--against", server.uri, "--manifest-only", expect=4)
            self.qchain_in_64_mib("digest", server.uri)
        self.qchain_in_64_mib("verify", "layer.qcow2", "--connections", "16")
        self.qchain_in_64_mib("restore", "layer.qcow2", "restored.raw", "--connections", "16")

    def test_the_highest_compression_of_large_clusters(self) -> None:
        """A compressor then takes 33 MiB."""
        with nbdkit(self.folder, "pattern", f"{64 * M // PART}") as server:
            self.qchain_in_64_mib("pull", server.uri, "-o", "layer.qcow2", "--cluster-size", "2M",
                                  "--compress", "zstd:19")

    def test_a_large_l1_table(self) -> None:
        """Of 32 MiB, which is QEMU's limit."""
        self.hollow_disk(8 * T - 64 * K, 8 * G)
        with nbdkit(self.folder, "file", self.path("disk")) as server:
            self.qchain_in_64_mib("pull", server.uri, "-o", "layer.qcow2", "--cluster-size", "4K")

    def test_names_of_snapshots(self) -> None:
        """A thousand of them, of nearly 64 KiB each: as much as a snapshot table can hold, and no letter among them."""
        self.image("layer.qcow2", size=M)
        image = bytearray(self.path("layer.qcow2").read_bytes().ljust(M, b"\0"))
        struct.pack_into(">I", image, 60, 1000)
        struct.pack_into(">Q", image, 64, len(image))
        entry = struct.pack(">QIHHIIQIIQQ", 0, 0, 1000, 64000, 0, 0, 0, 0, 16, 0, M).ljust(56 + 65000, b"\xff")
        self.path("layer.qcow2").write_bytes(bytes(image) + entry * 1000)
        self.qchain_in_64_mib("check", "layer.qcow2", "--json", expect=1)
        self.qchain_in_64_mib("chaininfo", "layer.qcow2", "--json")
        self.qchain_in_64_mib("chaininfo", "layer.qcow2")


def bitmap_clusters(image: bytes) -> list[int]:
    """The host offsets of the one bitmap of a qcow2 image."""
    at = image.index(bytes.fromhex("23852875")) + 8
    count, _, _, directory = struct.unpack_from(">IIQQ", image, at)
    assert count == 1
    table, entries = struct.unpack_from(">QI", image, directory)
    return [entry & (1 << 56) - 512 for entry in struct.unpack_from(f">{entries}Q", image, table)]


if __name__ == "__main__":
    unittest.main()
