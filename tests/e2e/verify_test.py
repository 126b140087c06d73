"""`qchain verify`, and chains whose links do not match."""

from __future__ import annotations

import os
import unittest

import blkhash
from chain import LAYERS, SIZE, ChainTest
from harness import K, M, flip_byte, nbdkit, patch


class Links(ChainTest):
    """A chain whose links do not match: a finding. Commands that rely on identities refuse; those that only read warn."""

    def setUp(self) -> None:
        super().setUp()
        self.build()

    def all_tell(self, image: str, layer: str) -> None:
        said = [layer, "does not match its backing file"]
        with self.live() as uri:
            for argv in (["verify", image], ["verify", image, "--against", uri], ["check", image], ["chaininfo", image],
                         ["restore", image, "never.raw"], ["verify", image, "--seal"],
                         ["pull", uri, "-o", "next.qcow2", "--parent", image, "--since", "check3", "--bitmap", "none"]):
                with self.subTest(command=" ".join(argv[:2])):
                    # 2: the bitmap does not exist either; 5: another layer's manifest is there
                    codes = (1, 2) if argv[0] == "pull" else (1, 5)
                    done = self.refuses(codes, *argv)
                    if done.code != 2:
                        self.assert_says(done, *said)
        raw = self.flat(image, "by-qemu.raw")
        done = self.qchain("digest", image)
        self.assert_says(done, *said)
        self.assertEqual(done.out.split()[0], blkhash.of_file(raw))
        self.assert_says(self.qchain("restore", image, "out.raw", "--no-verify", "--force"), *said)
        self.assert_same_bytes("out.raw", raw)

    def test_a_swapped_parent(self) -> None:
        """Another full image of the same disk, at another time, under the parent's name."""
        with self.live("check3.raw") as uri:
            self.qchain("pull", uri, "-o", "check1.qcow2", "--checkpoint", "check1", "--force")
        self.all_tell("check2.qcow2", "check2.qcow2")
        self.all_tell("check3.qcow2", "check2.qcow2")

    def test_another_increment_as_parent(self) -> None:
        os.rename(self.path("check2.qcow2"), self.path("old.qcow2"))
        os.rename(self.path("check1.qcow2"), self.path("check2.qcow2"))
        self.all_tell("check3.qcow2", "check3.qcow2")

    def test_a_flat_rebase(self) -> None:
        self.run_tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "check1.qcow2", "check3.qcow2")
        self.all_tell("check3.qcow2", "check3.qcow2")

    def test_a_rebase_to_nothing(self) -> None:
        self.run_tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "", "check3.qcow2")
        self.all_tell("check3.qcow2", "check3.qcow2")

    def test_a_parent_that_is_not_a_layer_of_ours(self) -> None:
        self.run_tool("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", "check2.qcow2", "flat.qcow2")
        os.replace(self.path("flat.qcow2"), self.path("check2.qcow2"))
        self.all_tell("check3.qcow2", "check3.qcow2")

    def test_a_layer_moved_with_its_parent(self) -> None:
        """Links are identities, not names: a renamed parent matches if the backing name is right."""
        os.rename(self.path("check2.qcow2"), self.path("renamed.qcow2"))
        self.run_tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "renamed.qcow2", "check3.qcow2")
        with self.live() as uri:
            self.qchain("verify", "check3.qcow2", "--against", uri)

    def test_a_parent_that_was_written_to(self) -> None:
        self.run_tool("qemu-io", "-f", "qcow2", "-c", "write -P 9 3M 512", "check1.qcow2")
        with self.live() as uri:
            done = self.qchain("verify", "check3.qcow2", "--against", uri, expect=1)
        self.assertIn("[0x300000, 0x300200)", done.out)
        self.assertIn("check1.qcow2", done.out)


class Verify(ChainTest):

    def setUp(self) -> None:
        super().setUp()
        self.build()

    def test_equal(self) -> None:
        for number in (1, 2, 3):
            with self.live(f"check{number}.raw") as uri:
                document = self.qchain("verify", f"check{number}.qcow2", "--against", uri, "--json").json
                self.assertEqual((document["exit_code"], document["compared_bytes"], document["differences"]), (0, SIZE, []))
                self.assertEqual(document["chain_digest"], blkhash.of_file(self.path(f"check{number}.raw")))
                self.assertEqual(document["live_digest"], document["chain_digest"])

    def test_through_a_link(self) -> None:
        """The manifest is next to the file itself, and an increment on a link is one on the file."""
        self.path("latest.qcow2").symlink_to("check2.qcow2")
        self.qchain("verify", "latest.qcow2", "--record")
        self.assertTrue(self.path("check2.qcow2.proofs").exists())
        self.qchain("restore", "latest.qcow2", "out.raw")
        with self.live("check3.raw") as uri:
            self.qchain("pull", uri, "-o", "next.qcow2", "--parent", "latest.qcow2", "--since", "check2", "--bitmap", "none",
                        expect=2)

    def test_without_a_live_side_and_without_manifests_is_incomplete(self) -> None:
        self.forget_manifests()
        done = self.qchain("verify", "check3.qcow2", expect=4)
        self.assertIn("not checked", done.err)
        self.assertEqual(self.qchain("verify", "check3.qcow2", "--json", expect=4).json["exit_code"], 4)

    def test_another_point_in_time(self) -> None:
        with self.live("check2.raw") as uri:
            self.assert_differences("check3.qcow2", "check3.raw", "check2.raw", uri)

    def test_every_range_that_differs_is_named(self) -> None:
        """Data for data, data for zeros and the other way round, at the ends, side by side, and a single bit."""
        for offset in (0, 512, 64 * K - 512, 100 * K, 1 * M, 1 * M + 64 * K, 2 * M + 5, 3 * M, SIZE - 512):
            flip_byte(self.path("check3.raw"), offset)
        patch(self.path("check3.raw"), 3 * M, bytes(64 * K))
        patch(self.path("check3.raw"), 2 * M + 512 * K, b"x" * 200 * K)
        self.flat("check3.qcow2", "chain.raw")
        with self.live() as uri:
            self.assert_differences("check3.qcow2", "chain.raw", "check3.raw", uri)

    def assert_differences(self, image: str, chain: str, live: str, uri: str) -> None:
        """verify reports exactly the sectors that differ between two raw files, and the layers that hold them."""
        ours, theirs = self.path(chain).read_bytes(), self.path(live).read_bytes()
        expected = {at for at in range(0, SIZE, 512) if ours[at:at + 512] != theirs[at:at + 512]}
        self.assertTrue(expected)
        done = self.qchain("verify", image, "--against", uri, "--json", expect=1)
        named = [at for d in done.json["differences"] for at in range(d["offset"], d["offset"] + d["length"], 512)]
        self.assertEqual(named, sorted(expected))
        self.assertEqual(done.json["different_bytes"], 512 * len(expected))
        text = self.qchain("verify", image, "--against", uri, expect=1).out
        for found in done.json["differences"]:
            start, end = found["offset"], found["offset"] + found["length"]
            self.assertIn(f"[{start:#x}, {end:#x})", text)
            self.assertEqual(found["file"], LAYERS[found["layer"] + LAYERS.index(image)])
            if found["kind"] == "data":
                with self.path(found["file"]).open("rb") as file:
                    file.seek(found["host_offset"])
                    self.assertEqual(file.read(end - start), ours[start:end])
                self.assertIn(f"{found['host_offset']:#x}", text)

    def test_a_byte_of_rot_in_each_layer(self) -> None:
        with self.live() as uri:
            for mapping in self.qchain("chaininfo", "check3.qcow2", "--map", "--json").json["map"]:
                if mapping["kind"] == "data":
                    at = mapping["length"] // 2
                    image = self.path(LAYERS[mapping["layer"]])
                    flip_byte(image, mapping["host_offset"] + at)
                    (found,) = self.qchain("verify", "check3.qcow2", "--against", uri, "--json", expect=1).json["differences"]
                    flip_byte(image, mapping["host_offset"] + at)
                    self.assertEqual(found["offset"], (mapping["start"] + at) // 512 * 512)
                    self.assertEqual(found["layer"], mapping["layer"])

    def test_an_export_of_another_size(self) -> None:
        for size in (SIZE + 512, SIZE - 512, 2 * SIZE):
            with self.subTest(size=size):
                os.truncate(self.path("check3.raw"), size)
                with self.live() as uri:
                    argv = ["verify", "check3.qcow2", "--against", uri]
                    done = self.qchain(*argv, expect=1)
                    self.assertIn(str(size), done.out + done.err)
                    self.assertEqual(self.qchain(*argv, "--json", expect=1).json["exit_code"], 1)

    def test_a_live_side_that_cannot_be_read(self) -> None:
        """"A byte that was not read forbids 0", and a mismatch found elsewhere comes first."""
        self.path("bad.map").write_text("# mapfile\n0x0 ? 1\n0x0 0x100000 +\n0x100000 0x200 -\n0x100200 0x2ffe00 +\n")
        with nbdkit(self.folder, "--filter=ddrescue", "file", self.path("check3.raw"),
                    f"ddrescue-mapfile={self.path('bad.map')}") as server:
            done = self.refuses(3, "verify", "check3.qcow2", "--against", server.uri)
            self.assertIn("0x100000", done.out + done.err)
            flip_byte(self.path("check1.qcow2"), 70 * K)
            done = self.qchain("verify", "check1.qcow2", "--against", server.uri, expect=1)
            self.assertIn("0x100000", done.out + done.err, "all verdicts are reported")

    def test_a_layer_that_cannot_be_read(self) -> None:
        os.truncate(self.path("check1.qcow2"), self.path("check1.qcow2").stat().st_size // 2)
        with self.live() as uri:
            self.refuses((1, 3), "verify", "check3.qcow2", "--against", uri)

    def test_a_live_side_that_is_not_there(self) -> None:
        self.refuses(3, "verify", "check3.qcow2", "--against", "nbd+unix:///vda?socket=nosuch")
        self.refuses((2, 3), "verify", "check3.qcow2", "--against", "check3.raw")


if __name__ == "__main__":
    unittest.main()
