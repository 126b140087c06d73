"""QEMU's image locks: an image that a running QEMU writes to is refused, unless reading it is requested."""

from __future__ import annotations

import unittest

import blkhash
from harness import M, Argument, Case, qemu_nbd

from export import Export

SIZE = 4 * M


class Locks(Case):
    """A live disk that a QEMU daemon has open for writing, with an overlay of ours that is not open."""

    def setUp(self) -> None:
        super().setUp()
        self.export = Export.start(self.folder, SIZE)
        self.addCleanup(self.export.stop)
        self.export.io("write -P 1 0 1M", "write -P 2 3M 64k", "flush")
        self.export.reference(self.path("disk.raw"))
        self.live = next(self.folder.glob("export/live*"))

    def commands(self, image: Argument) -> list[list[Argument]]:
        return [["digest", image], ["restore", image, "out.raw", "--no-verify"], ["chaininfo", image], ["check", image],
                ["verify", image]]

    def test_what_a_guest_writes_to_is_refused(self) -> None:
        self.run_tool("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", self.live, "-F", "qcow2", "top.qcow2", SIZE)
        for image in (self.live, "top.qcow2"):
            for argv in self.commands(image):
                with self.subTest(command=argv):
                    self.refuses(3, *argv, says=[self.live.name, "in use", "--force-share"])
        with qemu_nbd(self.folder, "-f", "raw", self.path("disk.raw")) as server:
            self.refuses(3, "pull", server.uri, "-o", "next.qcow2", "--parent", self.live, "--shallow", says=["in use"])

    def test_it_is_read_where_that_is_asked_for(self) -> None:
        """With a warning about consistency."""
        for argv in self.commands(self.live):
            with self.subTest(command=argv):
                expect = 4 if argv[0] == "verify" else 0  # there is no manifest
                done = self.qchain(*argv, "--force-share", expect=expect)
                self.assert_says(done, "--force-share", "not a consistent point in time")
        self.assert_same_bytes("out.raw", "disk.raw")
        done = self.qchain("digest", self.live, "--force-share", "--json")
        self.assertEqual(done.json["digest"].rpartition(":")[2], blkhash.of_file(self.path("disk.raw")))
        self.assertIn("--force-share", " ".join(done.json["warnings"]))

    def test_it_is_read_without_a_word_once_the_guest_has_ended(self) -> None:
        keep = self.path("disk.qcow2")
        keep.hardlink_to(self.live)
        self.export.stop()
        done = self.qchain("digest", keep)
        self.assertEqual((done.out.split()[0], done.err), (blkhash.of_file(self.path("disk.raw")), ""))


if __name__ == "__main__":
    unittest.main()
