"""Damage of every kind to chains and their manifests, and the outcome of each command.

QCHAIN_SEED=N repeats the damage that was drawn.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
import unittest
from typing import Any

import blkhash
from chain import LAYERS, SIZE, ChainTest
from harness import K, M, Case, flip_byte, patch, qemu_nbd

from export import Export

SEED = int(os.environ.get("QCHAIN_SEED") or 1)
BLOCK = 64 * K


def rot(case: Case, image: str, offset: int) -> None:
    """Flips the byte of guest offset `offset` in the layer that holds it; a second call undoes it."""
    info = case.qchain("chaininfo", image, "--map", "--json").json
    [mapping] = [m for m in info["map"] if m["start"] <= offset < m["start"] + m["length"]]
    case.assertEqual(mapping["kind"], "data", mapping)
    flip_byte(case.folder / info["layers"][mapping["layer"]]["file"], mapping["host_offset"] + offset - mapping["start"])


class ProofTest(ChainTest):

    def setUp(self) -> None:
        super().setUp()
        self.build()

    def rot(self, image: str, offset: int) -> None:
        rot(self, image, offset)

    def report(self, name: str, *argv: Any, expect: int) -> dict[str, Any]:
        """The report of a verify, kept as a file."""
        done = self.qchain("verify", *argv, "--json", expect=expect)
        self.path(name).write_bytes(done.raw_out)
        return done.json

    def key(self, name: str) -> None:
        self.run_tool("openssl", "genpkey", "-algorithm", "ed25519", "-out", f"{name}.pem")
        self.run_tool("openssl", "pkey", "-in", f"{name}.pem", "-pubout", "-out", f"{name}.pub")


class Damage(ProofTest):
    """Damaged files of a chain."""

    def test_an_untouched_chain(self) -> None:
        for number in (1, 2, 3):
            done = self.qchain("verify", f"check{number}.qcow2")
            self.assertIn(blkhash.of_file(self.path(f"check{number}.raw")), done.out)
            self.assertEqual(done.err, "")

    def test_any_byte(self) -> None:
        """A sample of what the mutation test does, with the command."""
        draw = random.Random(SEED)
        for name in [*LAYERS, *(f"{layer}.manifest" for layer in LAYERS)]:
            content = self.path(name).read_bytes()
            telling = [at for at, byte in enumerate(content) if byte] + list(range(112))
            for at in draw.sample(telling, 4) + draw.sample(range(len(content)), 1):
                with self.subTest(file=name, byte=at, seed=SEED):
                    patch(self.path(name), at, bytes([content[at] ^ 1 << draw.randrange(8)]))
                    done = self.qchain("verify", "check3.qcow2", expect=range(0, 7))
                    if done.code not in (1, 5):
                        self.assertFalse(name.endswith(".manifest"), done)
                        self.assert_harmless(done.code)
                    patch(self.path(name), at, content[at:at + 1])
        self.qchain("verify", "check3.qcow2")

    def assert_harmless(self, code: int) -> None:
        """Every restore point is unchanged according to QEMU, or unreadable."""
        for number in (1, 2, 3):
            done = self.qchain("restore", f"check{number}.qcow2", "out.raw", "--no-verify", "--force", expect=range(0, 7))
            if done.code == 0:
                self.assert_same_bytes("out.raw", f"check{number}.raw")
                self.assert_same_bytes(self.flat(f"check{number}.qcow2", "by-qemu.raw"), f"check{number}.raw")
            else:
                self.assertNotEqual(code, 0, done)

    def test_swapped_layers(self) -> None:
        os.rename(self.path("check1.qcow2"), self.path("other"))
        os.rename(self.path("check2.qcow2"), self.path("check1.qcow2"))
        os.rename(self.path("other"), self.path("check2.qcow2"))
        self.refuses(1, "verify", "check3.qcow2", says=["check3.qcow2", "layer"])

    def test_a_missing_layer(self) -> None:
        self.path("check2.qcow2").unlink()
        self.refuses(3, "verify", "check3.qcow2", says=["check2.qcow2"])

    def test_a_flat_rebase(self) -> None:
        self.run_tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "check1.qcow2", "check3.qcow2")
        self.refuses(1, "verify", "check3.qcow2", says=["check3.qcow2"])

    def test_a_truncated_layer(self) -> None:
        for name in LAYERS:
            content = self.path(name).read_bytes()
            for length in (len(content) - 1, len(content) - BLOCK, len(content) // 2, 64 * K, 200, 10, 0):
                with self.subTest(file=name, length=length):
                    os.truncate(self.path(name), length)
                    done = self.refuses(1 if length > 64 * K else (1, 3), "verify", "check3.qcow2", says=[name])
                    self.assertNotIn("all stored digests", done.out)
            self.path(name).write_bytes(content)

    def test_a_parent_that_was_written_to(self) -> None:
        """The layer's identity is unchanged; a block of the parent that no layer above holds, and one that is hidden."""
        for offset in (2 * M - 512, M):
            shutil.copy(self.path("check1.qcow2"), self.path("kept"))
            self.run_tool("qemu-io", "-f", "qcow2", "-c", f"write -P 9 {offset} 512", "check1.qcow2")
            done = self.refuses(1, "verify", "check3.qcow2", says=["check1.qcow2"])
            self.assertIn(f"{offset // BLOCK * BLOCK:#x}", done.out)
            self.assertIn("rotted", done.out)
            os.replace(self.path("kept"), self.path("check1.qcow2"))

    def test_corruption_in_two_layers_is_reported_for_both(self) -> None:
        self.rot("check3.qcow2", 70 * K)
        self.rot("check1.qcow2", 3 * M + 5)
        done = self.qchain("verify", "check3.qcow2", "--json", expect=1)
        found = {(d["file"], d["offset"]) for d in done.json["differences"] if d["cause"] == "rotted"}
        self.assertEqual(found, {("check3.qcow2", BLOCK), ("check1.qcow2", 3 * M)})


class Manifests(ProofTest):
    """Manifests that are gone, damaged, or of something else."""

    def verify_and_restore(self, code: int, *says: str) -> None:
        """Neither command accepts such a manifest; the data is intact."""
        self.refuses(code, "verify", "check3.qcow2", says=list(says))
        self.refuses(code, "restore", "check3.qcow2", "out.raw", says=[*says, "nothing was written"])
        self.qchain("restore", "check3.qcow2", "out.raw", "--no-verify")
        self.assert_same_bytes("out.raw", "check3.raw")

    def test_a_damaged_one(self) -> None:
        for layer in LAYERS:
            content = self.path(f"{layer}.manifest").read_bytes()
            for at in (0, 9, 30, len(content) // 2, len(content) - 1):
                with self.subTest(layer=layer, byte=at):
                    flip_byte(self.path(f"{layer}.manifest"), at)
                    self.verify_and_restore(5, f"{layer}.manifest")
                    self.path("out.raw").unlink()
                    self.path(f"{layer}.manifest").write_bytes(content)

    def test_a_truncated_one(self) -> None:
        manifest = self.path("check2.qcow2.manifest")
        for length in (0, 5, 100, manifest.stat().st_size - 1):
            with self.subTest(length=length):
                content = manifest.read_bytes()
                os.truncate(manifest, length)
                self.verify_and_restore(5, manifest.name)
                self.path("out.raw").unlink()
                manifest.write_bytes(content)

    def test_an_older_one_put_back(self) -> None:
        """The manifest of the previous layer of that name."""
        older = self.path("check1.qcow2.manifest").read_bytes()
        with self.live("check1.raw") as uri:
            self.qchain("pull", uri, "-o", "check1.qcow2", "--checkpoint", "check1", "--force")
        self.assertNotEqual(self.path("check1.qcow2.manifest").read_bytes(), older)
        self.path("check1.qcow2.manifest").write_bytes(older)
        self.refuses(5, "verify", "check1.qcow2", says=["check1.qcow2.manifest"])

    def test_that_of_another_disk(self) -> None:
        self.path("other.raw").write_bytes(os.urandom(SIZE))
        with self.live("other.raw") as uri:
            self.qchain("pull", uri, "-o", "other.qcow2", "--checkpoint", "check1")
        shutil.copy(self.path("other.qcow2.manifest"), self.path("check1.qcow2.manifest"))
        self.verify_and_restore(5, "check1.qcow2.manifest")

    def test_swapped_ones(self) -> None:
        os.rename(self.path("check3.qcow2.manifest"), self.path("other"))
        os.rename(self.path("check2.qcow2.manifest"), self.path("check3.qcow2.manifest"))
        os.rename(self.path("other"), self.path("check2.qcow2.manifest"))
        self.verify_and_restore(5, "check3.qcow2.manifest")

    def test_a_missing_one(self) -> None:
        for layer in LAYERS:
            with self.subTest(layer=layer):
                content = self.path(f"{layer}.manifest").read_bytes()
                self.path(f"{layer}.manifest").unlink()
                self.refuses(4, "verify", "check3.qcow2", says=[layer])
                done = self.qchain("restore", "check3.qcow2", "out.raw", expect=4)
                self.assertIn("not verified", done.out + done.err)
                self.assert_same_bytes("out.raw", "check3.raw")
                self.path("out.raw").unlink()
                self.path(f"{layer}.manifest").write_bytes(content)

    def test_a_bad_one_hides_nothing(self) -> None:
        """A mismatch takes precedence over a bad manifest, and both are reported."""
        shutil.copy(self.path("check3.qcow2"), self.path("kept"))
        self.rot("check3.qcow2", 70 * K)
        flip_byte(self.path("check1.qcow2.manifest"), 100)
        done = self.refuses(1, "verify", "check3.qcow2", says=["check1.qcow2.manifest"])
        self.assertIn("0x10000", done.out)
        with self.live() as uri:
            done = self.refuses(1, "verify", "check3.qcow2", "--against", uri, says=["check1.qcow2.manifest"])
            self.assertIn("0x11800", done.out)
            flip_byte(self.path("check1.qcow2.manifest"), 100)
            flip_byte(self.path("check3.qcow2.manifest"), 100)
            self.refuses(1, "verify", "check3.qcow2", "--against", uri, says=["check3.qcow2.manifest"])
            os.replace(self.path("kept"), self.path("check3.qcow2"))
            self.refuses(5, "verify", "check3.qcow2", "--against", uri, says=["check3.qcow2.manifest"])
            self.refuses(5, "verify", "check3.qcow2", "--against", uri, "--manifest-only", says=["check3.qcow2.manifest"])

    def test_no_layer_is_built_on_a_bad_one(self) -> None:
        for layer, damage in (("check3", "damaged"), ("check1", "damaged"), ("check1", "another's")):
            with self.subTest(layer=layer, damage=damage):
                manifest = self.path(f"{layer}.qcow2.manifest")
                content = manifest.read_bytes()
                if damage == "damaged":
                    flip_byte(manifest, 100)
                else:
                    shutil.copy(self.path("check2.qcow2.manifest"), manifest)
                with Export.start(self.folder, SIZE) as export:
                    export.backup("check3")
                    export.end()
                    uri = export.backup("check4", "check3")
                    done = self.qchain("pull", uri, "-o", "check4.qcow2", "--parent", "check3.qcow2", "--since", "check3",
                                       expect=(1, 5))
                    self.assertIn("manifest", done.err)
                    self.assertFalse(self.path("check4.qcow2").exists())
                    self.assertFalse(self.path("check4.qcow2.manifest").exists())
                manifest.write_bytes(content)


class Signatures(ProofTest):

    def setUp(self) -> None:
        super().setUp()
        self.key("ours")
        self.key("theirs")

    def sign(self) -> None:
        self.qchain("verify", "check3.qcow2", "--seal", "--sign-key", "ours.pem")

    def test_right(self) -> None:
        self.sign()
        done = self.qchain("verify", "check3.qcow2", "--trust-key", "theirs.pub", "--trust-key", "ours.pub")
        self.assertIn("ours.pub", done.out)
        self.qchain("restore", "check3.qcow2", "out.raw", "--trust-key", "ours.pub")
        self.qchain("verify", "check3.qcow2")

    def test_signed_as_it_is_pulled(self) -> None:
        with self.live("check1.raw") as uri:
            self.qchain("pull", uri, "-o", "signed.qcow2", "--sign-key", "ours.pem")
            self.qchain("pull", uri, "-o", "refused.qcow2", "--sign-key", "ours.pub", expect=2)
        self.assertFalse(self.path("refused.qcow2").exists())
        self.qchain("verify", "signed.qcow2", "--trust-key", "ours.pub")
        self.refuses(5, "verify", "signed.qcow2", "--trust-key", "theirs.pub", says=["trusted"])

    def test_another_key(self) -> None:
        self.sign()
        self.refuses(5, "verify", "check3.qcow2", "--trust-key", "theirs.pub", says=["check3.qcow2.manifest", "trusted"])
        self.refuses(5, "restore", "check3.qcow2", "out.raw", "--trust-key", "theirs.pub", says=["nothing was written"])

    def test_unsigned(self) -> None:
        self.refuses(5, "verify", "check3.qcow2", "--trust-key", "ours.pub", says=["not signed"])
        self.refuses(5, "restore", "check3.qcow2", "out.raw", "--trust-key", "ours.pub", says=["not signed"])
        self.sign()
        manifest = self.path("check1.qcow2.manifest")
        os.truncate(manifest, manifest.stat().st_size - 104)
        self.refuses(5, "verify", "check3.qcow2", "--trust-key", "ours.pub", says=["check1.qcow2.manifest", "not signed"])
        manifest.unlink()
        self.refuses(5, "verify", "check3.qcow2", "--trust-key", "ours.pub", says=["check1.qcow2.manifest"])

    def test_signed_and_edited(self) -> None:
        """With a matching digest of the manifest itself."""
        self.sign()
        manifest = self.path("check1.qcow2.manifest")
        content = manifest.read_bytes()
        body, signature = bytearray(content[:-104 - 32]), content[-104:]
        (header,) = struct.unpack_from("<L", content, 8)
        body[12 + header + 17] ^= 1  # in the digest of the first block
        manifest.write_bytes(body + hashlib.sha256(body).digest() + signature)
        self.refuses(5, "verify", "check3.qcow2", "--trust-key", "ours.pub", says=["check1.qcow2.manifest", "signature"])
        self.refuses(5, "verify", "check3.qcow2", says=["check1.qcow2"])
        self.refuses(5, "restore", "check1.qcow2", "out.raw", "--trust-key", "ours.pub", says=["check1.qcow2.manifest"])

    def test_invalid_keys(self) -> None:
        self.sign()
        self.refuses(2, "verify", "check3.qcow2", "--trust-key", "ours.pem", says=["ours.pem"])
        self.refuses(2, "verify", "check3.qcow2", "--trust-key", "check3.raw", says=["check3.raw"])
        self.refuses(3, "verify", "check3.qcow2", "--trust-key", "nosuch", says=["nosuch"])
        self.refuses(2, "verify", "check3.qcow2", "--seal", "--trust-key", "ours.pub", says=["--trust-key"])
        self.run_tool("openssl", "genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:secret", "-out", "locked.pem")
        self.refuses(2, "verify", "check3.qcow2", "--seal", "--sign-key", "locked.pem", says=["locked.pem"])


class Sealing(ProofTest):

    def records(self, manifest: str) -> bytes:
        """All but the header and the manifest's own digest."""
        content = self.path(manifest).read_bytes()
        (header,) = struct.unpack_from("<L", content, 8)
        return content[12 + header:-32]

    def test_lost_manifests(self) -> None:
        self.forget_manifests()
        self.qchain("verify", "check3.qcow2", "--seal")
        self.qchain("verify", "check3.qcow2")

    def test_a_chain_that_qemu_made(self) -> None:
        self.path("base.raw").write_bytes(os.urandom(M + 100))
        self.run_tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "over.qcow2", str(2 * M))
        self.run_tool("qemu-io", "-f", "qcow2", "-c", "write -P 1 100k 3k", "-c", f"write -P 2 {M} 1k", "over.qcow2")
        self.refuses(4, "verify", "over.qcow2")
        self.qchain("verify", "over.qcow2", "--seal")
        self.assertIn(blkhash.of_file(self.flat("over.qcow2", "over.raw")), self.qchain("verify", "over.qcow2").out)
        self.qchain("restore", "over.qcow2", "restored.raw")
        self.assert_same_bytes("restored.raw", "over.raw")
        flip_byte(self.path("base.raw"), M // 2)
        self.refuses(1, "verify", "over.qcow2", says=["base.raw"])

    def test_rot_is_not_sealed(self) -> None:
        self.rot("check1.qcow2", 3 * M)
        self.forget_manifests()
        done = self.refuses(1, "verify", "check3.qcow2", "--seal", says=["check1.qcow2"])
        self.assertIn(blkhash.of_file(self.path("check1.raw")), done.err)

    def test_every_algorithm(self) -> None:
        for algorithm in ("sha512", "blake2b512", "xxh3-128"):
            with self.subTest(algorithm=algorithm), self.live("check1.raw") as uri:
                self.qchain("pull", uri, "-o", "sealed.qcow2", "--digest", algorithm, "--force")
                before = self.records("sealed.qcow2.manifest")
                self.path("sealed.qcow2.manifest").unlink()
                self.qchain("verify", "sealed.qcow2", "--seal")
                self.assertEqual(self.records("sealed.qcow2.manifest"), before)


class Bitmaps(Case):
    """A dirty bitmap that missed a change of the guest's."""

    def chain(self, cluster: int) -> str:
        """Two layers, of which the second lacks 4 KiB at 260K; 256K to 260K and 2M are in it. The disk then is check2.raw."""
        with Export.start(self.folder, 4 * M, cluster_size=cluster) as export:
            export.io("write -P 1 0 4M")
            uri = export.backup("check1", granularity=cluster)
            self.qchain("pull", uri, "-o", "check1.qcow2", "--checkpoint", "check1", "--cluster-size", cluster)
            export.end()
            export.io("write -P 2 256k 4k", "write -P 3 2M 64k")
            with export.blind("check1"):
                export.io("write -P 4 260k 4k")
            uri = export.backup("check2", "check1")
            export.reference(self.path("check2.raw"))
            self.qchain("pull", uri, "-o", "check2.qcow2", "--parent", "check1.qcow2", "--since", "check1",
                        "--checkpoint", "check2", "--check-clean", "none")
            export.end()
        return "check2.qcow2"

    def against(self, image: str, *argv: str, expect: int) -> list[dict[str, Any]]:
        with qemu_nbd(self.folder, "-f", "raw", self.path("check2.raw")) as server:
            return self.qchain("verify", image, "--against", server.uri, *argv, "--json", expect=expect).json["differences"]

    def test_beside_a_held_part(self) -> None:
        image = self.chain(4 * K)
        (found,) = self.against(image, expect=1)
        self.assertEqual((found["offset"], found["length"], found["cause"]), (260 * K, 4 * K, "missed by the dirty bitmap"))
        # Seen without the live side too.
        done = self.qchain("verify", image, expect=1)
        self.assertIn("missed by the dirty bitmap", done.out)
        self.assertIn("0x40000", done.out)
        done = self.qchain("restore", image, "out.raw", expect=1)
        self.assertIn("0x40000", done.err)
        self.assertFalse(self.path("out.raw").exists())
        # Corruption is something else: in the layer itself, and below the part that it holds.
        with self.subTest("corruption below"):
            rot(self, image, 300 * K)
            document = self.qchain("verify", image, "--json", expect=1).json
            self.assertEqual({(d["manifest_of_layer"], d["cause"]) for d in document["differences"]},
                             {(0, "damaged beneath"), (1, "rotted")})
            self.assertEqual({d["cause"] for d in self.against(image, expect=1)}, {"damaged beneath"})
            rot(self, image, 300 * K)
        with self.subTest("rot"):
            rot(self, image, 257 * K)
            document = self.qchain("verify", image, "--json", expect=1).json
            self.assertEqual({(d["manifest_of_layer"], d["cause"]) for d in document["differences"]}, {(0, "rotted")})
            rot(self, image, 257 * K)

    def test_a_whole_block(self) -> None:
        """Clusters of 64 KiB: 256K to 320K is in the layer, with the change. What was missed is elsewhere."""
        with Export.start(self.folder, 4 * M) as export:
            export.io("write -P 1 0 4M")
            uri = export.backup("check1")
            self.qchain("pull", uri, "-o", "check1.qcow2", "--checkpoint", "check1")
            export.end()
            export.io("write -P 3 2M 64k")
            with export.blind("check1"):
                export.io("write -P 4 1M 4k")
            uri = export.backup("check2", "check1")
            export.reference(self.path("check2.raw"))
            self.qchain("pull", uri, "-o", "check2.qcow2", "--parent", "check1.qcow2", "--since", "check1",
                        "--check-clean", "none")
            # A sample of what is said to be clean finds it.
            done = self.qchain("pull", uri, "-o", "sampled.qcow2", "--parent", "check1.qcow2", "--since", "check1")
            self.assertIn("the dirty bitmap reports", done.err)
            self.qchain("verify", "sampled.qcow2", "--against", uri)
            export.end()
        # This cannot be found from the chain alone.
        self.qchain("verify", "check2.qcow2")
        (found,) = self.against("check2.qcow2", expect=1)
        self.assertEqual((found["offset"], found["length"], found["cause"]), (M, 4 * K, "missed by the dirty bitmap"))
        (found,) = self.against("check2.qcow2", "--manifest-only", expect=1)
        self.assertEqual((found["offset"], found["length"]), (M, BLOCK))


class Against(ProofTest):
    """The chain, its manifests and the live side: which of them is wrong."""

    def causes(self, *argv: str, expect: int = 1) -> dict[int, str]:
        with self.live() as uri:
            document = self.qchain("verify", "check3.qcow2", "--against", uri, *argv, "--json", expect=expect).json
        return {d["offset"]: d["cause"] for d in document["differences"]}

    def test_rotted_changed_and_missed(self) -> None:
        self.rot("check3.qcow2", 70 * K)  # in the top
        self.rot("check3.qcow2", 512 * K)  # in a lower layer
        patch(self.path("check3.raw"), SIZE - 512, b"x")  # the top holds it
        patch(self.path("check3.raw"), 3 * M, b"x")  # a lower layer holds it
        self.assertEqual(self.causes(), {70 * K // 512 * 512: "rotted", SIZE - 512: "changed",
                                         3 * M: "missed by the dirty bitmap", 512 * K: "rotted"})

    def test_both_rotted_alike(self) -> None:
        """The live side and the chain are equal, but differ from the manifest."""
        self.rot("check3.qcow2", 512 * K)
        flip_byte(self.path("check3.raw"), 512 * K)
        self.assertEqual(self.causes(), {512 * K: "rotted"})
        self.forget_manifests()
        self.assertEqual(self.causes(expect=0), {})

    def test_data_that_is_lost_on_both_sides(self) -> None:
        """Neither side has data where the manifest records some."""
        with self.live() as uri:
            self.qchain("pull", uri, "-o", "full.qcow2")
        self.run_tool("qemu-io", "-f", "qcow2", "-c", "write -z 512k 64k", "full.qcow2")
        patch(self.path("check3.raw"), 512 * K, bytes(64 * K))
        with self.live() as uri:
            document = self.qchain("verify", "full.qcow2", "--against", uri, "--json", expect=1).json
        self.assertEqual([(d["offset"], d["cause"]) for d in document["differences"]], [(512 * K, "rotted")])

    def test_without_manifests_the_cause_is_unknown(self) -> None:
        self.forget_manifests()
        patch(self.path("check3.raw"), 3 * M, b"x")
        self.assertEqual(self.causes(), {3 * M: "unknown"})

    def test_manifests_alone(self) -> None:
        self.assertEqual(self.causes("--manifest-only", expect=4), {})
        self.rot("check3.qcow2", 512 * K)
        self.assertEqual(self.causes("--manifest-only", expect=4), {}, "no layer is read")
        patch(self.path("check3.raw"), 3 * M + 70, b"x")
        self.assertEqual(self.causes("--manifest-only"), {3 * M: "changed"})
        patch(self.path("check3.raw"), 3 * M, bytes(64 * K))
        self.assertEqual(self.causes("--manifest-only"), {3 * M: "changed"}, "zeros that it knows of")
        self.forget_manifests()
        self.assertEqual(self.causes("--manifest-only", expect=4), {})

    def test_two_algorithms_in_one_chain(self) -> None:
        """Each layer is proven by its own; the digest of the whole disk is unknown."""
        with Export.start(self.folder, 4 * M) as export:
            export.io("write -P 1 0 1M")
            self.qchain("pull", export.backup("a"), "-o", "a.qcow2", "--checkpoint", "a")
            export.end()
            export.io("write -P 2 0 128k")
            uri = export.backup("b", "a")
            export.reference(self.path("check3.raw"))
            done = self.qchain("pull", uri, "-o", "b.qcow2", "--parent", "a.qcow2", "--since", "a", "--digest", "sha512", "--json")
            self.assertIsNone(done.json["digest"])
            export.end()
        self.refuses(4, "verify", "b.qcow2", says=["unknown"])
        with self.live() as uri:
            self.qchain("verify", "b.qcow2", "--against", uri)
            self.qchain("verify", "b.qcow2", "--against", uri, "--manifest-only", expect=4)
        done = self.qchain("restore", "b.qcow2", "out.raw", expect=4)
        self.assert_same_bytes("out.raw", "check3.raw")
        self.rot("b.qcow2", 5)
        self.refuses(1, "verify", "b.qcow2", says=["b.qcow2"])


class Parts(ProofTest):
    """Verification in parts, and their combination. Stripes are 16 MiB; this disk has a bit more than three."""

    BYTES = 50 * M + 1024

    def setUp(self) -> None:
        super().setUp()
        with self.path("large.raw").open("wb") as file:
            for stripe in range(4):
                file.seek(stripe * 16 * M + 300 * K)
                file.write(os.urandom(200 * K))
            file.truncate(self.BYTES)
        with self.live("large.raw") as uri:
            self.qchain("pull", uri, "-o", "large.qcow2")

    def test_from_manifests_in_parts(self) -> None:
        reads = 0
        for part in (1, 2, 3):
            report = self.report(f"{part}.json", "large.qcow2", "--sample", f"{part}/3", expect=4)
            self.assertEqual(report["selection"]["part"], part)
            self.assertGreater(report["read_bytes"], 0)
            reads += report["read_bytes"]
        self.assertEqual(reads, self.report("all.json", "large.qcow2", expect=0)["read_bytes"])
        document = self.report("sum.json", "--combine", "1.json", "2.json", "3.json", expect=0)
        self.assertEqual((document["parts_seen"], document["parts_missing"]), ([1, 2, 3], []))
        self.report("sum.json", "--combine", "3.json", "1.json", "2.json", expect=0)
        self.report("sum.json", "--combine", "all.json", expect=0)
        done = self.qchain("verify", "--combine", "1.json", "3.json", expect=4)
        self.assertIn("2", done.out)
        self.qchain("verify", "--combine", "1.json", "2.json", "3.json", "2.json", expect=2)
        self.qchain("verify", "--combine", "1.json", "all.json", expect=2)

    def test_rot_is_in_one_part(self) -> None:
        self.rot("large.qcow2", 16 * M + 310 * K)
        for part, code in ((1, 4), (2, 1), (3, 4)):
            self.report(f"{part}.json", "large.qcow2", "--sample", f"{part}/3", expect=code)
        document = self.report("sum.json", "--combine", "1.json", "2.json", "3.json", expect=1)
        self.assertEqual([d["offset"] for d in document["differences"]], [(16 * M + 310 * K) // BLOCK * BLOCK])
        self.report("sum.json", "--combine", "1.json", "2.json", expect=1)
        self.report("sum.json", "--combine", "1.json", "3.json", expect=4)

    def test_against_the_live_side(self) -> None:
        patch(self.path("large.raw"), 32 * M + 300 * K, b"\0\0\0\0")
        with self.live("large.raw") as uri:
            for part, code in ((1, 4), (2, 4), (3, 1)):
                self.report(f"{part}.json", "large.qcow2", "--against", uri, "--sample", f"{part}/3", expect=code)
        document = self.report("sum.json", "--combine", "1.json", "2.json", "3.json", expect=1)
        self.assertEqual(document["different_bytes"], 512)

    def test_what_does_not_belong_together(self) -> None:
        self.report("1.json", "large.qcow2", "--sample", "1/2", expect=4)
        self.report("other.json", "check3.qcow2", "--sample", "2/2", expect=4)
        self.report("of3.json", "large.qcow2", "--sample", "2/3", expect=4)
        with self.live("large.raw") as uri:
            self.report("live.json", "large.qcow2", "--against", uri, "--sample", "2/2", expect=4)
            self.qchain("pull", uri, "-o", "large.qcow2", "--force")
        self.report("later.json", "large.qcow2", "--sample", "2/2", expect=4)
        for other in ("other.json", "of3.json", "live.json", "later.json"):
            with self.subTest(other=other):
                self.refuses(2, "verify", "--combine", "1.json", other, says=[other])

    def test_invalid_reports(self) -> None:
        report = self.report("1.json", "large.qcow2", "--sample", "1/2", expect=4)
        for content in ("", "{}", "[]", "5", '{"schema": 5}', '{"schema": "qchain.verify"}', '{"schema": "qchain.pull"}',
                        json.dumps(report | {"selection": {"part": 1, "parts": 4294967295, "only_earlier_findings": False}}),
                        json.dumps(report | {"selection": {"part": 3, "parts": 2, "only_earlier_findings": False}}),
                        json.dumps(report | {"selection": {"part": 0, "parts": 2, "only_earlier_findings": False}}),
                        json.dumps(report | {"selection": {"part": "1", "parts": 2, "only_earlier_findings": False}}),
                        json.dumps(report | {"selected_outcome": "splendid"}), json.dumps(report | {"layers": 5})):
            with self.subTest(content=content[:60]):
                self.path("none.json").write_text(content)
                self.refuses(2, "verify", "--combine", "none.json", says=["none.json"] if "splendid" not in content else [])
        self.path("none.json").write_text('{"schema": 5}')
        self.refuses(2, "verify", "large.qcow2", "--only", "none.json", says=["none.json"])
        self.refuses(3, "verify", "--combine", "nosuch.json", says=["nosuch.json"])
        self.refuses(2, "verify", "--combine", "1.json", "--against", "nbd://x", says=["--combine"])

    def test_samples_that_are_none(self) -> None:
        for sample in ("0/3", "4/3", "3", "1/0", "1/x", "-1/3", "1/3/5", "", "1/", "/3", "1/99999999999"):
            with self.subTest(sample=sample):
                self.refuses(2, "verify", "large.qcow2", "--sample", sample, says=["--sample"])
        self.qchain("verify", "large.qcow2", "--sample", "1/1")

    def test_a_time_limit(self) -> None:
        done = self.qchain("verify", "large.qcow2", "--max-duration", "0", expect=4)
        self.assertIn("stopped at guest offset 0x", done.err)
        self.assertNotIn("all stored digests", done.out)
        report = self.report("stopped.json", "large.qcow2", "--max-duration", "0", expect=4)
        self.assertEqual(report["selected_outcome"], "incomplete")
        self.qchain("verify", "--combine", "stopped.json", expect=4)
        with self.live("large.raw") as uri:
            done = self.qchain("verify", "large.qcow2", "--against", uri, "--max-duration", "0", expect=4)
            self.assertIn("stopped at guest offset 0x", done.err)
        self.qchain("verify", "large.qcow2", "--max-duration", "1000")
        self.refuses(2, "verify", "large.qcow2", "--max-duration", "soon", says=["--max-duration"])

    def test_only_what_was_found(self) -> None:
        self.rot("large.qcow2", 16 * M + 310 * K)
        self.report("found.json", "large.qcow2", expect=1)
        report = self.report("again.json", "large.qcow2", "--only", "found.json", expect=1)
        self.assertEqual(report["read_bytes"], BLOCK)
        self.qchain("verify", "--combine", "again.json", expect=2)
        self.rot("large.qcow2", 16 * M + 310 * K)  # repaired
        self.rot("large.qcow2", 310 * K)           # and elsewhere something new
        done = self.qchain("verify", "large.qcow2", "--only", "found.json", expect=4)
        self.assertIn("findings of an earlier report only", done.out)
        self.rot("large.qcow2", 310 * K)
        with self.live("large.raw") as uri:
            self.qchain("verify", "large.qcow2", "--only", "found.json", "--against", uri, expect=4)
        self.report("clean.json", "large.qcow2", expect=0)
        self.refuses(2, "verify", "large.qcow2", "--only", "clean.json", says=["clean.json"])

    def test_records(self) -> None:
        self.qchain("verify", "large.qcow2", "--record")
        self.qchain("verify", "large.qcow2", "--record", "--sample", "2/3", expect=4)
        self.rot("large.qcow2", 310 * K)
        self.qchain("verify", "large.qcow2", "--record", expect=1)
        proofs = [json.loads(line) for line in self.path("large.qcow2.proofs").read_text().splitlines()]
        self.assertEqual([proof["outcome"] for proof in proofs], ["done", "incomplete", "mismatch"])
        self.assertEqual([proof["selection"]["part"] for proof in proofs], [1, 2, 1])
        self.assertEqual(proofs[0]["root"], "sha256:" + blkhash.of_file(self.path("large.raw")))
        self.qchain("verify", "large.qcow2", expect=1)
        self.assertEqual(len(self.path("large.qcow2.proofs").read_text().splitlines()), 3, "only where it is asked for")


class Restores(ProofTest):

    def test_a_rotten_block(self) -> None:
        for image, offset in (("check3.qcow2", 70 * K), ("check2.qcow2", M + 5), ("check1.qcow2", 512 * K)):
            with self.subTest(image=image):
                self.rot(image, offset)
                done = self.refuses(1, "restore", "check3.qcow2", "out.raw", says=[image])
                self.assertIn(f"{offset // BLOCK * BLOCK:#x}", done.err)
                self.qchain("restore", "check3.qcow2", "out.raw", "--no-verify")
                self.path("out.raw").unlink()
                self.rot(image, offset)
        self.qchain("restore", "check3.qcow2", "out.raw")
        self.assert_same_bytes("out.raw", "check3.raw")

    def test_rot_that_does_not_show(self) -> None:
        """The disk is unchanged; verify still reports the damage."""
        self.rot("check1.qcow2", M)  # hidden by check2's
        self.qchain("restore", "check3.qcow2", "out.raw")
        self.assert_same_bytes("out.raw", "check3.raw")
        self.refuses(1, "verify", "check3.qcow2", says=["check1.qcow2"])
        self.refuses(1, "restore", "check1.qcow2", "1.raw", says=["0x100000"])

    def test_a_file_that_exists_stays(self) -> None:
        self.rot("check3.qcow2", 70 * K)
        self.path("out.raw").write_bytes(b"mine")
        self.refuses(1, "restore", "check3.qcow2", "out.raw", "--force")

    def test_zeros_where_there_was_data(self) -> None:
        self.run_tool("qemu-io", "-f", "qcow2", "-c", "write -z 64k 64k", "check3.qcow2")
        self.refuses(1, "restore", "check3.qcow2", "out.raw", says=["0x10000"])
        self.refuses(1, "verify", "check3.qcow2", says=["check3.qcow2"])

    def test_the_digest_is_reported(self) -> None:
        expected = "sha256:" + blkhash.of_file(self.path("check3.raw"))
        self.assertEqual(self.qchain("restore", "check3.qcow2", "out.raw", "--json").json["root"], expected)


class Digests(ProofTest):

    def independent(self, raw: str, algorithm: str) -> str:
        """Without qchain; but for XXH3, which Python does not have."""
        names = {"sha256": "sha256", "sha512": "sha512", "blake2b512": "blake2b"}
        if algorithm not in names:
            return self.qchain("digest", raw, "--format", "raw", "--digest", algorithm).out.split()[0]
        return blkhash.of_file(self.path(raw), names[algorithm])

    def test_of_every_algorithm(self) -> None:
        """In the output of pull and verify, in the layer and in the manifest."""
        for algorithm in ("sha256", "sha512", "blake2b512", "xxh3-128"):
            with self.subTest(algorithm=algorithm), Export.start(self.path(algorithm), 2 * M + 512) as export:
                expected = []
                for number, writes in enumerate((["write -P 1 100k 1M"], ["write -P 2 90k 20k", "write -z 512k 100k"],
                                                 [f"write -P 3 {2 * M} 512"]), 1):
                    export.io(*writes)
                    uri = export.backup(f"{number}", f"{number - 1}" if number > 1 else None)
                    export.reference(self.path(f"{number}.raw"))
                    parent = ["--parent", f"{algorithm}/{number - 1}.qcow2", "--since", f"{number - 1}"] if number > 1 else []
                    document = self.qchain("pull", uri, "-o", f"{algorithm}/{number}.qcow2", "--checkpoint", f"{number}",
                                           "--digest", algorithm, *parent, "--json").json
                    expected.append(f"{algorithm}:{self.independent(f'{number}.raw', algorithm)}")
                    self.assertEqual(document["digest"], expected[-1])
                    self.assertEqual(document["parent_digest"], expected[-2] if number > 1 else None)
                    export.end()
                layers = self.qchain("verify", f"{algorithm}/3.qcow2", "--json").json["layers"]
                self.assertEqual([layer["manifest"]["root"] for layer in layers], expected[::-1])
                layers = self.qchain("chaininfo", f"{algorithm}/3.qcow2", "--json").json["layers"]
                self.assertEqual([layer["identity"]["digest"] for layer in layers], expected[::-1])


if __name__ == "__main__":
    unittest.main()
