"""`qchain digest`, and images that QEMU made: read as QEMU reads them, or refused."""

from __future__ import annotations

import os
import unittest

import blkhash
from blkhash_test import VECTORS
from chain import SIZE, ChainTest
from harness import K, M, nbdkit


class Digest(ChainTest):

    def test_of_an_image_a_raw_file_and_an_export(self) -> None:
        self.build()
        expected = blkhash.of_file(self.path("check3.raw"))
        with self.live() as uri, self.live("check3.qcow2", "qcow2") as other:
            for argv in (["check3.qcow2"], ["check3.raw", "--format", "raw"], [uri], [other], ["check3.qcow2", "--format", "qcow2"]):
                with self.subTest(argv=argv):
                    self.assertEqual(self.qchain("digest", *argv).out.split(), [expected, argv[0]])
                    document = self.qchain("digest", *argv, "--json").json
                    self.assertEqual((document["digest"], document["length"], document["block_size"]), (expected, SIZE, 64 * K))

    def test_the_algorithms(self) -> None:
        self.path("raw").write_bytes(b"hello".ljust(M, b"\0") + b"goodbye")
        for option, name in (("sha256", "sha256"), ("sha512", "sha512"), ("blake2b512", "blake2b")):
            with self.subTest(algorithm=option):
                self.assertEqual(self.qchain("digest", "raw", "--format", "raw", "--digest", option).out.split()[0],
                                 blkhash.of_file(self.path("raw"), name))
        done = self.qchain("digest", "raw", "--format", "raw", "--digest", "xxh3-128")
        self.assertRegex(done.out.split()[0], r"\A[0-9a-f]{32}\Z")

    def test_the_published_vectors(self) -> None:
        for content, digest in VECTORS:
            with self.subTest(length=len(content)):
                self.path("raw").write_bytes(content)
                self.assertEqual(self.qchain("digest", "raw", "--format", "raw").out.split()[0], digest)

    def test_the_true_length_of_an_odd_disk(self) -> None:
        """Rounded up with zeros in the image, digested at its true length."""
        content = os.urandom(64 * K + 1000)
        self.path("odd.raw").write_bytes(content)
        with nbdkit(self.folder, "file", self.path("odd.raw")) as server:
            self.assertEqual(self.qchain("digest", server.uri).out.split()[0], blkhash.of_bytes(content))
            self.qchain("pull", server.uri, "-o", "odd.qcow2")
            self.qchain("verify", "odd.qcow2", "--against", server.uri)
            self.qchain("pull", server.uri, "-o", "pulled.raw", "--format", "raw")
        self.assertEqual(self.path("pulled.raw").read_bytes(), content)
        self.assert_sound("odd.qcow2")
        self.assertEqual(self.flat("odd.qcow2", "by-qemu.raw").read_bytes(), content.ljust(64 * K + 1024, b"\0"))
        self.assertEqual(self.qchain("digest", "odd.qcow2").out.split()[0], blkhash.of_bytes(content))
        self.qchain("restore", "odd.qcow2", "restored.raw", "--no-verify")
        restored = self.path("restored.raw").read_bytes()
        self.assertEqual(restored.ljust(64 * K + 1024, b"\0"), content.ljust(64 * K + 1024, b"\0"))

    def test_a_raw_file_is_never_guessed(self) -> None:
        self.path("raw").write_bytes(b"hello" * K)
        self.refuses((1, 2, 3), "digest", "raw", says=["--format raw"])

    def test_an_export_that_cannot_be_read(self) -> None:
        with nbdkit(self.folder, "--filter=error", "pattern", "1M", "error-pread-rate=100%") as server:
            done = self.qchain("digest", server.uri, expect=3)
            self.assertEqual(done.out, "", "no digest of what was not read")


class ForeignImages(ChainTest):
    """Images that QEMU made: read as QEMU reads them, or refused with 4 and the name of the feature."""

    def check(self, name: str) -> None:
        raw = self.flat(name, "by-qemu.raw")
        done = self.qchain("digest", name, "--json", expect=(0, 4))
        if done.code == 4:
            self.assert_says(done, name)
            self.refuses(4, "restore", name, "restored.raw", "--no-verify")
            return
        self.assertEqual(done.json["digest"], blkhash.of_file(raw))
        self.qchain("restore", name, "restored.raw", "--no-verify")
        self.assert_same_bytes("restored.raw", raw)
        with self.live("by-qemu.raw") as uri:
            self.qchain("verify", name, "--against", uri)

    def test_of_all_kinds(self) -> None:
        writes = ["write -P 1 0 300k", "write -z 64k 64k", "write -P 2 2M 512", "discard 128k 64k", f"write -P 3 {SIZE - 512} 512"]
        for options in ([], ["cluster_size=512"], ["cluster_size=2M"], ["compat=0.10"], ["extended_l2=on"], ["refcount_bits=1"],
                        ["refcount_bits=64"], ["lazy_refcounts=on"], ["preallocation=metadata"]):
            with self.subTest(options=options):
                self.setUp()
                self.image("image.qcow2", *writes, options=options)
                self.check("image.qcow2")

    def test_compressed(self) -> None:
        self.path("raw").write_bytes(os.urandom(100 * K) + b"text" * 100 * K + bytes(M))
        for options in ("compression_type=zlib", "compression_type=zstd", "compression_type=zlib,cluster_size=4K"):
            with self.subTest(options=options):
                self.run_tool("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, "raw", "image.qcow2")
                self.check("image.qcow2")
                self.path("restored.raw").unlink(missing_ok=True)

    def test_with_a_snapshot_and_a_bitmap(self) -> None:
        self.image("image.qcow2", "write -P 1 0 1M")
        self.run_tool("qemu-img", "snapshot", "-c", "before", "image.qcow2")
        self.run_tool("qemu-img", "bitmap", "--add", "image.qcow2", "b0")
        self.run_tool("qemu-io", "-f", "qcow2", "-c", "write -P 2 0 100k", "image.qcow2")
        self.check("image.qcow2")

    def test_on_a_parent_of_another_size(self) -> None:
        for bottom, middle, top in ((4 * M, M, 4 * M), (M, 4 * M, 2 * M), (M + 512, 3 * M, 4 * M)):
            with self.subTest(sizes=(bottom, middle, top)):
                self.setUp()
                self.image("bottom.qcow2", f"write -P 1 0 {bottom}", size=bottom)
                self.image("middle.qcow2", "write -P 2 64k 64k", size=middle, backing="bottom.qcow2")
                self.image("top.qcow2", f"write -P 3 {top - 64 * K} 64k", size=top, backing="middle.qcow2")
                self.check("top.qcow2")

    def test_cut_short(self) -> None:
        """A layer whose file ends inside its last data cluster, where qemu-img check sees nothing, or in its tables."""
        self.image("image.qcow2", "write -P 1 0 1M")
        whole = self.path("image.qcow2").stat().st_size
        for length in (whole - 64 * K, 5 * 64 * K, 3 * 64 * K, 64 * K, 100):
            with self.subTest(length=length):
                os.truncate(self.path("image.qcow2"), length)
                with self.subTest(command="digest"):
                    self.refuses((1, 3), "digest", "image.qcow2", says=["image.qcow2"])
                with self.subTest(command="restore"):
                    self.refuses((1, 3), "restore", "image.qcow2", "restored.raw", says=["image.qcow2"])
                with self.subTest(command="restore --no-verify"):  # all that can be read, and what is missing
                    done = self.qchain("restore", "image.qcow2", "rescued.raw", "--no-verify", "--force", expect=(1, 4))
                    self.assertEqual(self.path("rescued.raw").exists(), done.code == 4)
                    if done.code == 4:
                        self.assertIn("unreadable", done.out)
                        self.path("rescued.raw").unlink()
                with self.subTest(command="verify"):
                    self.refuses((1, 3), "verify", "image.qcow2", says=["image.qcow2"])


if __name__ == "__main__":
    unittest.main()
