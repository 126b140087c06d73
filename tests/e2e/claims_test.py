"""What a proof claims: which point in time, who vouches for it, and that nothing is sealed by halves."""

from __future__ import annotations

import hashlib
import json
import struct
import time
import unittest
from typing import Any

import blkhash
from chain import ChainTest
from harness import K, M, Done, flip_byte, qemu_nbd

from export import Export

DAY = 24 * 3600


class ClaimsTest(ChainTest):

    def key(self, name: str) -> None:
        self.run_tool("openssl", "genpkey", "-algorithm", "ed25519", "-out", f"{name}.pem")
        self.run_tool("openssl", "pkey", "-in", f"{name}.pem", "-pubout", "-out", f"{name}.pub")

    def pull(self, name: str, *argv: Any, at: float | None = None, content: bytes = b"x" * M, expect: int = 0) -> Done:
        """A full layer of a disk, with the time `at`."""
        self.path("disk.raw").write_bytes(content)
        with qemu_nbd(self.folder, "-r", "-f", "raw", "-x", "vda", self.path("disk.raw")) as server:
            return self.qchain("pull", server.uri, "-o", name, *argv, expect=expect,
                               env={"SOURCE_DATE_EPOCH": str(int(time.time() if at is None else at))})

    def header(self, image: str) -> dict[str, Any]:
        """The header of an image's manifest."""
        content = self.path(f"{image}.manifest").read_bytes()
        (length,) = struct.unpack_from("<L", content, 8)
        return json.loads(content[12:12 + length])

    def edit(self, image: str, **fields: Any) -> None:
        """Changes fields of the header of an image's manifest, which stays consistent, and is not signed after that."""
        path = self.path(f"{image}.manifest")
        content = path.read_bytes()
        (length,) = struct.unpack_from("<L", content, 8)
        header = json.dumps({**json.loads(content[12:12 + length]), **fields}, separators=(",", ":")).encode()
        records = content[12 + length:]
        if b"QCHNSG01" in records:
            records = records[:-104]
        body = content[:8] + struct.pack("<L", len(header)) + header + records[:-32]
        path.write_bytes(body + hashlib.sha256(body).digest())


    def assert_shows(self, done: Done, *expected: str) -> None:
        for text in expected:
            self.assertIn(text, done.out, done)


class Point(ClaimsTest):
    """Which point in time it is."""

    def test_what_is_named(self) -> None:
        at = time.time() - DAY
        self.pull("a.qcow2", "--checkpoint", "daily", at=at)
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
        layer = self.qchain("chaininfo", "a.qcow2", "--json").json["layers"][0]["identity"]["id"]
        done = self.qchain("verify", "a.qcow2")
        self.assert_shows(done, f"point in time {moment}", "checkpoint daily", layer, "disk vda")
        self.assert_shows(self.qchain("restore", "a.qcow2", "out.raw"), f"point in time {moment}", layer)
        point = self.qchain("verify", "a.qcow2", "--json").json["point"]
        self.assertEqual((point["time"], point["layer_id"], point["checkpoint"], point["origin"], point["file"]),
                         (moment, layer, "daily", "pull", "a.qcow2"))
        restored = self.qchain("restore", "a.qcow2", "out.qcow2", "--format", "qcow2", "--json").json
        self.assertEqual((restored["point"]["layer_id"], restored["trust_demanded"]), (layer, False))
        self.assertEqual(self.header("out.qcow2")["origin"], "restore")
        self.path("a.qcow2.manifest").unlink()
        self.assert_shows(self.qchain("verify", "a.qcow2", expect=4), layer, "no valid manifest")

    def test_what_is_expected(self) -> None:
        self.pull("a.qcow2", "--checkpoint", "daily")
        root = "sha256:" + blkhash.of_file(self.path("disk.raw"))
        layer = self.header("a.qcow2")["layer"]
        right = [f"root={root}", f"layer={layer}", "checkpoint=daily"]
        self.qchain("verify", "a.qcow2", *(word for value in right for word in ("--expect", value)))
        self.qchain("restore", "a.qcow2", "out.raw", "--expect", right[0])
        for wrong in (f"root={root[:-1]}{'0' if root[-1] != '0' else '1'}", f"layer={layer[:-1]}{'0' if layer[-1] != '0' else '1'}",
                      "checkpoint=Daily"):
            with self.subTest(wrong=wrong):
                said = [wrong.split("=", 1)[1], "was expected"]
                self.refuses(5, "verify", "a.qcow2", "--expect", right[0], "--expect", wrong, says=said)
                self.refuses(5, "restore", "a.qcow2", "never.raw", "--expect", wrong, says=said)
                self.assertFalse(self.path("never.raw").exists())
        for bad in ("daily", "root=", "=x", "time=1", "Root=x"):
            self.refuses(2, "verify", "a.qcow2", "--expect", bad, says=[bad])
            self.refuses(2, "restore", "a.qcow2", "never.raw", "--expect", bad, says=[bad])

    def test_an_expectation_without_a_manifest(self) -> None:
        self.pull("a.qcow2", "--checkpoint", "daily")
        self.refuses(2, "restore", "a.qcow2", "out.raw", "--no-verify", "--expect", "checkpoint=daily")
        self.path("a.qcow2.manifest").unlink()
        self.refuses(5, "verify", "a.qcow2", "--expect", "checkpoint=daily", says=["manifest"])
        self.refuses(5, "restore", "a.qcow2", "out.raw", "--expect", "checkpoint=daily", says=["manifest"])

    def test_age(self) -> None:
        self.pull("a.qcow2", at=time.time() - 3 * DAY)
        for enough in ("4d", "1w", "80h", "10000m", "400000s"):
            self.qchain("verify", "a.qcow2", "--not-older-than", enough)
        for little in ("2d", "0w", "48h", "60m", "1s"):
            self.refuses(5, "verify", "a.qcow2", "--not-older-than", little, says=["older"])
        self.refuses(5, "restore", "a.qcow2", "out.raw", "--not-older-than", "2d", says=["older", "nothing was written"])
        for bad in ("3", "d", "-1d", "1.5d", "1y", "99999999999999999999d", "9999999999999w"):
            self.refuses(2, "verify", "a.qcow2", "--not-older-than", bad, says=[bad])
        self.edit("a.qcow2", time="")
        self.refuses(5, "verify", "a.qcow2", "--not-older-than", "1w", says=["no time"])

    def test_yesterdays_disk_under_todays_name(self) -> None:
        """Signed, sound, and not the newest."""
        self.key("ours")
        now = time.time()
        self.pull("old.qcow2", "--sign-key", "ours.pem", at=now - DAY)
        self.pull("new.qcow2", "--sign-key", "ours.pem", at=now, content=b"y" * M)
        seen = ["--trust-key", "ours.pub", "--last-seen", "seen.json"]
        self.qchain("verify", "old.qcow2", *seen)
        self.qchain("verify", "new.qcow2", *seen)
        self.qchain("verify", "new.qcow2", *seen)
        for suffix in ("", ".manifest"):
            self.path("new.qcow2" + suffix).write_bytes(self.path("old.qcow2" + suffix).read_bytes())
        self.qchain("verify", "new.qcow2", "--trust-key", "ours.pub")
        before = self.path("seen.json").read_bytes()
        self.refuses(5, "verify", "new.qcow2", *seen, says=["older", "vda"])
        self.refuses(5, "restore", "new.qcow2", "out.raw", *seen, says=["older", "nothing was written"])
        self.assertFalse(self.path("out.raw").exists())
        self.assertEqual(self.path("seen.json").read_bytes(), before)

    def test_what_was_restored_is_as_old_as_its_source(self) -> None:
        self.pull("a.qcow2", "--checkpoint", "daily", at=time.time() - 3 * DAY)
        self.qchain("restore", "a.qcow2", "copy.qcow2", "--format", "qcow2")
        names = ("time", "export", "checkpoint")
        self.assertEqual([self.header("copy.qcow2")[name] for name in names], [self.header("a.qcow2")[name] for name in names])
        self.refuses(5, "verify", "copy.qcow2", "--not-older-than", "2d", says=["older"])
        self.qchain("verify", "a.qcow2", "--last-seen", "seen.json")
        self.qchain("verify", "copy.qcow2", "--last-seen", "seen.json")

    def test_disks_are_told_apart(self) -> None:
        now = time.time()
        self.pull("a.qcow2", at=now)
        self.qchain("verify", "a.qcow2", "--last-seen", "seen.json")
        self.pull("b.qcow2", at=now - DAY, content=b"b" * M)
        self.refuses(5, "verify", "b.qcow2", "--last-seen", "seen.json", says=["older"])
        self.edit("b.qcow2", export="vdb")
        self.qchain("verify", "b.qcow2", "--last-seen", "seen.json")
        self.assertEqual(sorted(json.loads(self.path("seen.json").read_text())["disks"]), ["vda", "vdb"])

    def test_what_cannot_be_recorded_is_said(self) -> None:
        """And the rest of the verdict with it."""
        self.pull("a.qcow2")
        done = self.qchain("verify", "a.qcow2", "--last-seen", "/proc/seen.json", "--json", expect=3)
        self.assertEqual([verdict["outcome"] for verdict in done.json["verdicts"]], ["I/O error"])
        self.assertEqual(done.json["layers"][0]["content"]["damaged_bytes"], 0)

    def test_another_layer_of_the_same_second(self) -> None:
        now = time.time()
        self.pull("a.qcow2", at=now)
        self.pull("b.qcow2", at=now, content=b"b" * M)
        self.qchain("verify", "a.qcow2", "--last-seen", "seen.json")
        self.refuses(5, "verify", "b.qcow2", "--last-seen", "seen.json", says=["older"])

    def test_only_what_is_proven_was_seen(self) -> None:
        self.pull("a.qcow2")
        self.qchain("verify", "a.qcow2", "--last-seen", "seen.json", "--sample", "1/2", expect=4)
        self.assertFalse(self.path("seen.json").exists())
        self.qchain("restore", "a.qcow2", "out.raw", "--last-seen", "seen.json")
        self.assertEqual(list(json.loads(self.path("seen.json").read_text())["disks"]), ["vda"])

    def test_a_file_that_is_no_list(self) -> None:
        self.pull("a.qcow2")
        for text in ("", "[]", "{}", '{"schema":"qchain.last-seen","version":2,"disks":{}}', '{"schema":"qchain.last-seen","version":1}',
                     '{"schema":"qchain.last-seen","version":1,"disks":{"vda":7}}'):
            with self.subTest(text=text):
                self.path("seen.json").write_text(text)
                self.refuses(2, "verify", "a.qcow2", "--last-seen", "seen.json", says=["seen.json"])
                self.assertEqual(self.path("seen.json").read_text(), text)
        self.refuses(3, "verify", "a.qcow2", "--last-seen", "nosuch/seen.json", says=["nosuch"])


class Seal(ClaimsTest):
    """All is sealed, or nothing."""

    def chain(self) -> None:
        """Three layers without identities; 64K at 1M of the middle one are hidden by the top."""
        self.path("base.raw").write_bytes(b"b" * 4 * M)
        for name, below, format in (("mid.qcow2", "base.raw", "raw"), ("top.qcow2", "mid.qcow2", "qcow2")):
            self.run_tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", format, name)
        self.run_tool("qemu-io", "-f", "qcow2", "-c", "write -P 1 1M 64k", "-c", "write -P 2 2M 64k", "mid.qcow2")
        self.run_tool("qemu-io", "-f", "qcow2", "-c", "write -P 3 1M 64k", "top.qcow2")
        self.qchain("verify", "top.qcow2", "--seal")

    def rot(self, image: str, offset: int) -> None:
        info = self.qchain("chaininfo", image, "--map", "--json").json
        [mapping] = [m for m in info["map"] if m["start"] <= offset < m["start"] + m["length"]]
        flip_byte(self.path(info["layers"][mapping["layer"]]["file"]), mapping["host_offset"] + offset - mapping["start"])

    def test_nothing_is_published_before_all_is_judged(self) -> None:
        for what, offset in (("seen through the top", 2 * M + 5), ("hidden by the top", M + 5)):
            with self.subTest(rot=what):
                self.chain()
                self.path("mid.qcow2.manifest").unlink()
                self.rot("mid.qcow2", offset)
                before = self.fingerprint()
                self.refuses(1, "verify", "top.qcow2", "--seal", says=["nothing was sealed"])
                self.assertEqual(self.fingerprint(), before)
                self.refuses(4, "verify", "mid.qcow2")
                self.qchain("verify", "top.qcow2", "--seal", "--accept-changed")
                for name in ("mid.qcow2", "top.qcow2"):
                    self.path(name).unlink()
                    self.path(f"{name}.manifest").unlink()
                self.path("base.raw.manifest").unlink()

    def test_all_are_sealed(self) -> None:
        self.chain()
        for name in ("base.raw", "mid.qcow2", "top.qcow2"):
            self.path(f"{name}.manifest").unlink()
        self.qchain("verify", "top.qcow2", "--seal")
        self.qchain("verify", "top.qcow2")
        self.assertEqual([self.header(name)["origin"] for name in ("base.raw", "mid.qcow2", "top.qcow2")], ["seal"] * 3)

    def test_sealed_later_is_told_apart(self) -> None:
        self.pull("a.qcow2", at=time.time() - 5 * DAY - 60)
        self.assertNotIn("sealed", self.qchain("verify", "a.qcow2").out)
        self.path("a.qcow2.manifest").unlink()
        self.qchain("verify", "a.qcow2", "--seal")
        for command in ("verify", "chaininfo"):
            self.assert_shows(self.qchain(command, "a.qcow2"), "sealed", "5 days after the layer was written")
        manifest = self.qchain("verify", "a.qcow2", "--json").json["layers"][0]["manifest"]
        self.assertEqual(manifest["origin"], "seal")
        self.assertGreater(manifest["sealed_time"], manifest["time"])


class Signature(ClaimsTest):
    """A signature vouches for what was checked."""

    def setUp(self) -> None:
        super().setUp()
        self.build()
        self.key("ours")
        self.key("theirs")

    def test_an_unsigned_layer_is_read_before_it_is_signed(self) -> None:
        content = self.path("check1.qcow2").read_bytes()
        info = self.qchain("chaininfo", "check1.qcow2", "--map", "--json").json
        offset = next(m["host_offset"] for m in info["map"] if m["kind"] == "data")
        flip_byte(self.path("check1.qcow2"), offset + 9)
        before = self.fingerprint()
        self.refuses(1, "verify", "check3.qcow2", "--seal", "--sign-key", "ours.pem", says=["check1.qcow2", "nothing was sealed"])
        self.assertEqual(self.fingerprint(), before)
        self.path("check1.qcow2").write_bytes(content)
        self.qchain("verify", "check3.qcow2", "--seal", "--sign-key", "ours.pem")
        self.assertEqual([self.header(f"check{i}.qcow2")["origin"] for i in (1, 2, 3)], ["seal"] * 3)

    def test_another_keys_signature_stays(self) -> None:
        self.qchain("verify", "check2.qcow2", "--seal", "--sign-key", "theirs.pem")
        before = self.fingerprint()
        self.refuses(2, "verify", "check3.qcow2", "--seal", "--sign-key", "ours.pem", says=["another key", "--trust-key"])
        self.assertEqual(self.fingerprint(), before)
        self.refuses(2, "verify", "check3.qcow2", "--seal", "--trust-key", "theirs.pub", says=["--sign-key"])
        self.qchain("verify", "check3.qcow2", "--seal", "--sign-key", "ours.pem", "--trust-key", "theirs.pub")
        for name in ("check1.qcow2.manifest", "check2.qcow2.manifest"):
            self.assertEqual(self.fingerprint()[name], before[name])
        self.refuses(5, "verify", "check3.qcow2", "--trust-key", "ours.pub")
        self.path("both.pub").write_bytes(self.path("ours.pub").read_bytes() + self.path("theirs.pub").read_bytes())
        self.qchain("verify", "check3.qcow2", "--trust-key", "both.pub")

    def test_files_of_keys(self) -> None:
        self.qchain("verify", "check3.qcow2", "--seal", "--sign-key", "ours.pem")
        ours, theirs = self.path("ours.pub").read_bytes(), self.path("theirs.pub").read_bytes()
        for code, content in ((0, theirs + b"\n# the second\n" + ours + b"\n"), (5, theirs + theirs), (2, b""), (2, b"\n"), (2, ours[:40]),
                              (2, ours + self.path("ours.pem").read_bytes()), (2, ours + theirs[:60])):
            with self.subTest(content=content):
                self.path("keys.pub").write_bytes(content)
                self.qchain("verify", "check3.qcow2", "--trust-key", "keys.pub", expect=code)
        self.path("two.pem").write_bytes(self.path("ours.pem").read_bytes() + self.path("theirs.pem").read_bytes())
        self.refuses(2, "verify", "check3.qcow2", "--seal", "--sign-key", "two.pem", says=["two.pem"])

    def test_digests_that_prove_nothing_are_not_signed(self) -> None:
        self.pull("weak.qcow2", "--digest", "xxh3-128")
        before = self.fingerprint()
        self.refuses(2, "verify", "weak.qcow2", "--seal", "--sign-key", "ours.pem", says=["xxh3-128"])
        self.path("weak.qcow2.manifest").unlink()
        self.refuses(2, "verify", "weak.qcow2", "--seal", "--sign-key", "ours.pem", says=["xxh3-128"])
        self.assertEqual({**self.fingerprint(), "weak.qcow2.manifest": before["weak.qcow2.manifest"]}, before)

    def test_chaininfo_checks_what_it_shows(self) -> None:
        self.qchain("verify", "check3.qcow2", "--seal", "--sign-key", "ours.pem")
        done = self.qchain("chaininfo", "check3.qcow2")
        self.assertEqual(done.out.count("signature valid"), 3)
        path = self.path("check2.qcow2.manifest")
        path.write_bytes(path.read_bytes()[:-64] + bytes(64))
        done = self.refuses(5, "chaininfo", "check3.qcow2", says=["check2.qcow2.manifest"])
        self.assertEqual((done.out.count("signature valid"), done.out.count("signature INVALID")), (2, 1))
        layers = self.qchain("chaininfo", "check3.qcow2", "--json", expect=5).json["layers"]
        self.assertEqual([layer["manifest"]["signature_valid"] for layer in layers], [True, False, True])


class SignedIncrement(ClaimsTest):
    """A signing pull onto layers that nobody trusted signed."""

    def test_with_and_without_the_word(self) -> None:
        for name in ("ours", "theirs"):
            self.key(name)
        with Export.start(self.folder, 4 * M) as export:
            export.io("write -P 1 0 2M")
            uri = export.backup("check1")
            self.qchain("pull", uri, "-o", "signed.qcow2", "--checkpoint", "check1", "--sign-key", "theirs.pem")
            self.qchain("pull", uri, "-o", "plain.qcow2", "--checkpoint", "check1")
            export.end()
            export.io("write -P 2 1M 64k")
            uri = export.backup("check2", "check1")

            def pull(parent: str, *argv: Any, expect: int = 0) -> Done:
                return self.qchain("pull", uri, "-o", "next.qcow2", "--parent", parent, "--since", "check1", "--force",
                                   *argv, expect=expect)

            for parent in ("plain.qcow2", "signed.qcow2"):
                done = pull(parent, "--sign-key", "ours.pem", expect=5)
                self.assert_says(done, f"{parent}.manifest", "--trust-key", "--sign-unproven")
                self.assertFalse(self.path("next.qcow2").exists())
            pull("plain.qcow2", "--sign-key", "ours.pem", "--trust-key", "theirs.pub", expect=5)
            pull("signed.qcow2", "--sign-key", "ours.pem", "--trust-key", "theirs.pub")
            self.assertNotIn("signed_unproven", self.header("next.qcow2"))
            self.qchain("verify", "next.qcow2", "--trust-key", "ours.pub", "--trust-key", "theirs.pub")
            pull("signed.qcow2", "--sign-key", "theirs.pem")
            self.qchain("verify", "next.qcow2", "--trust-key", "theirs.pub")
            pull("plain.qcow2", "--sign-key", "ours.pem", "--sign-unproven")
            self.assertTrue(self.header("next.qcow2")["signed_unproven"])
            self.assertTrue(self.qchain("verify", "next.qcow2", "--json").json["layers"][0]["manifest"]["signed_unproven"])
            for argv in (["--sign-unproven"], ["--trust-key", "ours.pub"], ["--sign-key", "ours.pem", "--sign-unproven", "--trust-key", "ours.pub"]):
                pull("signed.qcow2", *argv, expect=2)


if __name__ == "__main__":
    unittest.main()
