"""`qchain restore`: to files and onto block devices."""

from __future__ import annotations

import contextlib
import os
import struct
import unittest
from collections.abc import Iterator
from pathlib import Path

from chain import LAYERS, SIZE, ChainTest
from harness import K, M, patch


class Restore(ChainTest):

    def setUp(self) -> None:
        super().setUp()
        self.build()

    def test_any_point_of_the_chain(self) -> None:
        for number in (1, 2, 3):
            document = self.qchain("restore", f"check{number}.qcow2", f"{number}.raw", "--no-verify", "--json").json
            self.assert_same_bytes(f"{number}.raw", f"check{number}.raw")
            self.assertEqual(document["data_bytes"] + document["zero_bytes"], SIZE)
        self.assertLess(self.path("3.raw").stat().st_blocks * 512, 3 * M, "a sparse file")

    def test_without_proof_is_incomplete(self) -> None:
        self.forget_manifests()
        done = self.qchain("restore", "check3.qcow2", "out.raw", expect=4)
        self.assertIn("not verified", done.out + done.err)
        self.assert_same_bytes("out.raw", "check3.raw")

    def test_a_file_that_exists(self) -> None:
        self.path("out.raw").write_bytes(b"mine" * 3 * M)
        self.refuses(2, "restore", "check3.qcow2", "out.raw", "--no-verify", says=["out.raw", "--force"])
        self.qchain("restore", "check3.qcow2", "out.raw", "--no-verify", "--force")
        self.assert_same_bytes("out.raw", "check3.raw")

    def test_onto_a_layer(self) -> None:
        self.path("link.raw").symlink_to("check2.qcow2")
        self.path("hard.raw").hardlink_to(self.path("check1.qcow2"))
        for name in (*LAYERS, "link.raw", "hard.raw", "./check1.qcow2"):
            with self.subTest(destination=name):
                self.refuses(2, "restore", "check3.qcow2", name, "--no-verify", "--force", says=["layer"])
                self.refuses(2, "restore", "check3.qcow2", name, "--no-verify")

    def test_where_nothing_can_be(self) -> None:
        self.refuses((2, 3), "restore", "check3.qcow2", "nosuch/out.raw", "--no-verify", says=["nosuch"])
        self.path("folder").mkdir()
        self.refuses((2, 3), "restore", "check3.qcow2", "folder", "--no-verify", says=["folder"])
        self.refuses((2, 3), "restore", "check3.qcow2", "folder", "--no-verify", "--force", says=["folder"])

    @contextlib.contextmanager
    def device(self, size: int) -> Iterator[Path]:
        """A block device over a file `disk` of other content."""
        self.path("disk").write_bytes(os.urandom(size))
        device = self.run_tool("losetup", "--find", "--show", self.path("disk")).strip()
        try:
            yield Path(device)
        finally:
            self.run_tool("losetup", "--detach", device)

    def test_onto_a_device_whose_old_content_never_shows(self) -> None:
        with self.device(SIZE) as device:
            self.qchain("restore", "check3.qcow2", device, "--no-verify")
        self.assert_same_bytes("disk", "check3.raw")

    def test_onto_a_device_again_and_without_proof(self) -> None:
        self.forget_manifests()
        with self.device(SIZE) as device:
            self.qchain("restore", "check1.qcow2", device, expect=4)
            self.qchain("restore", "check2.qcow2", device, "--no-verify")
        self.assert_same_bytes("disk", "check2.raw")

    def test_onto_a_larger_device(self) -> None:
        with self.device(SIZE + M) as device:
            self.qchain("restore", "check3.qcow2", device, "--no-verify")
            with device.open("rb") as file:
                self.assertEqual(file.read(SIZE), self.path("check3.raw").read_bytes())

    def test_onto_a_device_that_is_too_small(self) -> None:
        with self.device(SIZE - 64 * K) as device:
            self.refuses(2, "restore", "check3.qcow2", device, "--no-verify", says=[str(device)])

    def test_onto_a_device_through_a_link(self) -> None:
        with self.device(SIZE) as device:
            self.path("link").symlink_to(device)
            self.qchain("restore", "check3.qcow2", "link", "--no-verify")
            self.assertTrue(self.path("link").is_symlink(), "the link stays, and points to the device")
        self.assert_same_bytes("disk", "check3.raw")

    def test_a_chain_that_cannot_be_read_to_its_end(self) -> None:
        """Nothing is left of a file; of a device it is said that the content is not complete."""
        self.break_check1()
        self.refuses((1, 3), "restore", "check3.qcow2", "out.raw", "--no-verify", says=["check1.qcow2"])
        with self.device(SIZE) as device:
            done = self.qchain("restore", "check3.qcow2", device, "--no-verify", expect=(1, 3))
            self.assert_says(done, str(device), "check1.qcow2", "not complete")

    def test_a_failed_restore_keeps_the_file_it_was_to_replace(self) -> None:
        self.break_check1()
        self.path("out.raw").write_bytes(b"mine")
        self.refuses((1, 3), "restore", "check3.qcow2", "out.raw", "--no-verify", "--force")

    def break_check1(self) -> None:
        """The same disk in compressed clusters, of which one is broken: found when it is read, and not before."""
        self.run_tool("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "check1.raw", "check1.qcow2")
        self.run_tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", "check1.qcow2", "-F", "qcow2", "check3.qcow2")
        image = self.path("check1.qcow2").read_bytes()
        (l1,) = struct.unpack_from(">Q", image, 40)
        (l2,) = struct.unpack_from(">Q", image, l1)
        (entry,) = struct.unpack_from(">Q", image, (l2 & (1 << 56) - 512) + 8 * (3 * M // (64 * K)))
        self.assertTrue(entry & 1 << 62, "compressed")
        patch(self.path("check1.qcow2"), entry & (1 << 54) - 1, b"\xff" * 20)


if __name__ == "__main__":
    unittest.main()
