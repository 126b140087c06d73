"""Servers with fewer features, or with misleading replies that the protocol allows: a full image is right, if slower."""

from __future__ import annotations

import os
import unittest
from pathlib import Path

from harness import QCHAIN, K, M, Argument, Case, nbdkit, qemu_nbd

SIZE = 8 * M + 512


class LesserServers(Case):
    """A disk with data, zeros written as data, and holes, behind servers of all kinds."""

    def setUp(self) -> None:
        super().setUp()
        self.disk = self.path("disk.raw")
        with self.disk.open("wb") as file:
            file.truncate(SIZE)
            for offset, content in ((0, os.urandom(300 * K)), (1 * M, b"x" * 5), (2 * M - 512, os.urandom(2 * M)),
                                    (5 * M, bytes(M)), (SIZE - 512, b"end".ljust(512, b"\0"))):
                file.seek(offset)
                file.write(content)

    def check(self, *server: Argument, options: tuple[str, ...] = ()) -> None:
        """A full image, its proof, a raw image, and a digest."""
        def run(before: tuple[str, ...], *after: str) -> str:
            """With a server of its own: one that has room for one client may not have seen yet that the last one is gone."""
            with nbdkit(self.folder, *server) as live:
                return self.qchain(*before, live.uri, *after, *options).out

        run(("pull",), "-o", "full.qcow2", "--force")
        self.assert_sound("full.qcow2")
        self.assert_holds("full.qcow2", "disk.raw")
        run(("verify", "full.qcow2", "--against"))
        run(("pull",), "-o", "full.raw", "--format", "raw", "--force")
        self.assert_same_bytes("full.raw", "disk.raw")
        self.assertEqual(run(("digest",)).split()[0], self.qchain("digest", "disk.raw", "--format", "raw").out.split()[0])

    def test_without_extents(self) -> None:
        self.check("--filter=noextents", "file", self.disk)

    def test_without_structured_replies(self) -> None:
        self.check("--no-sr", "file", self.disk)

    def test_without_either(self) -> None:
        self.check("--no-sr", "--filter=noextents", "file", self.disk)

    def test_of_the_old_protocol(self) -> None:
        self.check("--oldstyle", "file", self.disk)

    def test_of_a_file_that_ends_inside_a_sector(self) -> None:
        """The server's reply for the first 300,001 bytes ends there; zeros follow."""
        os.truncate(self.disk, 300_001)
        with self.path("longer.raw").open("wb") as file:
            file.write(self.disk.read_bytes())
            file.truncate(2 * M)
        with nbdkit(self.folder, "--filter=truncate", "file", self.disk, "truncate=2M") as live:
            self.qchain("pull", live.uri, "-o", "full.qcow2")
            self.assert_sound("full.qcow2")
            self.assert_holds("full.qcow2", "longer.raw")
            self.qchain("verify", "full.qcow2", "--against", live.uri)

    def test_for_one_client(self) -> None:
        self.check("--filter=limit", "file", self.disk, "limit=1")

    def test_for_one_client_that_asks_for_more(self) -> None:
        self.check("--filter=limit", "file", self.disk, "limit=1", options=("--connections", "4"))

    def test_for_two_clients(self) -> None:
        self.check("--filter=limit", "file", self.disk, "limit=2", options=("--connections", "8"))

    def test_for_one_client_without_extents_and_structured_replies(self) -> None:
        self.check("--no-sr", "--filter=limit", "--filter=noextents", "file", self.disk, "limit=1")

    def test_of_qemu_for_one_client(self) -> None:
        """qemu-nbd lets the second one wait, and never refuses it."""
        with qemu_nbd(self.folder, "-e", "1", "-f", "raw", self.disk) as live:
            for options in ((), ("--connections", "4")):
                self.qchain("pull", live.uri, "-o", "full.qcow2", "--force", *options, timeout=60)
                self.assert_holds("full.qcow2", "disk.raw")

    def test_without_multi_conn(self) -> None:
        self.check("--filter=multi-conn", "file", self.disk, "multi-conn-mode=disable", options=("--connections", "4"))

    def test_with_one_request_at_a_time(self) -> None:
        self.check("--filter=noparallel", "file", self.disk, "serialize=connections")

    def test_with_block_sizes_that_are_enforced(self) -> None:
        os.truncate(self.disk, 8 * M)
        for minimum, maximum in ((512, 4096), (4096, 64 * K), (64 * K, 64 * K), (4096, 256 * K)):
            with self.subTest(minimum=minimum, maximum=maximum):
                self.check("--filter=blocksize-policy", "file", self.disk, f"blocksize-minimum={minimum}",
                           f"blocksize-preferred={max(minimum, 4096)}", f"blocksize-maximum={maximum}",
                           "blocksize-error-policy=error")

    def test_with_a_tail_below_its_own_block_size(self) -> None:
        """The size is not a multiple of 4096: read completely, or an error."""
        with nbdkit(self.folder, "--filter=blocksize-policy", "file", self.disk, "blocksize-minimum=4096",
                    "blocksize-error-policy=error") as live:
            done = self.qchain("pull", live.uri, "-o", "full.qcow2", expect=(0, 3))
            if done.code == 0:
                self.assert_holds("full.qcow2", "disk.raw")
            else:
                self.assert_says(done, "last 512 bytes")
                self.assertFalse(self.path("full.qcow2").exists())

    def test_with_latency(self) -> None:
        self.check("--filter=delay", "file", self.disk, "rdelay=5ms", "delay-extents=5ms")

    def test_with_tiny_extents(self) -> None:
        """Every other sector is a hole, which it also reads as."""
        lines = "".join(f"{at} 512 {'hole,zero' if at // 512 % 2 else ''}\n" for at in range(0, 2 * M, 512))
        self.path("extents").write_text(lines + f"{2 * M} {SIZE - 2 * M}\n")
        content = bytearray(self.disk.read_bytes())
        for at in range(512, 2 * M, 1024):
            content[at:at + 512] = bytes(512)
        self.disk.write_bytes(content)
        for options in ((), ("--cluster-size", "4K")):
            with nbdkit(self.folder, "--filter=extentlist", "file", self.disk, f"extentlist={self.path('extents')}") as live:
                self.qchain("pull", live.uri, "-o", "full.qcow2", "--force", *options)
                self.assert_holds("full.qcow2", "disk.raw")

    def test_whose_holes_are_not_zeros(self) -> None:
        """"Only ZERO promises that a range reads as zeros": a hole alone is read."""
        self.path("extents").write_text(f"0 1M hole\n1M 1M\n2M {SIZE - 2 * M} hole\n")
        self.check("--filter=extentlist", "file", self.disk, f"extentlist={self.path('extents')}")

    def test_an_empty_disk(self) -> None:
        with nbdkit(self.folder, "memory", "0") as live:
            done = self.qchain("pull", live.uri, "-o", "full.qcow2", expect=(0, 2, 3, 4))
            if done.code == 0:
                self.assert_sound("full.qcow2")
            else:
                self.assert_says(done)
            self.qchain("digest", live.uri)

    def test_a_disk_smaller_than_a_sector(self) -> None:
        os.truncate(self.disk, 5)
        with nbdkit(self.folder, "file", self.disk) as live:
            self.qchain("pull", live.uri, "-o", "full.qcow2")
            self.qchain("pull", live.uri, "-o", "full.raw", "--format", "raw")
            self.qchain("verify", "full.qcow2", "--against", live.uri)
        self.assert_same_bytes("full.raw", "disk.raw")
        self.assert_sound("full.qcow2")

    def test_a_server_that_exits_when_the_last_client_has_gone(self) -> None:
        """No connection is closed before the next is open."""
        with nbdkit(self.folder, "--filter=exitlast", "file", self.disk) as live:
            self.qchain("pull", live.uri, "-o", "full.qcow2")
        self.assert_holds("full.qcow2", "disk.raw")

    def test_an_increment_without_dirty_bitmaps(self) -> None:
        self.image("full.qcow2", size=SIZE)
        with nbdkit(self.folder, "--no-sr", "file", self.disk) as live:
            self.refuses(2, "pull", live.uri, "-o", "inc.qcow2", "--parent", "full.qcow2", says=["bitmap"])


class OwnLimits(Case):
    """Limits of qchain itself, or of the system."""

    def test_a_server_that_takes_too_long_is_given_up_and_that_is_said(self) -> None:
        """Exit 3, and not 6: nothing is known of another job."""
        with nbdkit(self.folder, "--filter=delay", "memory", "1M", "delay-extents=5000ms") as live:
            done = self.refuses(3, "pull", live.uri, "-o", "full.qcow2", "--timeout", "1",
                                says=["block status", "no answer within 1 s", "timed out"])
            self.assertNotIn("another job", done.err)
            self.refuses(3, "digest", live.uri, "--timeout", "1", says=["no answer within 1 s"])

    def test_a_slow_server_is_waited_for(self) -> None:
        with nbdkit(self.folder, "--filter=delay", "memory", "1M", "delay-extents=1500ms") as live:
            self.qchain("pull", live.uri, "-o", "full.qcow2", "--timeout", "60")

    def test_time_outs_that_are_refused(self) -> None:
        for seconds in ("0", "86401", "-1", "soon"):
            with self.subTest(seconds=seconds):
                self.refuses(2, "pull", "nbd://localhost:1/", "-o", "full.qcow2", "--timeout", seconds, says=["timeout"])

    def test_little_address_space(self) -> None:
        """Whatever cannot be had, a thread, a context or memory: the image is right, or it is an error, and never a hang."""
        self.path("disk.raw").write_bytes(os.urandom(4 * M))
        with nbdkit(self.folder, "file", self.path("disk.raw")) as live:
            for mebibytes in (100, 150, 200, 250, 300, 350, 400, 450, 500, 550):
                with self.subTest(mebibytes=mebibytes):
                    limits = f"ulimit -v {mebibytes * K}; exec \"$@\""
                    done = self.qchain("-c", limits, "sh", QCHAIN, "pull", live.uri, "-o", "full.qcow2", "--force",
                                       program=Path("/bin/sh"), expect=(0, 3), timeout=60)
                    self.assertEqual(self.path("full.qcow2").exists(), done.code == 0 or self.made, done)
                    if done.code == 0:
                        self.made = True
                        self.assert_holds("full.qcow2", "disk.raw")

    made = False


class Addresses(Case):
    """Malformed URIs, and exports that do not exist."""

    def test_an_export_that_is_not_there(self) -> None:
        self.image("disk.qcow2")
        with qemu_nbd(self.folder, "-f", "qcow2", self.path("disk.qcow2")) as live:
            missing = live.uri.replace("vda", "vdb")
            self.refuses(3, "pull", missing, "-o", "full.qcow2", says=["does not offer this export", 'on offer: "vda"'])

    def test_a_malformed_uri(self) -> None:
        for uri in ("nbd:///%zz", "nbd+unix:///vda", "nbd://host:port/"):
            with self.subTest(uri=uri):
                self.refuses(2, "pull", uri, "-o", "full.qcow2", says=["malformed NBD URI"])

    def test_a_server_that_requires_tls(self) -> None:
        self.path("keys.psk").write_text("alice:0123456789abcdef0123456789abcdef\n")
        with nbdkit(self.folder, "--tls=require", f"--tls-psk={self.path('keys.psk')}", "pattern", "1M") as live:
            self.refuses(3, "pull", live.uri, "-o", "full.qcow2", says=["requires TLS", "nbds"])


if __name__ == "__main__":
    unittest.main()
