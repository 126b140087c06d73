"""What goes wrong in the middle of a pull: errors, full disks, signals, servers that die, jobs that end.

A clear message, the contract's exit code, and nothing left under the output's name.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import unittest
from collections.abc import Callable
from pathlib import Path

from harness import QCHAIN, K, M, Argument, Case, Server, environment, failing_server, nbdkit, qemu_nbd, sha256

from export import Export
from qemu_tools import nbd_uri, wait_until


def catches_signals(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process has handlers for SIGINT and SIGTERM, and not only the loader at work."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return all(caught >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM))


def is_connected(process: subprocess.Popen[bytes]) -> bool:
    descriptors = Path(f"/proc/{process.pid}/fd").glob("*")
    with contextlib.suppress(OSError):
        return catches_signals(process) and any(os.readlink(one).startswith("socket:") for one in descriptors)
    return False


def has_written(process: subprocess.Popen[bytes]) -> bool:
    """A part of a disk, to whatever standard output is."""
    counts = Path(f"/proc/{process.pid}/io").read_text()
    return int(counts.partition("wchar:")[2].split()[0]) > 64 * K


class Faults(Case):
    """Things that go wrong in the middle of a pull."""

    def test_a_read_error(self) -> None:
        for options in ([], ["--format", "raw"], ["--connections", "1", "--requests", "1"], ["--cluster-size", "4K"]):
            with self.subTest(options=options), failing_server(self.folder) as server:
                self.refuses(3, "pull", server.uri, "-o", "out.qcow2", *options, says=["0x100000", "0x100200"])

    def test_a_read_error_of_a_pipe_says_that_it_is_not_complete(self) -> None:
        with failing_server(self.folder) as server:
            done = self.refuses(3, "pull", server.uri, "-o", "-", "--format", "raw", says=["not complete"])
            self.assertLess(len(done.raw_out), 2 * M)

    def test_a_read_error_outside_of_the_range(self) -> None:
        with failing_server(self.folder) as server:
            self.qchain("pull", server.uri, "-o", "out.raw", "--format", "raw", "--range", "0:1M")
            self.qchain("pull", server.uri, "-o", "out2.raw", "--format", "raw", "--range", f"{M + 512}:512K")
            self.refuses(3, "pull", server.uri, "-o", "out3.raw", "--format", "raw", "--range", "0:1025K", says=["0x100000"])

    def test_a_disk_that_cannot_be_read_at_all(self) -> None:
        """It ends soon, however many sectors are unreadable."""
        with nbdkit(self.folder, "--filter=error", "pattern", "1G", "error-pread-rate=100%") as server:
            self.refuses(3, "pull", server.uri, "-o", "out.qcow2", says=["cannot read"], timeout=60)

    def test_a_read_error_of_qemu_which_drops_the_connection(self) -> None:
        with self.blkdebug(once="off") as server:
            for options in ([], ["--connections", "1"], ["--format", "raw"]):
                with self.subTest(options=options):
                    self.refuses(3, "pull", server.uri, "-o", "out.qcow2", *options, says=["0x100000"])

    def test_a_read_error_of_qemu_that_comes_once(self) -> None:
        """The lost ranges are read again."""
        with self.blkdebug(once="on") as server:
            self.qchain("pull", server.uri, "-o", "out.qcow2")
        self.assert_sound("out.qcow2")
        self.assert_holds("out.qcow2", "disk.raw")

    def blkdebug(self, once: str) -> contextlib.AbstractContextManager[Server]:
        """Data behind QEMU, with one sector that cannot be read at 1 MiB."""
        self.path("disk.raw").write_bytes(b"data" * 512 * K)
        error = {"event": "none", "iotype": "read", "errno": 5, "sector": M // 512, "once": once}
        node = {"driver": "blkdebug", "image.driver": "file", "image.filename": self.path("disk.raw"),
                **{f"inject-error.0.{key}": value for key, value in error.items()}}
        options = ",".join(f"file.{key}={value}" for key, value in node.items())
        return qemu_nbd(self.folder, "--image-opts", f"driver=raw,{options}")

    def test_block_status_that_fails(self) -> None:
        """What is not known to be zero is read, or the pull is refused: never a hole where there is data."""
        with nbdkit(self.folder, "--filter=error", "pattern", "1M", "error-extents-rate=100%") as server:
            done = self.qchain("pull", server.uri, "-o", "out.qcow2", expect=(0, 3), timeout=60)
            if done.code == 0:
                self.qchain("pull", server.uri, "-o", "reference.raw", "--format", "raw")
                with nbdkit(self.folder, "pattern", "1M") as plain:
                    self.qchain("verify", "out.qcow2", "--against", plain.uri)
        if done.code == 3:
            self.assertFalse(list(self.folder.glob("out*")))

    def test_errors_now_and_then(self) -> None:
        """Refused, or right."""
        with nbdkit(self.folder, "pattern", "8M") as server:
            self.qchain("pull", server.uri, "-o", "reference.raw", "--format", "raw")
        for seed in range(4):
            with self.subTest(seed=seed), nbdkit(self.folder, "--filter=error", "pattern", "8M", "error-pread-rate=20%") as server:
                done = self.qchain("pull", server.uri, "-o", f"{seed}.qcow2", "--requests", "4", expect=(0, 3), timeout=60)
                if done.code == 0:
                    self.assert_holds(f"{seed}.qcow2", "reference.raw")
                self.assertEqual(self.path(f"{seed}.qcow2").exists(), done.code == 0)
                self.assertFalse(list(self.folder.glob("*.partial")))

    # -- no space ---------------------------------------------------------------------------------------------------

    def test_a_full_disk(self) -> None:
        """If the output does not fit on its file system, nothing is left, and a parent on it is not changed."""
        self.image("plain.qcow2", "write -P 1 0 64k", size=8 * M)
        self.image("live.qcow2", "write -P 1 0 64k", size=8 * M)
        self.run_tool("qemu-img", "bitmap", "--add", "live.qcow2", "b0")
        self.run_tool("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 8M", "live.qcow2")
        with qemu_nbd(self.folder, "-B", "b0", "-f", "qcow2", self.path("live.qcow2")) as server:
            for options in ([], ["--format", "raw"], ["--parent", "plain.qcow2"], ["--connections", "4"], ["--cluster-size", "2M"]):
                for limit in (1 * M, 3 * M):
                    with self.subTest(options=options, limit=limit):
                        self.refuses_on_small_disk(limit, "pull", server.uri, "-o", "out.qcow2", *options)
                        self.refuses_on_small_disk(limit, "pull", server.uri, "-o", "out.qcow2", "--force", *options)
        self.run_tool("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 512k", "plain.qcow2")
        self.refuses_on_small_disk(1 * M, "restore", "plain.qcow2", "out.raw", "--no-verify", unless_code=0)
        self.refuses_on_small_disk(1 * M, "restore", "plain.qcow2", "out.qcow2", "--format", "qcow2", "--no-verify")

    def refuses_on_small_disk(self, size: int, *argv: Argument, unless_code: int | None = None) -> None:
        """Runs a command on a file system of its own, which holds plain.qcow2 and no more than `size` bytes."""
        mount = self.path("small")
        mount.mkdir(exist_ok=True)
        script = """set -e; mount -t tmpfs -o size="$1" none "$2"; cp "$3" "$2/plain.qcow2"; cd "$2"; shift 3; set +e
                    "$@"; code=$?; echo; ls -A; sha256sum plain.qcow2 | cut -d' ' -f1; exit $code"""
        apart = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
        argv = [*apart, "bash", "-c", script, "bash", str(size), mount, self.path("plain.qcow2"), QCHAIN, *argv]
        done = subprocess.run(list(map(str, argv)), env=environment(), cwd=self.folder, stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=60, text=True)
        if done.returncode == unless_code:
            return
        self.assertEqual(done.returncode, 3, done)
        self.assertIn("No space left", done.stderr)
        self.assertIn("free on its file system", done.stderr, "no warning before the pull")
        self.assertEqual(done.stdout.split(), ["plain.qcow2", sha256(self.path("plain.qcow2"))], done)

    def test_a_limit_of_the_length_of_files(self) -> None:
        """An output within the limit is written; of a larger one, nothing is left."""
        with nbdkit(self.folder, "pattern", "8M") as server:
            for mebibytes, expect in ((4, 3), (12, 0)):
                for options in ([], ["--format", "raw"], ["--compress", "zlib:1", "--cluster-size", "4K"]):
                    with self.subTest(mebibytes=mebibytes, options=options):
                        if expect != 0 and "--compress" in options:
                            continue  # it fits
                        limited = ["bash", "-c", f'ulimit -f {mebibytes * 1024}; exec "$@"', "bash", QCHAIN]
                        done = subprocess.run([*map(str, limited), "pull", server.uri, "-o", "out", "--force", *options],
                                              env=environment(), cwd=self.folder, stdin=subprocess.DEVNULL,
                                              capture_output=True, timeout=60, text=True)
                        self.assertEqual(done.returncode, expect, done)
                        if expect != 0:
                            self.assertIn("File too large", done.stderr)
                            self.assertEqual(list(self.folder.glob("out*")), [])
                        elif "raw" in options:
                            self.assertEqual(self.path("out").stat().st_size, 8 * M)
                        else:
                            self.assert_sound("out")
                        for left in self.folder.glob("out*"):
                            left.unlink()

    # -- interruptions ----------------------------------------------------------------------------------------------

    def slow_server(self, size: str = "64M", rate: str = "8M") -> contextlib.AbstractContextManager[Server]:
        """A minute of data; the rate is in bits."""
        return nbdkit(self.folder, "--filter=rate", "pattern", size, f"rate={rate}")

    def start_slowly(self, server: Server, *argv: Argument, **kwargs: object) -> subprocess.Popen[bytes]:
        """Starts a pull, and waits until it is reading."""
        process = self.start("pull", server.uri, *argv, **kwargs)
        to_file = any(str(word).startswith("out") for word in argv)
        self.wait_until_it(process, self.is_writing if to_file else has_written)
        return process

    def wait_until_it(self, process: subprocess.Popen[bytes], does: Callable[[subprocess.Popen[bytes]], bool]) -> None:
        wait_until(lambda: process.poll() is not None or does(process), f"{process.args} does not get to work")
        self.assertIsNone(process.poll(), "it has ended too early")

    def test_signals(self) -> None:
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            for options in ([], ["--format", "raw"], ["--json", "--progress", "json"], ["--connections", "1", "--requests", "1"]):
                with self.subTest(signal=number, options=options), self.slow_server() as server:
                    before = self.fingerprint()
                    process = self.start_slowly(server, "-o", "out.qcow2", *options)
                    process.send_signal(number)
                    done = self.finish(process, code, timeout=60)
                    self.assertEqual(self.fingerprint(), before, "nothing is left")
                    self.assertTrue(done.err.strip(), "it says so")
                    if "--json" in options:
                        self.assertEqual(done.json["exit_code"], code)

    def test_a_signal_keeps_the_output_it_was_to_replace(self) -> None:
        self.path("out.qcow2").write_bytes(b"mine")
        with self.slow_server() as server:
            before = self.fingerprint()
            process = self.start_slowly(server, "-o", "out.qcow2", "--force")
            process.send_signal(signal.SIGINT)
            self.finish(process, 130, timeout=20)
            self.assertEqual(self.fingerprint(), before)

    def test_a_signal_to_a_pipe(self) -> None:
        with self.slow_server() as server:
            process = self.start_slowly(server, "-o", "-", "--format", "raw", stdout=subprocess.DEVNULL)
            process.send_signal(signal.SIGTERM)
            self.assert_says(self.finish(process, 143, timeout=20), "not complete")

    def test_a_signal_to_the_other_commands(self) -> None:
        self.image("image.qcow2", "write -P 1 0 64M", size=64 * M)
        for argv in (["digest"], ["verify", "image.qcow2", "--against"]):
            # A server for each: nbdkit 1.32 may abort when its client vanishes.
            with self.subTest(command=argv[0]), self.slow_server() as server:
                process = self.start(*argv, server.uri)
                self.wait_until_it(process, is_connected)
                process.send_signal(signal.SIGINT)
                self.finish(process, 130, timeout=20)

    def test_a_signal_while_the_server_hangs(self) -> None:
        with self.slow_server() as server:
            process = self.start_slowly(server, "-o", "out.qcow2")
            server.process.send_signal(signal.SIGSTOP)
            process.send_signal(signal.SIGINT)
            self.finish(process, 130, timeout=10)
        self.assertFalse(list(self.folder.glob("out*")))

    def test_a_signal_without_a_reply(self) -> None:
        """A server that accepts the connection, and never sends anything."""
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(self.path("mute.sock")))
            server.listen()
            process = self.start("pull", nbd_uri("vda", self.path("mute.sock")), "-o", "out.qcow2")
            self.wait_until_it(process, is_connected)
            process.send_signal(signal.SIGTERM)
            self.finish(process, 143, timeout=10)
        self.assertFalse(list(self.folder.glob("out*")))

    def test_two_signals(self) -> None:
        with self.slow_server() as server:
            process = self.start_slowly(server, "-o", "out.qcow2")
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
            self.finish(process, (130, 143), timeout=20)

    def test_the_server_is_killed(self) -> None:
        for options in ([], ["--format", "raw"], ["--connections", "1"]):
            with self.subTest(options=options), self.slow_server() as server:
                process = self.start_slowly(server, "-o", "out.qcow2", *options)
                server.process.kill()
                self.assert_says(self.finish(process, (3, 6), timeout=90))
                self.assertFalse(list(self.folder.glob("out*")))

    def test_the_server_is_killed_during_a_verify(self) -> None:
        self.image("image.qcow2", "write -P 1 0 64M", size=64 * M)
        with self.slow_server() as server:
            process = self.start("verify", "image.qcow2", "--against", server.uri, "--json")
            self.wait_until_it(process, is_connected)
            server.process.kill()
            self.finish(process, (1, 3, 6), timeout=90)  # 1: what was compared differs

    def test_a_killed_pull_leaves_no_image(self) -> None:
        """SIGKILL cannot be caught: what is left is not under the output's name, and is not a qcow2 image."""
        with self.slow_server() as server:
            process = self.start_slowly(server, "-o", "out.qcow2")
            process.kill()
            process.wait()
            self.assertFalse(self.path("out.qcow2").exists())
            for left in self.folder.glob("out*"):
                self.assertNotEqual(left.read_bytes()[:4], b"QFI\xfb")
        with nbdkit(self.folder, "pattern", "1M") as server:
            self.qchain("pull", server.uri, "-o", "out.qcow2")
        self.assertEqual(sorted(path.name for path in self.folder.glob("out*")), ["out.qcow2", "out.qcow2.manifest"],
                         "the next one is not in the way")

    def test_two_pulls_to_one_name(self) -> None:
        """One at most succeeds, and what is published is whole."""
        with self.slow_server("3M", "24M") as server:
            pulls = [self.start("pull", server.uri, "-o", "out.qcow2") for _ in range(2)]
            codes = sorted(self.finish(pull, (0, 2, 3)).code for pull in pulls)
            self.assertEqual(codes[0], 0, codes)
            self.assertNotEqual(codes[1], 0, "the second would have replaced the first without --force")
            self.qchain("verify", "out.qcow2", "--against", server.uri)
        self.assert_sound("out.qcow2")


class EndOfTheJob(Case):
    """The backup job ends, or another takes its place, during a pull."""

    SIZE = 192 * M

    def setUp(self) -> None:
        super().setUp()
        self.export = Export.start(self.folder, self.SIZE)
        self.addCleanup(self.export.stop)
        self.fill(1)

    def fill(self, pattern: int) -> None:
        self.export.io(*(f"write -P {pattern + at // (32 * M)} {at} 32M" for at in range(0, self.SIZE, 32 * M)))

    def test_the_job_ends(self) -> None:
        self.interrupt(self.export.end)

    def test_another_job_of_equal_name_and_size(self) -> None:
        def change() -> None:
            self.export.end()
            self.fill(101)
            self.export.backup("check2")

        self.interrupt(change)

    def interrupt(self, change: Callable[[], None]) -> None:
        """Changes the live side in the middle of a pull: it is refused, and nothing is left."""
        uri = self.export.backup("check1")
        process = self.start("pull", uri, "-o", "out.qcow2", "--connections", "1", "--requests", "1")
        wait_until(lambda: process.poll() is not None or self.is_writing(process), "no output appears")
        change()
        self.assert_says(self.finish(process, (3, 6), timeout=90))
        self.assertFalse(list(self.folder.glob("out*")), "nothing is left")


if __name__ == "__main__":
    unittest.main()
