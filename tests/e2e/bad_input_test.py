"""Bad input of a pull: a clear message, the documented exit code, nothing left, the parent unchanged.

`refuses` compares all files before and after, so that a partial file or a changed parent fails every one of these tests.
"""

from __future__ import annotations

import json
import os
import socket
import unittest
from collections.abc import Sequence

from harness import M, Argument, Case, Done, failing_server, patch

from export import Export

SIZE = 2 * M


class Wrong(Case):
    """A live disk with a full image at check1, and a backup of check2 with two bitmaps that runs."""

    def setUp(self) -> None:
        super().setUp()
        self.export = Export.start(self.folder, SIZE)
        self.addCleanup(self.export.stop)
        self.export.io("write -P 1 0 1M")
        self.qchain("pull", self.export.backup("check1"), "-o", "full.qcow2", "--checkpoint", "check1")
        self.export.end()
        self.export.io("write -P 2 512k 64k")
        self.uri = self.export.backup("check2", "check1")
        self.on_full = ["--parent", "full.qcow2", "--since", "check1"]

    def refuses_pull(self, expect: int | Sequence[int], *options: Argument, says: Sequence[str], uri: str | None = None) -> Done:
        return self.refuses(expect, "pull", uri or self.uri, "-o", "out.qcow2", *options, says=says)

    # -- the export -------------------------------------------------------------------------------------------------

    def test_no_such_export(self) -> None:
        self.refuses_pull(3, uri=self.uri.replace("vda", "vdx"), says=["vdx", "export"])
        self.refuses_pull(3, *self.on_full, uri=self.uri.replace("vda", "vdx"), says=["vdx"])

    def test_no_server(self) -> None:
        self.refuses_pull(3, uri="nbd+unix:///vda?socket=nosuch.sock", says=["nosuch.sock"])
        self.refuses_pull(3, uri="nbd://127.0.0.1:1/vda", says=["127.0.0.1:1"])
        self.path("plain").write_text("no socket")
        self.refuses_pull(3, uri="nbd+unix:///vda?socket=plain", says=["plain"])

    def test_no_nbd_server(self) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(self.path("talk.sock")))
            server.listen()
            process = self.start("pull", f"nbd+unix:///vda?socket={self.path('talk.sock')}", "-o", "out.qcow2")
            for _ in range(10):  # every connection that is tried
                server.settimeout(5)
                try:
                    client = server.accept()[0]
                except TimeoutError:
                    break
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)
                client.close()
            self.assert_says(self.finish(process, 3), "talk.sock")
        self.assertFalse(list(self.folder.glob("out*")))

    def test_no_uri(self) -> None:
        self.refuses_pull((2, 3), uri="vda", says=["vda", "nbd"])
        self.refuses_pull((2, 3), uri="http://127.0.0.1/vda", says=["http"])

    def test_no_such_bitmap(self) -> None:
        self.refuses_pull(2, *self.on_full, "--bitmap", "nosuch", says=["nosuch", "backup-vda"])

    def test_no_bitmap_at_all(self) -> None:
        self.export.end()
        self.uri = self.export.backup("check3")
        self.refuses_pull(2, *self.on_full, says=["bitmap"])

    def test_several_bitmaps_and_none_named(self) -> None:
        self.export.end()
        self.uri = self.export.backup("check3", "check1", also=["check2"])
        self.refuses_pull(2, *self.on_full, says=["backup-vda", "check2", "--bitmap"])

    # -- the parent -------------------------------------------------------------------------------------------------

    def test_a_missing_parent(self) -> None:
        self.refuses_pull(3, "--parent", "nosuch.qcow2", "--since", "check1", says=["nosuch.qcow2"])
        self.refuses_pull(3, "--parent", "nosuch.raw", "--parent-format", "raw", says=["nosuch.raw"])

    def test_a_parent_that_is_not_qcow2(self) -> None:
        self.path("plain.raw").write_bytes(os.urandom(SIZE))
        self.path("empty").touch()
        self.path("folder").mkdir()
        self.refuses_pull((1, 2, 3, 4), "--parent", "plain.raw", says=["plain.raw", "--parent-format raw"])
        self.refuses_pull((1, 2, 3, 4), "--parent", "empty", says=["empty"])
        self.refuses_pull((1, 2, 3, 4), "--parent", "folder", says=["folder"])
        self.refuses_pull(2, "--parent", "full.qcow2", "--parent-format", "vmdk", says=["vmdk"])

    def test_a_parent_at_another_point(self) -> None:
        """"--since is required and must be that name", and "an identity that does not fit is 1"."""
        self.refuses_pull(1, "--parent", "full.qcow2", "--since", "check0", says=["full.qcow2", "check0", "check1"])
        self.refuses_pull(2, "--parent", "full.qcow2", says=["full.qcow2", "check1", "--since"])
        self.qchain("pull", self.uri, "-o", "inc.qcow2", "--checkpoint", "check2", *self.on_full)
        self.refuses_pull(1, "--parent", "inc.qcow2", "--since", "check1", says=["inc.qcow2", "check2", "check1"])

    def test_a_parent_whose_own_parent_is_gone(self) -> None:
        self.qchain("pull", self.uri, "-o", "inc.qcow2", "--checkpoint", "check2", *self.on_full)
        os.rename(self.path("full.qcow2"), self.path("moved.qcow2"))
        self.refuses_pull(3, "--parent", "inc.qcow2", "--since", "check2", says=["full.qcow2"])

    def test_a_parent_that_is_damaged(self) -> None:
        content = self.path("full.qcow2").read_bytes()
        for name, offset, value in (("version", 4, b"\0\0\0\x09"), ("cluster bits", 20, b"\0\0\0\x3f"), ("l1", 40, b"\x7f" * 8),
                                    ("l1 size", 36, b"\x7f\xff\xff\xff"), ("size", 24, b"\x7f" * 8)):
            with self.subTest(damage=name):
                self.path("full.qcow2").write_bytes(content)
                patch(self.path("full.qcow2"), offset, value)
                self.refuses_pull((1, 3, 4), *self.on_full, says=["full.qcow2"])

    def test_a_parent_that_is_marked_as_corrupt(self) -> None:
        """By QEMU, in incompatible bit 1: refused, or at least a warning."""
        patch(self.path("full.qcow2"), 79, b"\2")
        self.assert_says(self.qchain("pull", self.uri, "-o", "out.qcow2", *self.on_full, expect=(0, 1, 4)), "full.qcow2", "corrupt")

    # -- the output -------------------------------------------------------------------------------------------------

    def test_an_output_that_exists(self) -> None:
        for content in (b"", b"mine"):
            self.path("out.qcow2").write_bytes(content)
            self.refuses_pull(2, says=["out.qcow2", "--force"])
            self.refuses_pull(2, *self.on_full, says=["out.qcow2", "--force"])
            self.refuses_pull(2, "--format", "raw", says=["out.qcow2", "--force"])

    def test_a_dangling_link_as_output(self) -> None:
        """Refused, or replaced; nothing is written through it."""
        self.path("out.qcow2").symlink_to("elsewhere.qcow2")
        if self.qchain("pull", self.uri, "-o", "out.qcow2", expect=(0, 2)).code == 0:
            self.assert_sound("out.qcow2")
        self.assertFalse(self.path("elsewhere.qcow2").exists())

    def test_force_never_replaces_a_layer_of_the_chain(self) -> None:
        self.qchain("pull", self.uri, "-o", "inc.qcow2", "--checkpoint", "check2", *self.on_full)
        self.path("link.qcow2").symlink_to("full.qcow2")
        self.path("hard.qcow2").hardlink_to(self.path("full.qcow2"))
        for name in ("inc.qcow2", "full.qcow2", "./full.qcow2", str(self.path("full.qcow2")), "link.qcow2", "hard.qcow2"):
            with self.subTest(output=name):
                self.refuses(2, "pull", self.uri, "-o", name, "--parent", "inc.qcow2", "--since", "check2", "--force",
                             says=["layer"])

    def test_a_failure_keeps_the_output_it_was_to_replace(self) -> None:
        self.path("out.qcow2").write_bytes(b"mine")
        self.refuses_pull(3, "--force", uri=self.uri.replace("vda", "vdx"), says=["vdx"])
        with failing_server(self.folder) as server:
            self.refuses_pull(3, "--force", uri=server.uri, says=["0x100000"])

    def test_an_output_where_nothing_can_be(self) -> None:
        self.path("folder").mkdir()
        self.refuses((2, 3), "pull", self.uri, "-o", "nosuch/out.qcow2", says=["nosuch"])
        self.refuses((2, 3), "pull", self.uri, "-o", "folder", says=["folder"])
        self.refuses((2, 3), "pull", self.uri, "-o", "folder", "--force", says=["folder"])
        self.refuses((2, 3), "pull", self.uri, "-o", "full.qcow2/out.qcow2", says=["full.qcow2"])
        self.refuses((2, 3), "pull", self.uri, "-o", "x" * 300, says=["name"])
        self.refuses(2, "pull", self.uri, "-o", "", says=["-o"])

    def test_usage(self) -> None:
        """Each is 2, and the message names the option, with dashes or without."""
        for options, says in ((["--cluster-size", "3000"], "--cluster-size"), (["--cluster-size", "2K"], "--cluster-size"),
                              (["--cluster-size", "4M"], "--cluster-size"), (["--cluster-size", "0"], "--cluster-size"),
                              (["--cluster-size", "64k x"], "--cluster-size"), (["--connections", "0"], "--connections"),
                              (["--connections", "-1"], "--connections"), (["--requests", "0"], "--requests"),
                              (["--requests", "many"], "--requests"), (["--range", "0:1M"], "--range"),
                              (["--format", "vmdk"], "--format"), (["--since", "check1"], "--since"), (["--shallow"], "--shallow"),
                              (["--bitmap", "backup-vda"], "--bitmap"), (["--layer-id", "no"], "--layer-id"),
                              (["--progress", "loud"], "--progress"), (["--frob"], "--frob"), (["again"], ""),
                              (["--parent-format", "raw"], "--parent"),
                              ([*self.on_full, "--shallow", "--bitmap", "b"], "--shallow")):
            with self.subTest(options=options):
                self.refuses_pull(2, *options, says=[says.lstrip("-")])
        self.refuses(2, "pull", self.uri, says=["-o"])
        self.refuses(2, "pull", says=["URI"])
        self.refuses(2)

    def test_suggestions(self) -> None:
        """Names the mistyped option, and the one that was probably meant."""
        for argv, says in ((["pul"], """unknown command "pul"; did you mean "pull"? Run 'qchain --help' for the list"""),
                           (["frob"], """unknown command "frob". Run 'qchain --help' for the list"""),
                           (["--versoin"], 'did you mean "--version"?'),
                           (["pull", "--parnet", "X"],
                            "pull: unknown option --parnet; did you mean --parent? Run 'qchain pull --help' for details"),
                           (["check", "full.qcow2", "--stric"], "did you mean --strict?"),
                           (["pull", "--frob"], "pull: unknown option --frob. Run 'qchain pull --help' for details")):
            with self.subTest(argv=argv):
                self.refuses(2, *argv, says=[says])

    def test_a_document_where_the_words_are_wrong(self) -> None:
        """One JSON document if --json is an option, none if it is a value or follows "--"."""
        for argv in (["--parnet", "X", "--json"], ["--json", "--requests", "many"], [self.uri, "--json"], ["--json", "--parent"],
                     ["--json", "-o", "x", self.uri, "again"]):
            with self.subTest(argv=argv):
                done = self.refuses(2, "pull", *argv)
                document = json.loads(done.out)
                self.assertEqual((document["schema"], document["exit_code"]), ("qchain.pull", 2))
                self.assertEqual(done.err, "".join(f"qchain: {error}\n" for error in document["errors"]))
        for argv in (["--frob", "--sign-key", "--json"], ["--frob", "--", "--json"]):
            with self.subTest(argv=argv):
                self.assertEqual(self.refuses(2, "pull", *argv, says=["--frob"]).out, "")

    def test_help(self) -> None:
        """On standard output, at most 100 columns wide, whatever other options are given."""
        for command in ("pull", "verify", "chaininfo", "check", "restore", "digest", "selftest"):
            with self.subTest(command=command):
                done = self.qchain(command, "--progress", "loud", "--help")
                self.assertTrue(done.out.startswith(f"Usage: qchain {command} "), done)
                self.assertIn("\n  --help ", done.out)
                self.assertLessEqual(max(map(len, done.out.splitlines())), 100)
                self.assertEqual(done.err, "")


if __name__ == "__main__":
    unittest.main()
