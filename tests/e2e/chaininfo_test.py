"""`qchain chaininfo`, and what an image may make qchain open: sound and damaged chains."""

from __future__ import annotations

import json
import os
import struct
import unittest

import blkhash
from chain import LAYERS, SIZE, ChainTest
from harness import QCHAIN, K, M, Done, patch


class ChainInfo(ChainTest):

    def test_what_it_says_of_each_layer_and_of_the_chain(self) -> None:
        self.build()
        info = self.qchain("chaininfo", "check3.qcow2", "--json").json
        self.assertEqual((info["depth"], info["complete"], info["virtual_size"]), (3, True, SIZE))
        self.assertEqual([layer["file"] for layer in info["layers"]], LAYERS)
        for layer, name in zip(info["layers"], LAYERS):
            with self.subTest(layer=name):
                by_qemu = json.loads(self.run_tool("qemu-img", "info", "--output=json", name))
                status = self.path(name).stat()
                self.assertEqual((layer["format"], layer["version"], layer["features"]), ("qcow2", 3, []))
                self.assertEqual((layer["virtual_size"], layer["cluster_size"]), (SIZE, by_qemu["cluster-size"]))
                self.assertEqual(layer["backing_file"], by_qemu.get("backing-filename"))
                self.assertEqual(layer["backing_format"], by_qemu.get("backing-filename-format"))
                self.assertEqual((layer["file_bytes"], layer["disk_bytes"]), (status.st_size, status.st_blocks * 512))
                self.assertEqual(layer["data_bytes"] + layer["zero_bytes"] + layer["inherited_bytes"], SIZE)
        self.assertEqual([(layer["data_bytes"], layer["zero_bytes"]) for layer in info["layers"]],
                         [(64 * K * 4, 0), (128 * K, 64 * K), (2 * M + 64 * K, 0)])
        self.assertEqual(info["file_bytes"], sum(self.path(name).stat().st_size for name in LAYERS))

        text = self.qchain("chaininfo", "check3.qcow2").out
        for expected in [*LAYERS, "64 KiB", "4 MiB", str(SIZE), "3 layers", "check1", "qcow2", "zeros", "inherited", "on disk"]:
            self.assertIn(expected, text)

    def test_snapshots_and_bitmaps_are_listed(self) -> None:
        self.image("vm.qcow2", size=8 * M)
        self.run_tool("qemu-img", "snapshot", "-c", "before\x1b[31m", "vm.qcow2")
        self.run_tool("qemu-img", "bitmap", "--add", "-g", 64 * K, "vm.qcow2", "b0")
        self.run_tool("qemu-img", "bitmap", "--add", "--disable", "-g", 128 * K, "vm.qcow2", "off")
        self.run_tool("qemu-io", "-f", "qcow2", "-c", f"write {1 * M} {100 * K}", "vm.qcow2")
        [layer] = self.qchain("chaininfo", "vm.qcow2", "--json").json["layers"]
        [snapshot] = layer["snapshots"]
        self.assertEqual((snapshot["id"], snapshot["disk_bytes"], snapshot["machine_state_bytes"]), ("1", 8 * M, 0))
        self.assertEqual([(b["name"], b["granularity"], b["recording"], b["dirty_bytes"], b["unusable"]) for b in layer["bitmaps"]],
                         [("b0", 64 * K, True, 128 * K, None), ("off", 128 * K, False, 0, None)])
        text = self.qchain("chaininfo", "vm.qcow2").out
        for expected in ['"before\\x1b[31m"', '"b0", granularity 64 KiB, recording, 128 KiB dirty', '"off"']:
            self.assertIn(expected, text)

    def test_a_snapshot_table_that_ends_early(self) -> None:
        image = self.image("vm.qcow2", "write 0 64k", size=8 * M)
        self.run_tool("qemu-img", "snapshot", "-c", "one", "vm.qcow2")
        patch(image, 60, struct.pack(">I", 2))  # two snapshots, and the table has one
        done = self.qchain("chaininfo", "vm.qcow2", "--json", expect=4)
        self.assertIn("snapshots: ", done.json["problems"][0]["message"])
        self.assertEqual(done.json["layers"][0]["data_bytes"], 64 * K)

    def test_by_its_other_name(self) -> None:
        self.build()
        self.path("chaininfo").symlink_to(QCHAIN)
        for argv in (["check3.qcow2"], ["check3.qcow2", "--json", "--map"]):
            self.assertEqual(self.qchain(*argv, program=self.path("chaininfo")).out, self.qchain("chaininfo", *argv).out)
        self.assertIn("IMAGE", self.qchain("--help", program=self.path("chaininfo")).out)

    def test_a_loop(self) -> None:
        self.image("a.qcow2", size=M)
        self.image("b.qcow2", size=M, backing="a.qcow2")
        self.image("c.qcow2", size=M, backing="b.qcow2")
        self.run_tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "b.qcow2", "a.qcow2")
        self.shows(1, "c.qcow2", ["c.qcow2", "b.qcow2", "a.qcow2"], ["loop"])
        self.path("alias.qcow2").hardlink_to(self.path("a.qcow2"))
        self.shows(1, "alias.qcow2", ["b.qcow2"], ["loop"])

    def test_an_image_that_is_its_own_backing_file(self) -> None:
        self.image("a.qcow2", size=M)
        self.run_tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "a.qcow2", "a.qcow2")
        self.shows(1, "a.qcow2", ["a.qcow2"], ["loop"])
        for argv in (["digest", "a.qcow2"], ["restore", "a.qcow2", "out.raw", "--no-verify"], ["verify", "a.qcow2"]):
            self.refuses(1, *argv, says=["loop"])

    def test_pipes_where_files_are_expected(self) -> None:
        """Does not wait for a writer."""
        self.image("top.qcow2", size=M)
        os.mkfifo(self.path("pipe"))
        self.run_tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "pipe", "top.qcow2")
        for argv in (["chaininfo", "top.qcow2"], ["digest", "top.qcow2"], ["digest", "pipe"], ["check", "top.qcow2"]):
            self.refuses((1, 3, 4), *argv, says=["pipe"])
        self.image("single.qcow2", size=M)
        os.mkfifo(self.path("single.qcow2.manifest"))
        os.mkfifo(self.path("single.qcow2.proofs"))
        self.refuses((3, 5), "verify", "single.qcow2", says=["single.qcow2.manifest"])
        self.refuses((3, 5), "chaininfo", "single.qcow2", says=["single.qcow2.manifest"])

    def test_identity_manifest_and_last_proof(self) -> None:
        self.build()
        self.run_tool("openssl", "genpkey", "-algorithm", "ed25519", "-out", "key.pem")
        self.qchain("verify", "check3.qcow2", "--seal", "--sign-key", "key.pem")
        self.qchain("verify", "check3.qcow2", "--record")
        self.qchain("verify", "check3.qcow2", "--record", "--sample", "2/5", expect=4)
        top, middle, _ = self.qchain("chaininfo", "check3.qcow2", "--json").json["layers"]
        self.assertEqual(top["identity"]["digest"], "sha256:" + blkhash.of_file(self.path("check3.raw")))
        self.assertEqual(top["manifest"]["root"], top["identity"]["digest"])
        self.assertEqual(len(top["manifest"]["signature_key"]), 64)
        self.assertEqual((top["last_proof"]["outcome"], top["last_proof"]["reach"]), ("incomplete", "part 2 of 5"))
        self.assertIsNone(middle["last_proof"])
        text = self.qchain("chaininfo", "check3.qcow2").out
        for expected in [top["identity"]["digest"], "signature valid, key", "part 2 of 5"]:
            self.assertIn(expected, text)

    def test_a_missing_layer(self) -> None:
        self.build()
        self.path("check2.qcow2").unlink()
        self.shows(3, "check3.qcow2", ["check3.qcow2"], ["check2.qcow2", "No such file"])
        self.all_refuse(3, "check3.qcow2", ["check2.qcow2"])

    def test_an_encrypted_layer(self) -> None:
        image = self.image("secret.qcow2", size=M)
        patch(image, 32, struct.pack(">I", 1))  # AES, which needs no header of its own
        self.unreadable("secret.qcow2", ["encrypt"])

    def test_an_external_data_file(self) -> None:
        self.image("external.qcow2", size=M, options=["data_file=payload.bin"])
        self.unreadable("external.qcow2", ["data file"], "payload.bin")

    def test_an_unknown_feature(self) -> None:
        image = self.image("unknown.qcow2", size=M)
        patch(image, 72, struct.pack(">Q", 1 << 17))
        self.unreadable("unknown.qcow2", ["17"])

    def test_a_foreign_format_below(self) -> None:
        self.run_tool("qemu-img", "create", "-q", "-f", "vmdk", "base.vmdk", "1M")
        self.run_tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.vmdk", "-F", "vmdk", "top.qcow2")
        self.shows(4, "top.qcow2", ["top.qcow2"], ["vmdk"])
        self.refuses(4, "digest", "top.qcow2", says=["vmdk"])

    def unreadable(self, name: str, says: list[str], shown: str = "") -> None:
        """As the only layer and below another: what can be read is printed, with exit 4; no content is invented."""
        self.shows(4, name, [name, shown], says)
        self.run_tool("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "qcow2", "over.qcow2", "1M")
        self.shows(4, "over.qcow2", ["over.qcow2", name], says)
        for argv in (["digest", "over.qcow2"], ["restore", "over.qcow2", "out.raw", "--no-verify"], ["verify", "over.qcow2"]):
            self.refuses(4, *argv, says=says)

    def shows(self, expect: int, image: str, shown: list[str], says: list[str]) -> Done:
        """Exits with this code and message, and prints what can be read, as text and as JSON."""
        done = self.refuses(expect, "chaininfo", image, says=says)
        for text in shown:
            self.assertIn(text, done.out)
        document = self.refuses(expect, "chaininfo", image, "--json", "--map").json
        self.assertEqual((document["exit_code"], document["complete"]), (expect, False))
        self.assertTrue(document["problems"])
        for text in shown:
            self.assertIn(text, json.dumps(document))
        return done

    def test_control_bytes_in_names(self) -> None:
        """A file name must not control the terminal or break the JSON."""
        wild = "a\x1b[31m\nb\x7f\tc.qcow2"
        self.image(wild, size=M)
        self.image("top.qcow2", size=M, backing=wild)
        self.image("dangling.qcow2", size=M, backing=wild)
        outputs = [self.qchain(*argv, *json) for argv in (["chaininfo", "top.qcow2"], ["digest", wild]) for json in ([], ["--json"])]
        self.assertIn("[31m", outputs[0].out)
        outputs.append(self.qchain("verify", "top.qcow2", expect=4))
        self.path(wild).unlink()
        outputs += [self.qchain(*argv, *json, expect=3) for argv in (["chaininfo", "dangling.qcow2"], ["digest", wild])
                    for json in ([], ["--json"])]
        for done in outputs:
            for stream in (done.raw_out, done.raw_err):
                bad = set(stream) & (set(range(32)) - {10} | {127})
                self.assertFalse(bad, f"control bytes {bad}: {done}")
                self.assertNotIn(b"31m\nb", stream, f"a line break of a name: {done}")
            if "--json" in done.argv:
                self.assertIsInstance(done.json, dict)

    def test_a_name_that_is_not_utf8(self) -> None:
        name = b"\xff\xfe.qcow2"
        self.image("plain.qcow2", size=M)
        os.rename(self.path("plain.qcow2"), os.fsencode(self.folder) + b"/" + name)
        self.assertEqual(self.qchain("digest", name, "--json").json["length"], M)
        self.assertEqual(self.qchain("chaininfo", name, "--json").json["depth"], 1)


class BackingNames(ChainTest):
    """What an image may make qchain open."""

    def setUp(self) -> None:
        super().setUp()
        self.path("in/x").mkdir(parents=True)
        self.path("out").mkdir()
        self.image("out/base.qcow2", "write -P 7 0 64k", size=M)

    def refused(self, image: str, *says: str) -> None:
        for argv in (["chaininfo", image], ["digest", image], ["restore", image, "out.raw", "--no-verify"], ["verify", image]):
            with self.subTest(command=argv[0]):
                done = self.refuses((1, 3, 4), *argv, says=says)
                self.assertNotIn("root:", done.out + done.err)

    def overlay(self, backing: str, format: str = "qcow2", name: str = "in/top.qcow2") -> None:
        self.run_tool("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", format, name, "1M")

    def test_outside_of_the_tree(self) -> None:
        for backing in ("../out/base.qcow2", str(self.path("out/base.qcow2")), "./x/../../out/base.qcow2"):
            with self.subTest(backing=backing):
                self.overlay(backing)
                self.refused("in/top.qcow2", "--backing-root")
        self.overlay("../out/base.qcow2")
        self.qchain("chaininfo", "in/top.qcow2", "--backing-root", "out")
        self.assertEqual(self.qchain("digest", "in/top.qcow2", "--backing-root", "in", "--backing-root", "out").out.split()[0],
                         blkhash.of_bytes((b"\7" * 64 * K).ljust(M, b"\0")))

    def test_a_link_out_of_the_tree(self) -> None:
        self.path("in/link.qcow2").symlink_to("../out/base.qcow2")
        self.path("in/folder").symlink_to("../out")
        for backing in ("link.qcow2", "folder/base.qcow2"):
            with self.subTest(backing=backing):
                self.overlay(backing)
                self.refused("in/top.qcow2", "--backing-root")

    def test_the_password_file(self) -> None:
        self.overlay("/etc/passwd", "raw")
        self.refused("in/top.qcow2", "/etc/passwd")

    def test_protocols(self) -> None:
        for backing in ("nbd://127.0.0.1:1/x", "json:{\"driver\":\"raw\"}", "ssh://host/x", "fat:in", "nbd:unix:/x"):
            with self.subTest(backing=backing):
                self.overlay(backing)
                self.refused("in/top.qcow2", backing.partition(":")[0])

    def test_a_backing_file_without_a_format(self) -> None:
        """Never probed: refused, with the remedy."""
        self.overlay("base.qcow2")
        self.image("in/base.qcow2", size=M)
        content = self.path("in/top.qcow2").read_bytes()
        patch(self.path("in/top.qcow2"), content.index(bytes.fromhex("e2792aca")), bytes.fromhex("12345678"))
        self.refused("in/top.qcow2", "qemu-img rebase")

    def test_raw_that_is_qcow2(self) -> None:
        """The overlay's format is used: the bytes of the header are the disk's."""
        self.image("in/base.qcow2", "write -P 7 0 64k", size=M)
        self.overlay("base.qcow2", "raw")
        base = self.path("in/base.qcow2").read_bytes()
        self.assertEqual(self.qchain("digest", "in/top.qcow2").out.split()[0], blkhash.of_bytes(base.ljust(M, b"\0")[:M]))


if __name__ == "__main__":
    unittest.main()
