"""A disk that grew, shrank, or did both between two backups; QEMU's dirty bitmaps do not record what was lost."""

from __future__ import annotations

import unittest

from harness import K, M, Case

from export import Export


class Resize(Case):
    """A disk of 4 MiB, all of it data, with a full image at check1; then a resize, and an increment on it at check2."""

    SIZE = 4 * M

    def begin(self, cluster_size: int = 64 * K, *, base: bool = False) -> None:
        if base:
            self.path("base.raw").write_bytes(b"base" * M)
        self.export = Export.start(self.folder, self.SIZE, cluster_size=cluster_size,
                                   base_raw=self.path("base.raw") if base else None)
        self.addCleanup(self.export.stop)
        self.export.io("write -P 1 0 4M")
        self.qchain("pull", self.export.backup("check1"), "-o", "check1.qcow2", "--checkpoint", "check1")
        self.export.end()

    def resize(self, *sizes: int) -> None:
        for size in sizes:
            self.export.resize(size)

    def pull(self, checkpoint: str, parent: str, *options: str) -> dict:
        """Pulls an increment, and verifies it in every way."""
        uri = self.export.backup(checkpoint, parent)
        self.export.reference(self.path("reference.raw"))
        done = self.qchain("pull", uri, "-o", f"{checkpoint}.qcow2", "--checkpoint", checkpoint, "--parent", f"{parent}.qcow2",
                           "--since", parent, "--json", *options)
        image = f"{checkpoint}.qcow2"
        self.assert_sound(image)
        self.assert_holds(image, "reference.raw")
        self.qchain("verify", image, "--against", uri)
        self.qchain("restore", image, "restored.raw", "--no-verify", "--force")
        self.assert_same_bytes("restored.raw", "reference.raw")
        self.export.end()
        return done.json

    def test_grown(self) -> None:
        self.begin()
        self.resize(9 * M + 512)
        self.assertEqual(self.pull("check2", "check1")["virtual_size"], 9 * M + 512)

    def test_grown_and_written(self) -> None:
        self.begin()
        self.resize(9 * M + 512)
        self.export.io("write -P 2 8M 64k", "write -z 4M 1M", f"write -P 3 {9 * M} 512")
        self.assertEqual(self.pull("check2", "check1")["data_bytes"], 64 * K + 512)

    def test_shrunk(self) -> None:
        for size in (3 * M, 2 * M + 512):
            with self.subTest(size=size):
                self.setUp()
                self.begin()
                self.resize(size)
                document = self.pull("check2", "check1")
                self.assertEqual((document["virtual_size"], document["data_bytes"]), (size, 0))

    def test_past_a_shorter_parent_are_zeros_and_no_older_data(self) -> None:
        """4 MiB <- 1 MiB <- 4 MiB: above 1 MiB the top reads zeros, whatever the base holds."""
        self.begin()
        self.resize(1 * M)
        self.pull("check2", "check1")
        self.resize(4 * M)
        self.pull("check3", "check2")

    def test_shrunk_and_grown_to_another_size(self) -> None:
        """The bitmap marks the lost data as clean; the live side has zeros, and the parent has data."""
        for sizes in ((1 * M, 4 * M), (1 * M, 2 * M), (1 * M, 8 * M), (64 * K, 4 * M - 512)):
            with self.subTest(sizes=sizes):
                self.setUp()
                self.begin()
                self.resize(*sizes)
                document = self.pull("check2", "check1")
                lost = min(sizes[1], self.SIZE) - sizes[0]
                self.assertEqual((document["data_bytes"], document["zero_bytes"]), (0, lost))
                self.assertIn("bitmap", " ".join(document["warnings"]), "it warns")

    def test_a_wrong_bitmap_with_other_cluster_sizes(self) -> None:
        for options in (["--cluster-size", "2M"], ["--cluster-size", "4K"], ["--cluster-size", "1M"]):
            with self.subTest(options=options):
                self.setUp()
                self.begin()
                self.resize(1 * M + 64 * K, 4 * M)
                self.export.io("write -P 2 2M 4k")
                self.pull("check2", "check1", *options)

    def test_cut_in_the_middle_of_a_cluster(self) -> None:
        """The rest of the cluster reappears unchanged, and equals the parent."""
        self.begin()
        self.resize(2 * M + 512, 4 * M)
        self.pull("check2", "check1")

    def test_cut_in_the_middle_of_a_cluster_of_an_overlay(self) -> None:
        """Over a base, QEMU fills the rest of the cluster with zeros when the disk grows, and reports it as data, and clean."""
        for cluster_size, small, large in ((64 * K, 2 * M + 512, 4 * M), (2 * M, 2 * M + 64 * K, 4 * M),
                                           (64 * K, 4 * M - 4 * K, 4 * M), (64 * K, 4 * M - 4 * K, 8 * M),
                                           (2 * M, 64 * K, 1 * M), (2 * M, 2 * M - 512, 3 * M)):
            with self.subTest(cluster_size=cluster_size, small=small, large=large):
                self.setUp()
                self.begin(cluster_size, base=True)
                self.resize(small, large)
                self.pull("check2", "check1")

    def test_cut_and_written_near_while_the_job_runs(self) -> None:
        """The scratch file takes the old zeros as data, along with the rest of the cluster."""
        for small, large in ((1 * M + 24 * K, 4 * M), (4 * M - 8 * K, 8 * M)):
            with self.subTest(small=small, large=large):
                self.setUp()
                self.begin(8 * K, base=True)
                self.resize(small, large)
                uri = self.export.backup("check2", "check1")
                self.export.reference(self.path("reference.raw"))
                self.export.io(f"write -P 9 {small - 512} 1k")
                self.qchain("pull", uri, "-o", "inc.qcow2", "--parent", "check1.qcow2", "--since", "check1", "--cluster-size", "4K")
                self.assert_holds("inc.qcow2", "reference.raw")
                self.qchain("verify", "inc.qcow2", "--against", uri)


if __name__ == "__main__":
    unittest.main()
