"""The process: standard descriptors that are closed, signals, exits and the one JSON document."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import unittest
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from field import SIZE, FieldCase, needs_loop
from gate import Gate, gate
from harness import SOAK, K, M, Argument, Done, nbdkit, patch, sha256, spread

# Each one and all; with QCHAIN_SOAK two of them too.
CLOSINGS = [" ".join(closed) for number in ((1, 2, 3) if SOAK else (1, 3)) for closed in itertools.combinations(("<&-", ">&-", "2>&-"), number)]


class ProcessCase(FieldCase):

    def clear(self, pattern: str = "out*") -> None:
        for left in self.folder.glob(pattern):
            left.unlink()

    @contextmanager
    def closed(self, closing: str, *argv: Argument) -> Iterator[None]:
        with self.subTest(closing=closing, argv=[str(word)[:40] for word in argv]):
            self.clear()
            before = self.fingerprint()
            self.shell(f'"$@" {closing}', *argv)
            after = self.fingerprint()
            self.assertEqual({name: hash for name, hash in after.items() if not name.startswith("out")}, before, "other files")
            yield


class ClosedDescriptors(ProcessCase):
    """T6 and V17: whichever descriptors are closed, no message gets into a file, a device or a connection."""

    def test_pull(self) -> None:
        """From a server that makes it warn, with progress."""
        with self.serve(writable=True) as server:
            self.flat("full.qcow2", "full.raw")
            for closing in CLOSINGS:
                for options in ([], ["--progress", "json"], ["--progress", "bar", "--json"]):
                    with self.closed(closing, "pull", server.uri, "-o", "out", "--checkpoint", "c0", *options):
                        self.assert_right("out", server.uri)
                        self.qchain("verify", "out")
                        self.assert_pure("out.manifest")
                    with self.closed(closing, "pull", server.uri, "-o", "out.raw", "--format", "raw", *options):
                        self.assert_same_bytes("out.raw", "full.raw")

    def test_increments(self) -> None:
        """With a missed change to report."""
        self.run_tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", "d.qcow2", "-F", "qcow2", "snap.qcow2")
        self.write("write -P 9 13M 64k", image="snap.qcow2")
        with self.serve("snap.qcow2", bitmap="c0") as server:
            for closing in CLOSINGS:
                with self.closed(closing, "pull", server.uri, "-o", "out", "--parent", "full.qcow2", "--since", "c0", "--progress", "json"):
                    self.assert_right("out", server.uri)

    def assert_pure(self, name: str) -> None:
        """The file has no text of a message in it."""
        content = self.path(name).read_bytes()
        for word in (b"warning", b'"progress"', b"can be written"):
            self.assertNotIn(word, content)

    def test_restore(self) -> None:
        self.flat("full.qcow2", "full.raw")
        for closing in CLOSINGS:
            for options in ([], ["--progress", "json"], ["--json", "--read-back"]):
                with self.closed(closing, "restore", "full.qcow2", "out.raw", *options):
                    self.assert_same_bytes("out.raw", "full.raw")
            with self.closed(closing, "restore", "full.qcow2", "out", "--format", "qcow2", "--progress", "json"):
                self.qchain("verify", "out")
                self.assert_sound("out")
                self.assert_holds("out", "full.raw")

    def test_restore_with_something_to_say(self) -> None:
        """Without a manifest it is not verified (4), with a message."""
        self.flat("full.qcow2", "full.raw")
        self.path("full.qcow2.manifest").unlink()
        for closing in CLOSINGS:
            with self.subTest(closing=closing):
                self.clear()
                self.shell(f'"$@" {closing}', "restore", "full.qcow2", "out.raw", "--progress", "json", expect=4)
                self.assert_same_bytes("out.raw", "full.raw")

    @needs_loop
    def test_restore_onto_a_device(self) -> None:
        self.flat("full.qcow2", "full.raw")
        with self.loop(self.filled("disk", SIZE)) as device:
            for closing in CLOSINGS:
                with self.subTest(closing=closing):
                    self.shell(f'"$@" {closing}', "restore", "full.qcow2", device, "--progress", "json")
                    self.run_tool("qemu-img", "compare", "-f", "raw", "-F", "raw", device, self.path("full.raw"))

    def test_restore_onto_an_export(self) -> None:
        self.flat("full.qcow2", "full.raw")
        with nbdkit(self.folder, "file", self.filled("disk", SIZE)) as server:
            for closing in CLOSINGS:
                with self.subTest(closing=closing):
                    self.filled("disk", SIZE)
                    self.shell(f'"$@" {closing}', "restore", "full.qcow2", server.uri, "--progress", "json")
                    self.assert_same_bytes("disk", "full.raw")

    def test_seal_and_record(self) -> None:
        for closing in CLOSINGS:
            with self.subTest(closing=closing):
                self.path("full.qcow2.manifest").unlink(missing_ok=True)
                self.path("full.qcow2.proofs").unlink(missing_ok=True)
                before = sha256(self.path("full.qcow2"))
                # 3: the verdict cannot be printed; the sealed manifest is complete.
                codes = (0, 3, 4) if ">&-" in closing.split() else (0, 4)
                self.shell(f'"$@" {closing}', "verify", "full.qcow2", "--seal", "--progress", "json", expect=codes)
                self.assertEqual(sha256(self.path("full.qcow2")), before)
                self.qchain("verify", "full.qcow2")
                self.assert_pure("full.qcow2.manifest")
                self.shell(f'"$@" {closing}', "verify", "full.qcow2", "--record", "--progress", "json", expect=codes)
                for line in self.path("full.qcow2.proofs").read_text().splitlines():
                    json.loads(line)

    def test_failures_keep_their_codes(self) -> None:
        self.path("out").write_bytes(b"old")
        with self.serve() as server:
            for closing in CLOSINGS:
                for expect, argv in ((2, ["pull", server.uri, "-o", "out"]), (3, ["verify", "nosuch.qcow2"]), (2, ["restore"]),
                                     (2, ["pull", server.uri, "-o", "out", "--json"])):
                    with self.subTest(closing=closing, argv=argv):
                        self.shell(f'"$@" {closing}', *argv, expect=expect)
                        self.assertEqual(self.path("out").read_bytes(), b"old")

    def test_nothing_of_ours_is_a_standard_descriptor(self) -> None:
        """Looked at from outside, in the middle of a pull."""
        for closing in CLOSINGS:
            with self.subTest(closing=closing), self.serve() as server, gate(self.folder, server, 2 * M) as held:
                self.clear()
                process = self.launch("pull", held.uri, "-o", "out", through=["bash", "-c", f'exec "$@" {closing}', "bash"])
                self.assertTrue(held.held.wait(60))
                for word, number in (("<&-", 0), (">&-", 1), ("2>&-", 2)):
                    if word in closing.split():
                        self.assertEqual(os.readlink(f"/proc/{process.pid}/fd/{number}"), "/dev/null")
                held.open()
                self.finish(process)


class Signals(ProcessCase):
    """T22: SIGHUP is like SIGTERM, unless it is ignored, as with nohup."""

    SIGNALS = ((signal.SIGHUP, 143), (signal.SIGTERM, 143), (signal.SIGINT, 130))

    @contextmanager
    def held_pull(self, *options: Argument, through: Sequence[Argument] = (), hangup: signal.Handlers = signal.SIG_DFL,
                  after: int = 2 * M) -> Iterator[tuple[Gate, subprocess.Popen[bytes]]]:
        """A pull in the middle of its data."""
        with self.serve() as server, gate(self.folder, server, after) as held:
            process = self.launch("pull", held.uri, "-o", "out", *options, through=through, hangup=hangup)
            self.assertTrue(held.held.wait(60), "the pull has ended before it was half done")
            yield held, process

    def test_an_interrupted_pull_leaves_nothing(self) -> None:
        cases = itertools.product(self.SIGNALS, ([], ["--format", "raw"], ["--json", "--progress", "json"]))
        for (number, code), options in spread(cases, 6):
            with self.subTest(signal=number.name, options=options):
                before = self.fingerprint()
                with self.held_pull(*options) as (_, process):
                    process.send_signal(number)
                    done = self.finish(process, code, timeout=30)
                self.assertEqual(self.fingerprint(), before)
                self.assert_says(done)
                if "--json" in options:
                    self.assertEqual(done.json["exit_code"], code)

    def test_what_was_to_be_replaced_stays(self) -> None:
        self.path("out").write_bytes(b"old")
        for number, code in self.SIGNALS:
            with self.subTest(signal=number.name):
                before = self.fingerprint()
                with self.held_pull("--force") as (_, process):
                    process.send_signal(number)
                    self.finish(process, code, timeout=30)
                self.assertEqual(self.fingerprint(), before)

    def test_a_hangup_that_is_ignored(self) -> None:
        for through, hangup in ((["nohup"], signal.SIG_DFL), ([], signal.SIG_IGN), (["bash", "-c", 'trap "" HUP; exec "$@"', "bash"], signal.SIG_DFL)):
            with self.subTest(through=through):
                self.clear()
                with self.held_pull(through=through, hangup=hangup) as (held, process):
                    for _ in range(3):
                        process.send_signal(signal.SIGHUP)
                    self.assertIsNone(process.poll())
                    held.open()
                    self.finish(process)
                self.qchain("verify", "out")

    def test_the_others_count_under_nohup(self) -> None:
        with self.held_pull(through=["nohup"]) as (_, process):
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGTERM)
            self.finish(process, 143, timeout=30)
        self.assert_absent("out")

    def test_while_the_server_is_silent_from_the_start(self) -> None:
        """Before the first answer: negotiation hangs."""
        for number, code in self.SIGNALS:
            with self.subTest(signal=number.name), self.held_pull(after=0) as (_, process):
                process.send_signal(number)
                self.finish(process, code, timeout=30)
            self.assert_absent("out")

    def test_a_verify_and_a_seal(self) -> None:
        for number, code in self.SIGNALS:
            with self.subTest(signal=number.name), self.serve() as server, gate(self.folder, server, 2 * M) as held:
                before = self.fingerprint()
                process = self.launch("verify", "full.qcow2", "--against", held.uri, "--no-extents", "--json")
                self.assertTrue(held.held.wait(60))
                process.send_signal(number)
                done = self.finish(process, code, timeout=30)
                self.assertEqual((done.json["exit_code"], self.fingerprint()), (code, before))

    def test_a_restore_to_an_export(self) -> None:
        """Stopped when the server has answered so many writes; the content of an export is reported as not complete."""
        for number, code in self.SIGNALS:
            with self.subTest(signal=number.name), nbdkit(self.folder, "file", self.filled("disk", SIZE)) as server, \
                    gate(self.folder, server, 4 * K) as held:
                process = self.launch("restore", "full.qcow2", held.uri, "--read-back", "--json")
                self.assertTrue(held.held.wait(60))
                process.send_signal(number)
                done = self.finish(process, code, timeout=30)
                self.assertEqual(done.json["exit_code"], code)
                self.assert_says(done, "not complete")

    def test_a_restore_to_a_pipe_without_a_reader(self) -> None:
        for number, code in self.SIGNALS:
            with self.subTest(signal=number.name):
                read, write = os.pipe()
                try:
                    process = self.launch("restore", "full.qcow2", "-", stdout=write)
                    self.assertTrue(os.read(read, 1), "it has begun")
                    process.send_signal(number)
                    self.assert_says(self.finish(process, code, timeout=30), "not complete")
                finally:
                    os.close(read)
                    os.close(write)


class Documents(ProcessCase):
    """With --json there is exactly one document, whatever happens, and its exit_code is the exit."""

    def assert_document(self, expect: int | Sequence[int], *argv: Argument) -> Done:
        with self.subTest(argv=[str(word)[:60] for word in argv]):
            done = self.qchain(*argv, "--json", expect=expect)
            try:
                document = done.json
            except ValueError as error:
                self.fail(f"not one JSON document: {error}: {done}")
            self.assertEqual(document["exit_code"], done.code, done)
            return done

    def test_usage(self) -> None:
        self.path("here").write_bytes(b"old")
        with self.serve() as server:
            for argv in (["pull"], ["pull", server.uri], ["pull", server.uri, "-o", "here"], ["pull", server.uri, "-o", "out", "--nonsense"],
                         ["pull", server.uri, "-o", "out", "--format", "vmdk"], ["pull", server.uri, "-o", "out", "--cluster-size", "3K"],
                         ["pull", server.uri, "-o", "out", "--connections", "99"], ["pull", server.uri, "-o", "out", "--check-clean", "2"],
                         ["pull", server.uri, "-o", "-", "--format", "raw"], ["pull", "nonsense", "-o", "out"],
                         ["pull", server.uri, "-o", "out", "--checkpoint", b"\xff"], ["pull", server.uri, "-o", "out", "--sign-key", "full.qcow2"],
                         ["restore"], ["restore", "full.qcow2"], ["restore", "full.qcow2", "here"], ["restore", "full.qcow2", "-"],
                         ["restore", "full.qcow2", "full.qcow2", "--force"], ["restore", "full.qcow2", "out", "x"], ["verify"],
                         ["verify", "full.qcow2", "--nonsense"], ["verify", "full.qcow2", "--sample", "9/7"],
                         ["digest"], ["check"], ["chaininfo"]):
                self.assert_document((2, 3, 5) if "--sign-key" in argv else 2, *argv)
        self.assert_absent("out")

    def test_what_is_not_there(self) -> None:
        gone = f"nbd+unix:///vda?socket={self.path('nobody')}"
        for argv in (["pull", gone, "-o", "out"], ["verify", "nosuch"], ["verify", "full.qcow2", "--against", gone], ["restore", "nosuch", "out"],
                     ["restore", "full.qcow2", gone], ["digest", "nosuch"], ["digest", gone], ["check", "nosuch"], ["chaininfo", "nosuch"]):
            self.assert_document(3, *argv)
        with self.serve() as server:
            self.assert_document((2, 3), "pull", server.uri.replace("vda", "vdz"), "-o", "out")
            self.assert_document((2, 3), "pull", server.uri, "-o", "nosuch/out")
            self.assert_document((2, 3), "pull", server.uri, "-o", "out", "--parent", "nosuch", "--since", "c0")

    def test_corruption(self) -> None:
        self.path("text").write_text("no image\n" * 1000)
        for argv in (["verify", "text"], ["restore", "text", "out"], ["chaininfo", "text"], ["check", "text"]):
            self.assert_document((1, 2, 3, 4), *argv)
        self.run_tool("qemu-io", "-f", "qcow2", "-c", "write -P 9 3M 512", "full.qcow2")
        for argv in (["verify", "full.qcow2"], ["restore", "full.qcow2", "out"], ["restore", "full.qcow2", "out", "--format", "qcow2"]):
            self.assert_document(1, *argv)
        patch(self.path("full.qcow2.manifest"), 100, b"\xff" * 8)
        self.assert_document((1, 5), "verify", "full.qcow2")
        patch(self.path("full.qcow2"), 0, b"XXXX")
        self.assert_document((1, 2, 3, 5), "verify", "full.qcow2")
        self.assert_absent("out")

    def test_success(self) -> None:
        self.write("write -P 2 1M 64k")
        with self.serve(bitmap="c0") as server:
            for number, argv in enumerate((["pull", server.uri, "-o", "inc.qcow2", "--parent", "full.qcow2", "--since", "c0"],
                                           ["pull", server.uri, "-o", "raw", "--format", "raw"], ["verify", "inc.qcow2"],
                                           ["verify", "inc.qcow2", "--against", server.uri], ["restore", "inc.qcow2", "r"],
                                           ["restore", "inc.qcow2", "q", "--format", "qcow2"], ["check", "inc.qcow2"],
                                           ["digest", "inc.qcow2"], ["chaininfo", "inc.qcow2"], ["chaininfo", "inc.qcow2", "--map"])):
                self.assert_document(0, *argv, *(["--progress", "json"] if number < 6 and number % 2 else []))

    def test_a_document_that_cannot_be_written(self) -> None:
        """A failure keeps its code."""
        self.path("here").write_bytes(b"old")
        for redirection in (">/dev/full", ">&-"):
            with self.subTest(redirection=redirection):
                self.shell(f'"$@" {redirection}', "restore", "full.qcow2", "here", "--json", expect=2)
                self.shell(f'"$@" {redirection}', "verify", "nosuch", "--json", expect=3)
                # The result could not be printed.
                self.shell(f'"$@" {redirection}', "verify", "full.qcow2", "--json", expect=3)
                self.shell(f'"$@" {redirection}', "chaininfo", "full.qcow2", expect=3)


class Descriptors(ProcessCase):
    """Few descriptors: an error, and never half a result."""

    def test_few_descriptors(self) -> None:
        with self.serve() as server:
            for limit in spread(range(4, 40, 3), 7):
                with self.subTest(limit=limit):
                    self.clear()
                    done = self.shell(f'ulimit -n {limit}; exec "$@"', "pull", server.uri, "-o", "out", expect=(0, 2, 3, 126, 127))
                    if done.code == 0:
                        self.assert_right("out", server.uri)
                    else:
                        self.assert_absent("out")


if __name__ == "__main__":
    unittest.main()
