"""Peak memory of a release build, at sizes that count: QCHAIN_RELEASE=build/release/cli/qchain memory_test.py.

Without QCHAIN_RELEASE there are no tests here: a sanitizer's memory says nothing.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
import unittest
from pathlib import Path

from harness import G, K, M, T, Argument, Case, end_process, nbdkit, patch, qemu_nbd, words

RELEASE = os.environ.get("QCHAIN_RELEASE")
LIMIT = 64 * M
FRAGMENTS = 200_000

# Blocks of 4 KiB with data, in a terabyte, and every other one of 2 GiB.
SCATTERED = ("sparse-random", "size=1T", "percent=0.1", "runlength=4096", "seed=1")
SIDE_BY_SIDE = ("sparse-random", "size=2G", "percent=50", "runlength=4096", "seed=1")
A_MILLION = ("sparse-random", "size=8G", *SIDE_BY_SIDE[2:])

# A process counts what its parent held when it was forked, so that it needs a small one.
MEASURE = """import os, sys
_, status, usage = os.wait4(os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:]), 0)
print(usage.ru_maxrss, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))"""


class Memory(Case):
    """"At most 64 MiB for any command at any size"."""

    def qchain_in_64_mib(self, *argv: Argument, expect: int = 0) -> None:
        """Runs the release build; its resident set never grows past the limit."""
        assert RELEASE
        begin = time.monotonic()
        with self.path("said").open("wb") as said:
            process = subprocess.Popen(words([sys.executable, "-c", MEASURE, Path(RELEASE).resolve(), *argv]), cwd=self.folder,
                                       stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.PIPE, text=True)
            self.addCleanup(end_process, process)
            err = process.communicate()[1]
        self.assertEqual(process.returncode, expect, err[:4000])
        peak = K * int(err.splitlines()[-1])
        print(f"{argv[0]}: peak of {peak / M:.1f} MiB, {time.monotonic() - begin:.1f} s", file=sys.stderr)
        self.assertLessEqual(peak, LIMIT, f"{argv}")

    def all_commands(self, uri: str, *options: Argument, restore: bool = True) -> None:
        self.qchain_in_64_mib("pull", uri, "-o", "layer.qcow2", *options)
        self.qchain_in_64_mib("verify", "layer.qcow2", "--against", uri)
        if restore:
            self.qchain_in_64_mib("digest", "layer.qcow2")
            self.qchain_in_64_mib("restore", "layer.qcow2", "restored.raw", "--no-verify")
        self.qchain_in_64_mib("chaininfo", "layer.qcow2", "--map", "--json")

    def assert_fragments(self) -> None:
        """What chaininfo has just said."""
        with self.path("said").open("rb") as said:
            self.assertGreaterEqual(sum(line.count(b'"kind":"data"') for line in said), FRAGMENTS)

    def test_sixteen_tebibytes(self) -> None:
        """Nearly all holes."""
        size = 16 * T - 64 * K
        self.path("disk").touch()
        os.truncate(self.path("disk"), T)
        with self.path("disk").open("r+b") as file:
            for at in range(0, T, 16 * G):
                file.seek(at)
                file.write(b"data")
        with nbdkit(self.folder, "--filter=truncate", "file", self.path("disk"), f"truncate={size}") as server:
            self.qchain_in_64_mib("pull", server.uri, "-o", "layer.qcow2")
            self.qchain_in_64_mib("verify", "layer.qcow2", "--against", server.uri)
            self.qchain_in_64_mib("chaininfo", "layer.qcow2", "--map", "--json")

    def test_a_terabyte_of_scattered_fragments(self) -> None:
        """Nearly each has an L2 table of its own."""
        with nbdkit(self.folder, *SCATTERED) as server:
            self.all_commands(server.uri, "--cluster-size", "4K", restore=False)
        self.assert_fragments()

    def test_many_fragments_side_by_side(self) -> None:
        with nbdkit(self.folder, *SIDE_BY_SIDE) as server:
            self.all_commands(server.uri, "--cluster-size", "4K")
        self.assert_fragments()

    def test_a_million_fragments(self) -> None:
        with nbdkit(self.folder, *A_MILLION) as server:
            self.qchain_in_64_mib("pull", server.uri, "-o", "layer.qcow2", "--cluster-size", "4K")
            self.qchain_in_64_mib("chaininfo", "layer.qcow2", "--map", "--json")

    def test_an_increment_of_many_fragments(self) -> None:
        """Data all over; every other bit of the dirty bitmap is set."""
        self.image("full.qcow2", size=2 * G, options=["cluster_size=4K"])
        with nbdkit(self.folder, "pattern", "2G") as data:
            self.run_tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4K", "-b", data.uri, "-F", "raw",
                          "live.qcow2")
            self.run_tool("qemu-img", "bitmap", "--add", "-g", 4 * K, "live.qcow2", "b0")
            a_bit_of_each_cluster = [word for at in range(0, 2 * G, 128 * M) for word in ("-c", f"write -z {at} 4k")]
            self.run_tool("qemu-io", "-f", "qcow2", *a_bit_of_each_cluster, "live.qcow2")
            for offset in bitmap_clusters(self.path("live.qcow2").read_bytes()):
                patch(self.path("live.qcow2"), offset, b"\xaa" * 4 * K)
            with qemu_nbd(self.folder, "-B", "b0", "-f", "qcow2", self.path("live.qcow2")) as server:
                self.qchain_in_64_mib("pull", server.uri, "-o", "layer.qcow2", "--parent", "full.qcow2")
                self.qchain_in_64_mib("chaininfo", "layer.qcow2", "--map", "--json")
        self.assert_fragments()


def bitmap_clusters(image: bytes) -> list[int]:
    """The host offsets of the one bitmap of a qcow2 image."""
    at = image.index(bytes.fromhex("23852875")) + 8
    count, _, _, directory = struct.unpack_from(">IIQQ", image, at)
    assert count == 1
    table, entries = struct.unpack_from(">QI", image, directory)
    return [entry & (1 << 56) - 512 for entry in struct.unpack_from(f">{entries}Q", image, table)]


if not RELEASE:
    del Memory


if __name__ == "__main__":
    unittest.main()
