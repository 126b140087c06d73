"""verify, restore and --seal after QEMU's own tools have changed a chain."""

from __future__ import annotations

import os
import shutil
import unittest

import blkhash
from chain import SIZE, ChainTest
from harness import K, M, Done, patch
from report_test import schema_errors

LINK = "does not match its backing file"
SAME = "the content has the recorded digest"


class Rewritten(ChainTest):

    def setUp(self) -> None:
        super().setUp()
        self.build()

    def qemu_img(self, *argv: str) -> None:
        self.run_tool("qemu-img", *argv)

    def assert_reads(self, image: str, raw: str) -> Done:
        """digest, restore --no-verify, check and chaininfo read the disk, and warn."""
        done = self.qchain("digest", image)
        self.assertEqual(done.out.split()[0], blkhash.of_file(self.path(raw)))
        self.qchain("restore", image, "restored.raw", "--no-verify", "--force")
        self.assert_same_bytes("restored.raw", raw)
        return done

    def assert_provable(self, image: str, raw: str) -> None:
        report = self.qchain("verify", image, "--json").json
        self.assertEqual(schema_errors(report), "")
        for layer in report["layers"]:
            self.assertIsNone(layer["same_content"])
            self.assertTrue(layer["manifest"]["root_follows"], layer)
        self.path("restored.raw").unlink(missing_ok=True)
        done = self.qchain("restore", image, "restored.raw")
        self.assertIn("every block verified", done.out)
        self.assert_same_bytes("restored.raw", raw)

    def rebased(self, *argv: str) -> None:
        self.qemu_img("rebase", "-f", "qcow2", *argv, "check3.qcow2")
        done = self.assert_reads("check3.qcow2", "check3.raw")
        self.assert_says(done, "warning", LINK)
        self.assert_says(self.qchain("check", "check3.qcow2", expect=1), LINK)
        info = self.qchain("chaininfo", "check3.qcow2", "--map", "--json", expect=1).json
        self.assertTrue(info["complete"])
        self.assertEqual(sum(mapping["length"] for mapping in info["map"]), SIZE)
        self.refuses(1, "restore", "check3.qcow2", "never.raw", says=[LINK])

        done = self.qchain("verify", "check3.qcow2")
        self.assert_says(done, SAME, "--seal")
        report = self.qchain("verify", "check3.qcow2", "--json").json
        self.assertEqual(schema_errors(report), "")
        self.assertEqual(report["layers"][0]["same_content"], "sha256:" + blkhash.of_file(self.path("check3.raw")))

        report = self.qchain("verify", "check3.qcow2", "--seal", "--json").json
        self.assertEqual(schema_errors(report), "")
        self.assert_provable("check3.qcow2", "check3.raw")
        self.assertIn("had a manifest", self.qchain("verify", "check3.qcow2", "--seal").out)

    def test_a_rebase_onto_the_full_image(self) -> None:
        self.rebased("-b", "check1.qcow2", "-F", "qcow2")

    def test_a_layer_that_was_flattened(self) -> None:
        self.rebased("-b", "")

    def test_a_rebase_in_the_middle(self) -> None:
        """The layer above was not changed, but the one below its manifest was."""
        self.qemu_img("rebase", "-f", "qcow2", "-b", "", "check2.qcow2")
        self.assert_reads("check3.qcow2", "check3.raw")
        self.assert_says(self.qchain("verify", "check3.qcow2"), SAME)
        self.qchain("verify", "check3.qcow2", "--seal")
        self.assert_provable("check3.qcow2", "check3.raw")

    def test_rot_in_a_rebased_layer(self) -> None:
        """Content that differs from the recorded digest is neither accepted nor sealed."""
        self.qemu_img("rebase", "-f", "qcow2", "-b", "", "check3.qcow2")
        [mapping, *_] = [m for m in self.qchain("chaininfo", "check3.qcow2", "--map", "--json", expect=1).json["map"]
                         if m["kind"] == "data"]
        patch(self.path("check3.qcow2"), mapping["host_offset"] + 7, b"rot")
        done = self.qchain("verify", "check3.qcow2", expect=1)
        self.assert_says(done, LINK)
        self.assertNotIn(SAME, done.err)
        self.refuses(1, "verify", "check3.qcow2", "--seal", says=["check3.qcow2", "--accept-changed", "damaged"])

    def test_a_layer_on_another_disk(self) -> None:
        """rebase -u onto another image: the content has changed."""
        self.qemu_img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "check1.qcow2", "check3.qcow2")
        self.qchain("verify", "check3.qcow2", expect=1)
        self.refuses(1, "verify", "check3.qcow2", "--seal", says=["--accept-changed"])

    def test_sealed_and_moved_again(self) -> None:
        """After sealing, a layer is compared with the backing file that it was sealed on."""
        self.qemu_img("rebase", "-f", "qcow2", "-b", "check1.qcow2", "-F", "qcow2", "check3.qcow2")
        self.qchain("verify", "check3.qcow2", "--seal")
        self.qemu_img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "check2.qcow2", "check3.qcow2")
        done = self.qchain("verify", "check3.qcow2")  # it hides all that differs
        self.assert_says(done, SAME)
        self.qemu_img("rebase", "-u", "-f", "qcow2", "-b", "", "check3.qcow2")
        self.qchain("verify", "check3.qcow2", expect=1)

    def test_a_commit(self) -> None:
        """commit makes the lower layer another point in time: verify reports it, and the operator may seal it."""
        self.qemu_img("commit", "-q", "-f", "qcow2", "check3.qcow2")
        self.qchain("digest", "check2.qcow2")
        self.assert_reads("check3.qcow2", "check3.raw")
        report = self.qchain("verify", "check3.qcow2", "--json", expect=1).json
        self.assertEqual(schema_errors(report), "")
        self.assertEqual({d["layer"] for d in report["differences"]}, {1})
        self.refuses(1, "verify", "check3.qcow2", "--seal", says=["check2.qcow2", "--accept-changed"])
        recorded = "sha256:" + blkhash.of_file(self.path("check2.raw"))
        report = self.qchain("verify", "check3.qcow2", "--seal", "--accept-changed", "--json").json
        self.assertEqual(schema_errors(report), "")
        self.assertEqual([layer["accepted"] for layer in report["sealed"]], [None, recorded, None])
        done = self.qchain("verify", "check3.qcow2")
        self.assert_says(done, "at the operator's request", recorded)
        self.assertEqual(self.qchain("verify", "check3.qcow2", "--json").json["layers"][1]["manifest"]["accepted"], recorded)
        self.assert_provable("check3.qcow2", "check3.raw")
        self.assert_provable("check2.qcow2", "check3.raw")

    def test_a_resize(self) -> None:
        self.qemu_img("resize", "-q", "-f", "qcow2", "check3.qcow2", str(SIZE + M))
        with self.path("check3.raw").open("r+b") as raw:
            raw.truncate(SIZE + M)
        self.assert_reads("check3.qcow2", "check3.raw")
        self.qchain("verify", "check3.qcow2", expect=1)
        self.refuses(1, "verify", "check3.qcow2", "--seal", says=["--accept-changed"])
        self.qchain("verify", "check3.qcow2", "--seal", "--accept-changed")
        self.assert_provable("check3.qcow2", "check3.raw")

    def test_amend_and_check(self) -> None:
        """Only metadata is rewritten: verify succeeds as before."""
        self.qemu_img("amend", "-f", "qcow2", "-o", "lazy_refcounts=on", "check3.qcow2")
        self.qemu_img("amend", "-f", "qcow2", "-o", "refcount_bits=32", "check2.qcow2")
        self.qemu_img("check", "-q", "-f", "qcow2", "-r", "all", "check1.qcow2")
        self.assert_provable("check3.qcow2", "check3.raw")

    def test_accept_changed_changes_nothing_that_is_right(self) -> None:
        before = self.fingerprint()
        self.qchain("verify", "check3.qcow2", "--seal", "--accept-changed")
        self.assertEqual(self.fingerprint(), before)
        self.refuses(2, "verify", "check3.qcow2", "--accept-changed", says=["--seal"])


class Gaps(ChainTest):
    """Some layers have no manifest, or one that cannot be read."""

    def setUp(self) -> None:
        super().setUp()
        self.build()

    def restored(self, *expected: str) -> None:
        done = self.qchain("restore", "check3.qcow2", "restored.raw", "--json", expect=4)
        self.assert_same_bytes("restored.raw", "check3.raw")
        unknown = done.json["unknown_bytes"]
        self.assertGreater(unknown, 0)
        self.assertLess(unknown, SIZE)
        self.path("restored.raw").unlink()

    def test_each_manifest_is_of_use(self) -> None:
        for number in (1, 2, 3):
            with self.subTest(missing=number):
                manifest = self.path(f"check{number}.qcow2.manifest")
                manifest.rename(self.path("kept"))
                self.restored()
                self.path("kept").rename(manifest)

    def test_rot_is_found_where_a_manifest_knows(self) -> None:
        for missing, rotten in ((3, 1), (2, 1), (2, 3), (1, 2)):
            with self.subTest(missing=missing, rotten=rotten):
                image = f"check{rotten}.qcow2"
                mappings = self.qchain("chaininfo", "check3.qcow2", "--map", "--json").json["map"]
                [mapping, *_] = [m for m in mappings if m["layer"] == 3 - rotten and m["kind"] == "data"
                                 and m["start"] % (64 * K) == 0 and m["length"] >= 64 * K]
                at = mapping["host_offset"] + 100
                before = self.path(image).read_bytes()[at:at + 1]
                manifest = self.path(f"check{missing}.qcow2.manifest")
                manifest.rename(self.path("kept"))
                patch(self.path(image), at, bytes([before[0] ^ 1]))
                self.refuses(1, "restore", "check3.qcow2", "never.raw", says=[image])
                patch(self.path(image), at, before)
                self.path("kept").rename(manifest)

    def test_a_manifest_in_the_middle_that_cannot_be_read(self) -> None:
        manifest = self.path("check2.qcow2.manifest")
        shutil.rmtree(manifest, ignore_errors=True)
        manifest.unlink(missing_ok=True)
        manifest.mkdir()  # unreadable for root too
        done = self.qchain("verify", "check3.qcow2", expect=(3, 5))
        self.assertNotIn("no manifest", done.out + done.err)
        self.assert_says(done, "check2.qcow2.manifest", "a manifest below is unreadable or invalid")
        os.rmdir(manifest)
        manifest.write_bytes(b"QCHNMF01garbage")
        done = self.qchain("verify", "check3.qcow2", expect=5)
        self.assertNotIn("no manifest", done.out + done.err)
        self.assert_says(done, "a manifest below is unreadable or invalid")


if __name__ == "__main__":
    unittest.main()
