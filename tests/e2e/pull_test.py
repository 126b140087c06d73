"""`qchain pull` except plain increments: raw output, ranges, pipes, raw parents, shallow, bitmaps, reports."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import unittest

import blkhash
from harness import QCHAIN, K, M, Case, end_process, environment, nbdkit, qemu_nbd, sha256

from export import Export

SIZE = 6 * M + 512
UUID = "01234567-89ab-4cde-8f01-23456789abcd"


class PullTest(Case):
    """A live disk with data at the start, in the middle and in its last sector, and a backup of it that runs."""

    def setUp(self) -> None:
        super().setUp()
        self.export = Export.start(self.folder, SIZE)
        self.addCleanup(self.export.stop)
        self.export.io("write -P 1 0 1M", "write -P 2 3M 64k", f"write -P 3 {SIZE - 512} 512")
        self.begin("check1")

    def begin(self, checkpoint: str, since: str | None = None, *, also: tuple[str, ...] = (), depth: bool = False) -> None:
        self.uri = self.export.backup(checkpoint, since, also=also, allocation_depth=depth)
        self.export.reference(self.path("reference.raw"))

    def go_on(self, *commands: str, since: str | None = "check1", also: tuple[str, ...] = (), depth: bool = False) -> None:
        """Ends the backup, lets the guest write, and begins the next one: check2."""
        self.export.end()
        self.export.io(*commands)
        self.begin("check2", since, also=also, depth=depth)

    def pull(self, name: str, *options: str, **kwargs: object) -> dict:
        return self.qchain("pull", self.uri, "-o", name, *options, "--json", **kwargs).json

    def assert_right(self, name: str) -> None:
        self.assert_sound(name)
        self.assert_holds(name, "reference.raw")
        self.qchain("verify", name, "--against", self.uri)


class Raw(PullTest):

    def test_the_whole_disk(self) -> None:
        document = self.pull("disk.raw", "--format", "raw")
        self.assertEqual((document["format"], document["exit_code"]), ("raw", 0))
        self.assert_same_bytes("disk.raw", "reference.raw")
        self.assertLess(self.path("disk.raw").stat().st_blocks * 512, 2 * M, "the raw file is sparse")

    def test_ranges(self) -> None:
        content = self.path("reference.raw").read_bytes()
        for offset, length, text in [(0, SIZE, f"0:{SIZE}"), (1020 * K, 8 * K, "1020K:8K"), (3 * M + 17, 12345, f"{3 * M + 17}:12345"),
                                     (SIZE - 1, 1, f"{SIZE - 1}:1"), (511, 2, "511:2"), (2 * M, M, "2M:1M")]:
            with self.subTest(range=text):
                self.pull("part.raw", "--format", "raw", "--range", text, "--force")
                self.assertEqual(self.path("part.raw").read_bytes(), content[offset:offset + length])

    def test_ranges_that_are_not_there(self) -> None:
        for text in (f"0:{SIZE + 1}", f"{SIZE}:1", "8M:1M", "18446744073709551615:2", "1:18446744073709551615"):
            with self.subTest(range=text):
                self.refuses(2, "pull", self.uri, "-o", "part.raw", "--format", "raw", "--range", text, says=["range"])

    def test_ranges_that_are_none(self) -> None:
        for text in ("", "1M", "1M:", ":1M", "a:b", "1M-2M", "-1:5", "1:2:3"):
            with self.subTest(range=text):
                self.refuses(2, "pull", self.uri, "-o", "part.raw", "--format", "raw", "--range", text, says=["--range"])

    def test_to_a_pipe(self) -> None:
        done = self.qchain("pull", self.uri, "--format", "raw", "-o", "-", "--progress", "json")
        self.assertEqual(done.raw_out, self.path("reference.raw").read_bytes())
        self.assertEqual(self.fingerprint().keys(), {"reference.raw"})

    def test_a_range_to_a_pipe(self) -> None:
        done = self.qchain("pull", self.uri, "--format", "raw", "-o", "-", "--range", "1023K:3M")
        self.assertEqual(done.raw_out, self.path("reference.raw").read_bytes()[1023 * K:1023 * K + 3 * M])

    def test_to_a_file_as_standard_output(self) -> None:
        with self.path("out.raw").open("wb") as out:
            self.finish(self.start("pull", self.uri, "--format", "raw", "-o", "-", stdout=out.fileno()))
        self.assert_same_bytes("out.raw", "reference.raw")

    def test_a_pipe_is_for_raw_alone_and_not_for_json_too(self) -> None:
        self.refuses(2, "pull", self.uri, "-o", "-", says=["raw"])
        done = self.refuses(2, "pull", self.uri, "--format", "raw", "-o", "-", "--json")
        self.assertEqual(done.json["exit_code"], 2)

    def test_a_pipe_without_a_reader(self) -> None:
        """The content is not complete: an I/O error with a message, not a death by SIGPIPE."""
        reading, writing = os.pipe()
        process = self.start("pull", self.uri, "--format", "raw", "-o", "-", stdout=writing)
        os.close(writing)
        os.close(reading)
        self.assert_says(self.finish(process, expect=3), "standard output")

    def test_a_full_device_as_standard_output(self) -> None:
        for argv in (["pull", self.uri, "--format", "raw", "-o", "-"], ["digest", self.uri], ["digest", self.uri, "--json"]):
            with self.subTest(argv=argv[0]), open("/dev/full", "wb") as full:
                self.assert_says(self.finish(self.start(*argv, stdout=full.fileno()), expect=3), "no space")

    def test_a_raw_image_has_no_parent(self) -> None:
        self.pull("full.qcow2")
        self.refuses(2, "pull", self.uri, "-o", "disk.raw", "--format", "raw", "--parent", "full.qcow2", says=["raw"])


class Overlays(PullTest):

    def test_zeros_over_data_never_bring_the_old_data_back(self) -> None:
        self.pull("full.qcow2", "--checkpoint", "check1")
        self.go_on("write -z 0 64k", "discard 128k 64k", "write -P 0 256k 64k", "write -z 400k 1k", "write -z -u 512k 128k")
        document = self.pull("inc.qcow2", "--parent", "full.qcow2", "--since", "check1")
        self.assertGreaterEqual(document["zero_bytes"], 5 * 64 * K, "zero clusters, not data and not holes")
        self.assert_right("inc.qcow2")

    def test_zeros_in_a_bottom_layer_are_inherited(self) -> None:
        """"Zero becomes Inherit" there, and "data that turns out to be zeros becomes Zero"."""
        self.export.end()
        self.export.io("write -P 0 1M 1M", "write -z 4M 1M")
        self.begin("check2")
        document = self.pull("full.qcow2")
        self.assertEqual((document["data_bytes"], document["zero_bytes"]), (1 * M + 64 * K + 512, 0))

    def test_on_a_raw_parent(self) -> None:
        self.pull("full.raw", "--format", "raw")
        self.go_on("write -P 7 2M 100k", "write -z 0 64k")
        document = self.pull("inc.qcow2", "--parent", "full.raw", "--parent-format", "raw", "--since", "check1")
        self.assertIn("full.raw", " ".join(document["notes"]), "the link is noted as unchecked")
        self.assert_right("inc.qcow2")
        info = json.loads(self.run_tool("qemu-img", "info", "--output=json", "inc.qcow2"))
        self.assertEqual((info["backing-filename"], info["backing-filename-format"]), ("full.raw", "raw"))
        self.qchain("restore", "inc.qcow2", "restored.raw", "--no-verify")
        self.assert_same_bytes("restored.raw", "reference.raw")

    def test_a_raw_parent_that_is_qcow2_by_content_is_never_probed(self) -> None:
        """The given format is used: the bytes of the header are the disk's first bytes."""
        self.pull("full.qcow2")
        self.go_on("write -P 7 3M 100k")
        document = self.pull("inc.qcow2", "--parent", "full.qcow2", "--parent-format", "raw")
        info = json.loads(self.run_tool("qemu-img", "info", "--output=json", "inc.qcow2"))
        self.assertEqual(info["backing-filename-format"], "raw")
        # The bitmap does not start at such a parent, which shows where the live side has zeros.
        self.assertIn("clean", " ".join(document["warnings"]))
        self.assert_right("inc.qcow2")

    def test_a_raw_parent_of_odd_length(self) -> None:
        """QEMU rounds a raw file up to 512 with zeros."""
        self.pull("full.raw", "--format", "raw")
        with self.path("full.raw").open("r+b") as file:
            file.truncate(1 * M - 100)
        self.go_on("write -P 7 1M 5M")
        self.pull("inc.qcow2", "--parent", "full.raw", "--parent-format", "raw", "--bitmap", "backup-vda")
        self.qchain("restore", "inc.qcow2", "restored.raw", "--no-verify")
        self.assert_same_bytes("restored.raw", self.flat("inc.qcow2", "qemu.raw"))

    def test_the_cluster_size_is_the_parents(self) -> None:
        self.pull("full.qcow2", "--cluster-size", "8K", "--checkpoint", "check1")
        self.go_on("write -P 7 3M 9k")
        self.assertEqual(self.pull("inc.qcow2", "--parent", "full.qcow2", "--since", "check1")["cluster_size"], 8 * K)
        self.assertEqual(self.pull("other.qcow2", "--parent", "full.qcow2", "--since", "check1", "--cluster-size", "1M")
                         ["cluster_size"], M)
        self.assert_right("other.qcow2")

    def test_a_parent_whose_cluster_size_cannot_be_written(self) -> None:
        """"default: the parent's where we can write it, else 64K"."""
        self.run_tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=512", "reference.raw", "full.qcow2")
        self.go_on("write -P 7 3M 9k")
        self.assertEqual(self.pull("inc.qcow2", "--parent", "full.qcow2")["cluster_size"], 64 * K)
        self.assert_right("inc.qcow2")

    def test_shallow_is_what_the_active_layer_holds(self) -> None:
        self.pull("full.qcow2", "--checkpoint", "check1")
        self.export.end()
        self.run_tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "reference.raw", "base.qcow2")
        self.image("live.qcow2", "write -P 9 1M 64k", "write -z 0 64k", size=SIZE, backing="base.qcow2")
        self.flat("live.qcow2", "reference.raw")
        with qemu_nbd(self.folder, "-A", "-f", "qcow2", self.path("live.qcow2")) as server:
            document = self.qchain("pull", server.uri, "-o", "inc.qcow2", "--parent", "full.qcow2", "--since", "check1",
                                   "--shallow", "--json").json
            self.assertEqual((document["data_bytes"], document["zero_bytes"]), (64 * K, 64 * K))
            self.qchain("verify", "inc.qcow2", "--against", server.uri)
        self.assert_sound("inc.qcow2")
        self.assert_holds("inc.qcow2", "reference.raw")

    def test_shallow_without_allocation_depth(self) -> None:
        self.pull("full.qcow2", "--checkpoint", "check1")
        self.refuses(2, "pull", self.uri, "-o", "inc.qcow2", "--parent", "full.qcow2", "--since", "check1", "--shallow",
                     says=["allocation-depth"])

    def test_a_full_image_says_that_it_ignores_the_bitmap(self) -> None:
        self.go_on("write -P 7 3M 9k")
        document = self.pull("full.qcow2")
        self.assertIn("backup-vda", " ".join(document["notes"]))
        self.assertEqual(document["kind"], "full")
        self.assert_says(self.qchain("pull", self.uri, "-o", "again.qcow2"), "backup-vda", "ignoring")
        self.assert_right("full.qcow2")

    def test_one_of_several_bitmaps(self) -> None:
        self.pull("full.qcow2", "--checkpoint", "check1")
        self.go_on("write -P 7 3M 64k")
        self.pull("inc.qcow2", "--checkpoint", "check2", "--parent", "full.qcow2", "--since", "check1")
        self.export.end()
        self.export.io("write -P 8 4M 64k")
        self.begin("check3", "check2", also=("check1", "check2"))
        for name in ("backup-vda", "check2"):
            self.assertEqual(self.pull(f"{name}.qcow2", "--parent", "inc.qcow2", "--since", "check2", "--bitmap", name)
                             ["data_bytes"], 64 * K)
            self.assert_right(f"{name}.qcow2")
        self.assertEqual(self.pull("diff.qcow2", "--parent", "full.qcow2", "--since", "check1", "--bitmap", "check1")
                         ["data_bytes"], 128 * K)
        self.assert_right("diff.qcow2")

    def test_the_layer_records_who_it_is(self) -> None:
        self.pull("full.qcow2", "--checkpoint", "check1", "--layer-id", UUID)
        self.go_on("write -P 7 3M 64k")
        document = self.pull("inc.qcow2", "--checkpoint", "check2", "--parent", "full.qcow2", "--since", "check1",
                             env={"SOURCE_DATE_EPOCH": "1700000000"})
        self.assertEqual((document["parent_id"], document["checkpoint"], document["since"]), (UUID, "check2", "check1"))
        top, bottom = (layer["identity"] for layer in self.qchain("chaininfo", "inc.qcow2", "--json").json["layers"])
        self.assertEqual((bottom["id"], bottom["checkpoint"], bottom["parent"]), (UUID, "check1", None))
        self.assertEqual((top["id"], top["parent"]), (document["layer_id"], UUID))
        self.assertEqual(top["time"], "2023-11-14T22:13:20Z")

    def test_into_another_folder(self) -> None:
        """The backing name is relative to the layer, and --backing-root allows what is not below the top image's directory."""
        for name in ("full", "inc"):
            self.path(name).mkdir()
        self.pull("full/full.qcow2", "--checkpoint", "check1")
        self.go_on("write -P 7 3M 64k")
        options = ["--parent", "full/full.qcow2", "--since", "check1"]
        done = self.qchain("pull", self.uri, "-o", "inc/other.qcow2", *options, expect=(0, 2, 3, 4))
        self.assert_says(done, "as a backing root")
        self.pull("inc/inc.qcow2", *options, "--backing-root", "full")
        info = json.loads(self.run_tool("qemu-img", "info", "--output=json", "inc/inc.qcow2"))
        self.assertEqual(info["backing-filename"], "../full/full.qcow2")
        self.assert_sound("inc/inc.qcow2")
        self.assert_holds("inc/inc.qcow2", "reference.raw")
        for argv in (["verify", "inc/inc.qcow2", "--against", self.uri], ["digest", "inc/inc.qcow2"], ["chaininfo", "inc/inc.qcow2"],
                     ["restore", "inc/inc.qcow2", "out.raw", "--no-verify"]):
            with self.subTest(command=argv[0]):
                self.refuses((1, 3, 4), *argv, says=["--backing-root", "full.qcow2"])
                self.qchain(*argv, "--backing-root", "full")

    def test_a_backing_name_with_a_colon(self) -> None:
        """`a:b.qcow2` would be a protocol: the name is written as `./a:b.qcow2`."""
        self.pull("./a:b.qcow2", "--checkpoint", "check1")
        self.go_on("write -P 7 3M 64k")
        self.pull("inc.qcow2", "--parent", "a:b.qcow2", "--since", "check1")
        self.assert_right("inc.qcow2")

    def test_force_replaces_another_image(self) -> None:
        self.path("old.qcow2").write_bytes(b"old")
        self.pull("old.qcow2", "--force")
        self.assert_right("old.qcow2")

    def test_qemu_writes_on_a_layer(self) -> None:
        """The published image is an ordinary one: a guest can go on from it, and our extension survives."""
        identity = self.pull("full.qcow2", "--checkpoint", "check1")["layer_id"]
        self.run_tool("qemu-io", "-f", "qcow2", "-c", "write -P 9 2M 3M", "-c", "discard 0 64k", "full.qcow2")
        self.assert_sound("full.qcow2")
        self.assertEqual(self.qchain("chaininfo", "full.qcow2", "--json").json["layers"][0]["identity"]["id"], identity)


class Reports(PullTest):

    def test_documents_have_one_form(self) -> None:
        """Of a success and of a failure: schema, version and exit code; nothing else on standard output."""
        self.pull("full.qcow2")
        commands = [["pull", self.uri, "-o", "other.qcow2"], ["verify", "full.qcow2", "--against", self.uri],
                    ["chaininfo", "full.qcow2"], ["digest", "full.qcow2"], ["restore", "full.qcow2", "out.raw", "--no-verify"]]
        failures = [["pull", self.uri + ".nosuch", "-o", "x.qcow2"], ["verify", "nosuch", "--against", self.uri],
                    ["chaininfo", "nosuch"], ["digest", "nosuch"], ["restore", "nosuch", "x.raw"]]
        usage = [["pull", self.uri], ["verify"], ["chaininfo", "--frob"], ["digest", "full.qcow2", "x"], ["restore", "full.qcow2"]]
        for expect, argvs in ((0, commands), (3, failures), (2, usage)):
            for argv in argvs:
                with self.subTest(command=argv[0], expect=expect):
                    document = self.qchain(*argv, "--json", expect=expect).json
                    self.assertEqual((document["schema"], document["exit_code"]), (f"qchain.{argv[0]}", expect))
                    self.assertIsInstance(document["version"], int)

    def test_progress_as_json_lines(self) -> None:
        done = self.qchain("pull", self.uri, "-o", "full.qcow2", "--json", "--progress", "json")
        self.assertEqual(done.json["exit_code"], 0)
        events = [json.loads(line) for line in done.err.splitlines()]
        self.assertTrue(events)
        self.assertEqual([(e["done"], e["total"]) for e in events][-1], (SIZE, SIZE))
        self.assertEqual(sorted(e["done"] for e in events), [e["done"] for e in events])

    def test_progress_on_a_terminal_alone(self) -> None:
        self.assertEqual(self.qchain("pull", self.uri, "-o", "1.qcow2").err, "")
        with nbdkit(self.folder, "--filter=rate", "pattern", "16M", "rate=64M") as server:
            shown = self.on_terminal("pull", server.uri, "-o", "2.qcow2")
            self.assertIn("\r", shown)
            self.assertIn("%", shown)
            self.assertEqual(self.on_terminal("pull", server.uri, "-o", "3.qcow2", "--progress", "none"), "")

    def on_terminal(self, *argv: str) -> str:
        """What a command prints on standard error that is a terminal."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen([QCHAIN, *argv], cwd=self.folder, env=environment(), stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=theirs)
        self.addCleanup(end_process, process)
        os.close(theirs)
        shown = b""
        while select.select([ours], [], [], 60)[0]:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            shown += part
        os.close(ours)
        self.assertEqual(process.wait(timeout=60), 0, shown)
        return shown.decode(errors="replace")

    def test_the_digest_of_an_export(self) -> None:
        self.assertEqual(self.qchain("digest", self.uri, "--json").json["digest"], blkhash.of_file(self.path("reference.raw")))

    def test_two_pulls_give_the_same_bytes(self) -> None:
        for number, speed in enumerate((["--connections", "1", "--requests", "1"], ["--connections", "8", "--requests", "3"])):
            self.pull(f"{number}.qcow2", "--layer-id", UUID, *speed, env={"SOURCE_DATE_EPOCH": "1"})
        self.assert_same_bytes("0.qcow2", "1.qcow2")
        self.pull("2.qcow2", env={"SOURCE_DATE_EPOCH": "1"})
        self.assertNotEqual(sha256(self.path("1.qcow2")), sha256(self.path("2.qcow2")), "another identity")


if __name__ == "__main__":
    unittest.main()
