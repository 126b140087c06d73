"""What is read of a chain: chaininfo, digest, verify and restore, of sound chains and of those that something happened to."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tempfile
import unittest
from collections.abc import Iterator
from pathlib import Path

import blkhash
from blkhash_test import VECTORS
from harness import QCHAIN, K, M, Case, Done, flip_byte, nbdkit, patch, qemu_nbd

from export import Export

SIZE = 4 * M
LAYERS = ["check3.qcow2", "check2.qcow2", "check1.qcow2"]


class ChainTest(Case):
    """A chain of three layers and what the disk was at each: check1.qcow2 and check1.raw to check3.qcow2 and check3.raw."""

    _built: Path | None = None  # by the first test; the others copy it

    def build(self) -> None:
        if ChainTest._built is None:
            self._pull_the_layers()
            built = tempfile.TemporaryDirectory(prefix="qc-")
            unittest.addModuleCleanup(built.cleanup)
            ChainTest._built = Path(built.name)
            self._copy(self.folder, ChainTest._built)
        else:
            self._copy(ChainTest._built, self.folder)

    def _copy(self, source: Path, target: Path) -> None:
        for name in source.glob("check?.*"):
            self.run_tool("cp", "--sparse=always", name, target)

    def _pull_the_layers(self) -> None:
        with Export.start(self.folder, SIZE) as export:
            for number, writes in enumerate((["write -P 1 0 2M", "write -P 2 3M 64k"], ["write -P 3 1M 128k", "write -z 0 64k"],
                                             ["write -P 4 1088k 128k", "write -P 5 64k 4k", f"write -P 6 {SIZE - 512} 512"]), 1):
                export.io(*writes)
                uri = export.backup(f"check{number}", f"check{number - 1}" if number > 1 else None)
                export.reference(self.path(f"check{number}.raw"))
                parent = ["--parent", f"check{number - 1}.qcow2", "--since", f"check{number - 1}"] if number > 1 else []
                self.qchain("pull", uri, "-o", f"check{number}.qcow2", "--checkpoint", f"check{number}", *parent)
                export.end()

    @contextlib.contextmanager
    def live(self, image: str = "check3.raw", format: str = "raw") -> Iterator[str]:
        """An export of a file's content."""
        with qemu_nbd(self.folder, "-f", format, self.path(image)) as server:
            yield server.uri

    def all_refuse(self, expect: int | tuple[int, ...], image: str, says: list[str]) -> None:
        """No command reads through such a chain, and none leaves anything behind; chaininfo tells all the same."""
        with self.live() as uri:
            for argv in (["verify", image], ["verify", image, "--against", uri], ["digest", image],
                         ["restore", image, "out.raw", "--no-verify"], ["chaininfo", image],
                         ["pull", uri, "-o", "next.qcow2", "--parent", image, "--since", "check3", "--bitmap", "none"]):
                with self.subTest(command=" ".join(argv[:2])):
                    codes = (expect, 2) if argv[0] == "pull" else expect  # 2: there is no such bitmap either
                    done = self.refuses(codes, *argv)
                    if done.code != 2:
                        self.assert_says(done, *says)


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
        self.told(1, "c.qcow2", ["c.qcow2", "b.qcow2", "a.qcow2"], ["loop"])
        self.path("alias.qcow2").hardlink_to(self.path("a.qcow2"))
        self.told(1, "alias.qcow2", ["b.qcow2"], ["loop"])

    def test_an_image_that_is_its_own_backing_file(self) -> None:
        self.image("a.qcow2", size=M)
        self.run_tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "a.qcow2", "a.qcow2")
        self.told(1, "a.qcow2", ["a.qcow2"], ["loop"])
        for argv in (["digest", "a.qcow2"], ["restore", "a.qcow2", "out.raw", "--no-verify"], ["verify", "a.qcow2"]):
            self.refuses(1, *argv, says=["loop"])

    def test_a_missing_layer(self) -> None:
        self.build()
        self.path("check2.qcow2").unlink()
        self.told(3, "check3.qcow2", ["check3.qcow2"], ["check2.qcow2", "No such file"])
        self.all_refuse(3, "check3.qcow2", ["check2.qcow2"])

    def test_an_encrypted_layer(self) -> None:
        self.run_tool("qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=x", "-o",
                      "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "luks.qcow2", "1M")
        self.unreadable("luks.qcow2", ["encrypt"])

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
        self.told(4, "top.qcow2", ["top.qcow2"], ["vmdk"])
        self.refuses(4, "digest", "top.qcow2", says=["vmdk"])

    def unreadable(self, name: str, says: list[str], shown: str = "") -> None:
        """As the only layer and below another: what can be read is printed, with exit 4; no content is made up."""
        self.told(4, name, [name, shown], says)
        self.run_tool("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "qcow2", "over.qcow2", "1M")
        self.told(4, "over.qcow2", ["over.qcow2", name], says)
        for argv in (["digest", "over.qcow2"], ["restore", "over.qcow2", "out.raw", "--no-verify"], ["verify", "over.qcow2"]):
            self.refuses(4, *argv, says=says)

    def told(self, expect: int, image: str, shown: list[str], says: list[str]) -> Done:
        """Exits so, says so, and prints what can be read all the same, as text and as JSON."""
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
        """A terminal must not be steered by the name of a file, and JSON must stay JSON."""
        wild = "a\x1b[31m\nb\x7f\tc.qcow2"
        self.image(wild, size=M)
        self.image("top.qcow2", size=M, backing=wild)
        self.image("dangling.qcow2", size=M, backing=wild)
        outputs = [self.qchain("chaininfo", "top.qcow2"), self.qchain("chaininfo", "top.qcow2", "--json"),
                   self.qchain("digest", wild), self.qchain("digest", wild, "--json"), self.qchain("verify", "top.qcow2", expect=4)]
        self.assertIn("[31m", outputs[0].out)
        self.path(wild).unlink()
        outputs += [self.qchain("chaininfo", "dangling.qcow2", expect=3), self.qchain("chaininfo", "dangling.qcow2", "--json", expect=3),
                    self.qchain("digest", wild, expect=3), self.qchain("digest", wild, "--json", expect=3)]
        for done in outputs:
            for stream in (done.raw_out, done.raw_err):
                bad = set(stream) & (set(range(32)) - {10} | {127})
                self.assertFalse(bad, f"control bytes {bad}: {done}")
                self.assertNotIn(b"31m\nb", stream, f"a line break of a name: {done}")
            if "--json" in done.argv:
                self.assertIsInstance(done.json, dict)

    def test_a_name_that_is_no_utf8(self) -> None:
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
        """Never probed: refused, and the fix is named."""
        self.overlay("base.qcow2")
        self.image("in/base.qcow2", size=M)
        content = self.path("in/top.qcow2").read_bytes()
        patch(self.path("in/top.qcow2"), content.index(bytes.fromhex("e2792aca")), bytes.fromhex("12345678"))
        self.refused("in/top.qcow2", "qemu-img rebase")

    def test_raw_that_is_qcow2(self) -> None:
        """The overlay's word binds: the header's bytes are the disk's."""
        self.image("in/base.qcow2", "write -P 7 0 64k", size=M)
        self.overlay("base.qcow2", "raw")
        base = self.path("in/base.qcow2").read_bytes()
        self.assertEqual(self.qchain("digest", "in/top.qcow2").out.split()[0], blkhash.of_bytes(base.ljust(M, b"\0")[:M]))


class ForeignImages(ChainTest):
    """Images that QEMU made: read as QEMU reads them, or refused with 4 and a word about what they have."""

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
                    self.refuses((1, 3), "restore", "image.qcow2", "restored.raw", "--no-verify", says=["image.qcow2"])
                with self.subTest(command="verify"):
                    self.refuses((1, 3), "verify", "image.qcow2", says=["image.qcow2"])


class Links(ChainTest):
    """A chain whose links do not fit: exit 1, whichever command reads it."""

    def setUp(self) -> None:
        super().setUp()
        self.build()

    def test_a_swapped_parent(self) -> None:
        """Another full image of the same disk, at another time, under the parent's name."""
        with self.live("check2.raw") as uri:
            self.qchain("pull", uri, "-o", "check1.qcow2", "--checkpoint", "check1", "--force")
        self.all_refuse(1, "check2.qcow2", ["check2.qcow2"])
        self.all_refuse(1, "check3.qcow2", ["check2.qcow2"])

    def test_another_increment_as_parent(self) -> None:
        os.rename(self.path("check2.qcow2"), self.path("old.qcow2"))
        os.rename(self.path("check1.qcow2"), self.path("check2.qcow2"))
        self.all_refuse(1, "check3.qcow2", ["check3.qcow2"])

    def test_a_flat_rebase(self) -> None:
        self.run_tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "check1.qcow2", "check3.qcow2")
        self.all_refuse(1, "check3.qcow2", ["check3.qcow2"])

    def test_a_rebase_to_nothing(self) -> None:
        self.run_tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "", "check3.qcow2")
        self.all_refuse(1, "check3.qcow2", ["check3.qcow2"])

    def test_a_parent_that_is_no_layer_of_ours(self) -> None:
        self.run_tool("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", "check2.qcow2", "flat.qcow2")
        os.replace(self.path("flat.qcow2"), self.path("check2.qcow2"))
        self.all_refuse(1, "check3.qcow2", ["check3.qcow2"])

    def test_a_layer_moved_with_its_parent(self) -> None:
        """The links are those of identities, not of names: a renamed parent fits where the backing name says so."""
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

    def test_without_a_live_side_is_incomplete(self) -> None:
        self.assertIn("no content", self.qchain("verify", "check3.qcow2", expect=4).out)
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
        """verify names exactly the sectors that differ between two raw files, and who supplied them."""
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
                    self.assertEqual((found["offset"], found["layer"]), ((mapping["start"] + at) // 512 * 512, mapping["layer"]))

    def test_an_export_of_another_size(self) -> None:
        for size in (SIZE + 512, SIZE - 512, 2 * SIZE):
            with self.subTest(size=size):
                os.truncate(self.path("check3.raw"), size)
                with self.live() as uri:
                    done = self.qchain("verify", "check3.qcow2", "--against", uri, expect=1)
                    self.assertIn(str(size), done.out + done.err)
                    self.assertEqual(self.qchain("verify", "check3.qcow2", "--against", uri, "--json", expect=1).json["exit_code"], 1)

    def test_a_live_side_that_cannot_be_read(self) -> None:
        """"A byte that was not read forbids 0", and a mismatch found elsewhere comes first."""
        self.path("bad.map").write_text("# mapfile\n0x0 ? 1\n0x0 0x100000 +\n0x100000 0x200 -\n0x100200 0x2ffe00 +\n")
        with nbdkit(self.folder, "--filter=ddrescue", "file", self.path("check3.raw"), f"ddrescue-mapfile={self.path('bad.map')}") as s:
            done = self.refuses(3, "verify", "check3.qcow2", "--against", s.uri)
            self.assertIn("0x100000", done.out + done.err)
            flip_byte(self.path("check1.qcow2"), 70 * K)
            done = self.qchain("verify", "check1.qcow2", "--against", s.uri, expect=1)
            self.assertIn("0x100000", done.out + done.err, "all verdicts are told")

    def test_a_layer_that_cannot_be_read(self) -> None:
        os.truncate(self.path("check1.qcow2"), self.path("check1.qcow2").stat().st_size // 2)
        with self.live() as uri:
            self.refuses((1, 3), "verify", "check3.qcow2", "--against", uri)

    def test_a_live_side_that_is_not_there(self) -> None:
        self.refuses(3, "verify", "check3.qcow2", "--against", "nbd+unix:///vda?socket=nosuch")
        self.refuses((2, 3), "verify", "check3.qcow2", "--against", "check3.raw")


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
        self.assertRegex(self.qchain("digest", "raw", "--format", "raw", "--digest", "xxh3-128").out.split()[0], r"\A[0-9a-f]{32}\Z")

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
        self.assertEqual(self.path("restored.raw").read_bytes().ljust(64 * K + 1024, b"\0"), content.ljust(64 * K + 1024, b"\0"))

    def test_a_raw_file_is_never_guessed(self) -> None:
        self.path("raw").write_bytes(b"hello" * K)
        self.refuses((1, 2, 3), "digest", "raw", says=["--format raw"])

    def test_an_export_that_cannot_be_read(self) -> None:
        with nbdkit(self.folder, "--filter=error", "pattern", "1M", "error-pread-rate=100%") as server:
            done = self.qchain("digest", server.uri, expect=3)
            self.assertEqual(done.out, "", "no digest of what was not read")


if __name__ == "__main__":
    unittest.main()
