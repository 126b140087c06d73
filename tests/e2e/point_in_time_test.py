"""The point in time of a pull: the owner of the backup job is asked after the last read.

QEMU's server goes on when a job has ended, and serves the live disk. libvirt stops it later: milliseconds later, or many
seconds where other calls hold its job lock. Here the window is held open, and the guest writes while it is.
QCHAIN_SOAK=1 aborts fifty jobs at random moments instead of four.

QEMU 7.2 hangs for good where libvirt aborts a job while a client negotiates, or while one takes no replies: no job is
aborted here while a pull connects, nor by libvirt while a pull is stopped in the middle of its reads.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import stat
import subprocess
import unittest
from collections.abc import Callable
from pathlib import Path

from harness import QCHAIN, SOAK, M, Case, Done, end_process, qemu_nbd

from guest import Guest
from qemu_tools import FixtureError, wait_until

SIZE = 32 * M
SLOW = ("--requests", "1", "--connections", "1")
ABORTS = 50 if SOAK else 4


def written(pid: int, folder: Path) -> int:
    """The bytes that a process has put into the files below the folder that it holds open, whether they have a name or
    not."""
    total = 0
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                status = descriptor.stat()
                if stat.S_ISREG(status.st_mode) and os.readlink(descriptor).startswith(f"{folder}/"):
                    total += status.st_blocks * 512
    return total


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class OwnerTest(Case):
    """A guest whose disk vda is full of data, with the backup job `check1` running."""

    def setUp(self) -> None:
        super().setUp()
        self.folder.chmod(0o755)
        self.guest = Guest.start(self.folder, SIZE)
        self.addCleanup(lambda: self.guest.stop())
        self.guest.io("vda", f"write -P 1 0 {SIZE}")

    def begin(self, checkpoint: str = "check1") -> None:
        self.uri = self.guest.backup(checkpoint)["vda"]
        self.guest.reference("vda", self.path("reference.raw"))

    @property
    def libvirt(self) -> tuple[str, ...]:
        return "--libvirt", self.guest.domain, "--connect", self.guest.connect_uri

    def assert_nothing_left(self, done: Done) -> None:
        self.assertEqual([path.name for path in self.folder.glob("out*")], [], done)

    def assert_refused(self, process: subprocess.Popen[bytes], *says: str, expect: int = 6) -> Done:
        done = self.finish(process, expect)
        self.assert_says(done, *says)
        self.assert_nothing_left(done)
        return done

    def stopped_pull(self, *options: str) -> subprocess.Popen[bytes]:
        """A pull of vda that is stopped by SIGSTOP when it has written the first megabytes: all connections are made."""
        process = self.start("pull", self.uri, "-o", "out.qcow2", *SLOW, *options)
        wait_until(lambda: process.poll() is not None or written(process.pid, self.folder) > 2 * M,
                  "the pull does not get on")
        process.send_signal(signal.SIGSTOP)
        self.assertIsNone(process.poll(), "the pull ended before it could be stopped")
        return process

    def overwrite(self, pattern: int, verb: str = "write") -> None:
        """The guest writes all of vda, past libvirtd. With `aio_write` the writes go on after this has returned; QEMU 7.2
        can hang for good where it waits for one while a job is being ended."""
        self.guest.io_beside("vda", *(f"{verb} -q -P {pattern} {at} {2 * M}" for at in range(0, SIZE, 2 * M)))

    def cancel_in_qemu(self) -> None:
        """Ends the backup job of vda behind libvirtd's back, and returns when QEMU has concluded it."""
        self.cancel_at_once()
        self.wait_for_end_in_qemu()

    def cancel_at_once(self) -> None:
        with self.guest.monitor() as monitor:
            jobs = [job["id"] for job in monitor.execute("query-jobs") if job["id"].startswith("backup-vda-")]
            monitor.execute("block-job-cancel", {"device": jobs[0], "force": True})

    def wait_for_end_in_qemu(self) -> None:
        wait_until(lambda: self.guest.backup_job("vda") in ("concluded", "null", None), "QEMU does not end the job", 90)


class LibvirtOwner(OwnerTest):

    def test_a_job_that_runs_on(self) -> None:
        """Also where the guest writes meanwhile; the domain is named in all three ways."""
        self.begin()
        uuid, number = self.guest.virsh("domuuid").strip(), self.guest.virsh("domid").strip()
        for name in (self.guest.domain, uuid, number):
            process = self.stopped_pull("--libvirt", name, "--connect", self.guest.connect_uri, "--force", "--json")
            self.overwrite(2)
            process.send_signal(signal.SIGCONT)
            done = self.finish(process)
            self.assert_holds("out.qcow2", "reference.raw")
            self.assertIn(uuid, done.json["point_in_time"])
        for format_options in (("--format", "raw"), ("--format", "raw", "--range", "1M:2M")):
            self.qchain("pull", self.uri, "-o", "out.raw", *SLOW, *self.libvirt, *format_options, "--force")
        self.guest.end()

    def test_a_proof_against_a_job_that_ends(self) -> None:
        self.begin()
        self.qchain("pull", self.uri, "-o", "layer.qcow2")
        self.qchain("verify", "layer.qcow2", "--against", self.uri, *self.libvirt)
        self.qchain("digest", self.uri, *self.libvirt)
        self.guest.end()
        for command in (("verify", "layer.qcow2", "--against", self.uri), ("digest", self.uri)):
            self.refuses(6, *command, *self.libvirt, says=["no backup job is running"])

    def test_refused_before_anything_is_read(self) -> None:
        nowhere = "nbd+unix:///vda?socket=/nowhere"
        self.refuses(6, "pull", nowhere, "-o", "out.qcow2", *self.libvirt, says=["no backup job is running"])
        self.begin()
        other = self.uri.replace("/vda?", "/vdx?")
        self.refuses(2, "pull", other, "-o", "out.qcow2", *self.libvirt, says=['no export "vdx"', "vda, vdb"])
        self.refuses(2, "pull", nowhere, "-o", "out.qcow2", *self.libvirt, says=["socket", "/nbd.sock"])
        self.refuses(2, "pull", "nbd://localhost/vda", "-o", "out.qcow2", *self.libvirt, says=["socket", "/nbd.sock"])
        self.refuses(2, "pull", self.uri, "-o", "out.qcow2", "--libvirt", "nobody", "--connect", self.guest.connect_uri,
                     says=["nobody", "domain not found"])
        self.refuses(3, "pull", self.uri, "-o", "out.qcow2", "--libvirt", "nobody", "--connect",
                     "qemu+unix:///session?socket=/nowhere", says=["/nowhere", "cannot connect"])
        self.refuses(2, "pull", self.uri, "-o", "out.qcow2", "--connect", self.guest.connect_uri, says=["--libvirt"])
        self.refuses(2, "pull", self.uri, "-o", "out.qcow2", "--libvirt", "", says=["--libvirt", "empty"])
        self.refuses(2, "pull", self.uri, "-o", "out.qcow2", *self.libvirt, "--still-running", "true",
                     says=["--libvirt", "--still-running"])
        self.cancel_in_qemu()
        self.refuses(6, "pull", self.uri, "-o", "out.qcow2", *self.libvirt, says=["backup job"])

    def test_a_job_that_ends_while_libvirt_is_busy(self) -> None:
        """libvirtd does not know yet that the job has ended, and QEMU's server serves what the guest writes."""
        devices = self.removable_devices(4)
        self.begin()
        process = self.stopped_pull(*self.libvirt)
        self.hold_job_lock(devices)
        self.cancel_in_qemu()
        self.overwrite(2)
        process.send_signal(signal.SIGCONT)
        done = self.finish(process, (3, 6))  # 3: libvirt's turn came first, and the server is gone
        self.assert_nothing_left(done)

    def test_a_job_that_ends_between_the_last_read_and_the_question(self) -> None:
        self.begin()
        process = self.pull_that_asks(*self.libvirt)
        self.cancel_in_qemu()
        self.resume_libvirtd()
        self.assert_refused(process, "backup job", "vda", "nothing was published")

    def test_a_job_restarted_under_the_same_name(self) -> None:
        """QEMU's block job, its export and its socket have the same names again. The export was confirmed before."""
        self.begin()
        process = self.pull_that_asks(*self.libvirt)
        process.send_signal(signal.SIGSTOP)
        self.resume_libvirtd()
        self.guest.end()
        self.guest.delete_checkpoint("check1")
        self.guest.io("vda", "write -P 2 0 1M")
        self.begin("check1")
        process.send_signal(signal.SIGCONT)
        self.assert_refused(process, "not the one that was running at the start", "nothing was published")

    def test_a_guest_that_was_restarted(self) -> None:
        self.begin()
        process = self.pull_that_asks(*self.libvirt)
        process.send_signal(signal.SIGSTOP)
        self.resume_libvirtd()
        self.guest.virsh("destroy")
        self.guest.virsh("start", "--paused")
        process.send_signal(signal.SIGCONT)
        self.assert_refused(process, self.guest.domain, "nothing was published")

    def test_libvirt_that_does_not_answer(self) -> None:
        self.begin()
        process = self.pull_that_asks(*self.libvirt, "--owner-timeout", "1")
        self.assert_refused(process, "no answer within 1 s", "nothing was published")
        self.resume_libvirtd()

    def test_libvirt_that_is_gone(self) -> None:
        self.begin()
        process = self.stopped_pull(*self.libvirt, "--owner-timeout", "2")
        pid = self.guest.libvirtd_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(pid), "libvirtd does not die")
        process.send_signal(signal.SIGCONT)
        self.assert_refused(process, self.guest.connect_uri, "nothing was published")

    def test_libvirt_that_is_restarted(self) -> None:
        """The job runs on, and so does the proof."""
        self.begin()
        process = self.stopped_pull(*self.libvirt)
        self.guest.restart_libvirtd()
        process.send_signal(signal.SIGCONT)
        self.finish(process)
        self.assert_holds("out.qcow2", "reference.raw")

    def test_a_signal_while_libvirt_does_not_answer(self) -> None:
        self.begin()
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            process = self.pull_that_asks(*self.libvirt)
            process.send_signal(number)
            self.assert_refused(process, expect=code)
            self.resume_libvirtd()

    def test_aborts_at_random_moments(self) -> None:
        """While the guest overwrites all of its disk at once. Whatever is published is the point in time of its job."""
        chance = random.Random(20261128)
        outcomes = []
        for number in range(ABORTS):
            self.begin()
            end = chance.choice((self.cancel_at_once, lambda: self.beside("domjobabort")))
            outcomes.append(self.abort_at(int(chance.uniform(0.1, 1.1) * SIZE), end, 2 + number % 250))
        self.assertTrue(any(outcomes), f"no abort came in time: {outcomes}")

    # -- helpers ------------------------------------------------------------------------------------------------------

    def abort_at(self, threshold: int, end: Callable[[], object], pattern: int) -> int:
        """Ends the job once a pull has written so much, and overwrites the disk; returns the pull's exit code.

        It has one reader, so that all connections are made by then, and is not stopped: QEMU 7.2 can hang for good where
        a guest writes while a job is ended whose client takes no replies."""
        process = self.start("pull", self.uri, "-o", "out.qcow2", *SLOW, *self.libvirt)
        wait_until(lambda: process.poll() is not None or written(process.pid, self.folder) >= threshold,
                   "the pull does not get on")
        end()
        self.overwrite(pattern, "aio_write")
        done = self.finish(process, (0, 3, 6))
        if done.code == 0:
            self.assert_sound("out.qcow2")
            self.assert_holds("out.qcow2", "reference.raw")
            for path in self.folder.glob("out*"):
                path.unlink()
        self.assert_nothing_left(done)
        wait_until(lambda: "None" in self.guest.virsh("domjobinfo"), "the job does not end")
        self.guest.io_beside("vda", "aio_flush")
        self.guest.delete_checkpoint("check1")
        return done.code

    def beside(self, command: str, *args: str | Path) -> subprocess.Popen[bytes]:
        """Starts virsh COMMAND DOMAIN ARGS."""
        argv = self.guest.beside("virsh", "-q", "-c", self.guest.connect_uri, command, self.guest.domain, *args)
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(end_process, process)
        return process

    def removable_devices(self, count: int) -> list[Path]:
        """Plugs devices in that the guest, which has no system, never gives back: detaching one takes libvirt 5 s."""
        devices = []
        for index in range(count):
            devices.append(self.path(f"device{index}.xml"))
            devices[-1].write_text(f"<controller type='scsi' model='virtio-scsi' index='{index}'/>\n")
            self.guest.virsh("attach-device", devices[-1])
        return devices

    def hold_job_lock(self, devices: list[Path]) -> None:
        """Has libvirt's job lock of the guest held for 5 s by each device, one after the other; returns when it is held."""
        for device in devices:
            self.beside("detach-device", device)
        wait_until(lambda: "job" in self.guest.virsh("domcontrol"), "libvirt's job lock is not held")

    def pull_that_asks(self, *options: str) -> subprocess.Popen[bytes]:
        """A pull that has read and confirmed everything, and asks libvirtd, which is stopped."""
        process = self.stopped_pull(*options)
        pid = self.guest.libvirtd_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        self.addCleanup(self.resume_libvirtd)
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: process.poll() is not None or self.is_asking(process), "the pull does not ask", 60)
        self.assertIsNone(process.poll(), "the pull ended without asking")
        return process

    def is_asking(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether the pull waits for libvirt: the thread that does it has a name."""
        with contextlib.suppress(OSError):
            return any(task.read_text() == "libvirt-call\n" for task in Path(f"/proc/{process.pid}/task").glob("*/comm"))
        return False

    def resume_libvirtd(self) -> None:
        pid = self.guest.libvirtd_pid
        if pid is not None:
            os.kill(pid, signal.SIGCONT)


class CommandOwner(OwnerTest):
    """--still-running: a command that checks whether the job is running."""

    FIRST = "test -e asked || { : >asked; exit 0; }; "  # what follows is for the second time

    def test_true_and_false(self) -> None:
        self.begin()
        self.qchain("pull", self.uri, "-o", "out.qcow2", "--still-running", "echo it runs; true")
        self.assert_holds("out.qcow2", "reference.raw")
        for path in self.folder.glob("out*"):
            path.unlink()
        for command, says in (("echo the reason; exit 1", "exited with 1"), ("kill -9 $$", "killed by signal 9"),
                              ("no-such-program", "exited with 127")):
            self.refuses(6, "pull", "nbd+unix:///vda?socket=/nowhere", "-o", "out.qcow2", "--still-running", command,
                         says=["--still-running", says])
            process = self.start("pull", self.uri, "-o", "out.qcow2", "--still-running", self.FIRST + command)
            self.assert_refused(process, says)
            self.path("asked").unlink()
        self.guest.end()

    def test_verify_and_digest_ask_too(self) -> None:
        """Differences from a disk that has changed since are not findings."""
        self.begin()
        self.qchain("pull", self.uri, "-o", "out.qcow2")
        for command in (("verify", "out.qcow2", "--against", self.uri),
                        ("verify", "out.qcow2", "--against", self.uri, "--manifest-only"), ("digest", self.uri)):
            expect = 4 if "--manifest-only" in command else 0
            self.qchain(*command, "--still-running", "true", expect=expect)
            done = self.qchain(*command, "--still-running", self.FIRST + "exit 1", expect=6)
            self.assert_says(done, "exited with 1")
            self.path("asked").unlink()
        self.guest.end()
        with qemu_nbd(self.folder, "-f", "raw", self.full_of(3)) as live:
            self.qchain("verify", "out.qcow2", "--against", live.uri, "--still-running", "true", expect=1)
            done = self.qchain("verify", "out.qcow2", "--against", live.uri, "--json", "--still-running",
                               self.FIRST + "exit 1", expect=6)
            self.assertEqual(done.json["differences"], [])
        self.refuses(2, "verify", "out.qcow2", "--still-running", "true", says=["--against"])
        self.refuses(2, "digest", "out.qcow2", "--still-running", "true", says=["NBD"])

    def full_of(self, byte: int) -> Path:
        self.path("other.raw").write_bytes(bytes([byte]) * SIZE)
        return self.path("other.raw")

    def test_a_parent_that_ignores_sigchld(self) -> None:
        self.begin()
        pull = ("env", "--ignore-signal=CHLD", QCHAIN, "pull", self.uri, "-o", "out.qcow2", "--force", "--still-running")
        self.run_tool(*pull, "true")
        self.run_tool(*pull, "false", expect=6)
        self.guest.end()

    def test_its_words_go_to_standard_error(self) -> None:
        self.begin()
        done = self.qchain("pull", self.uri, "-o", "out.qcow2", "--json", "--still-running", "echo the reason; exit 0")
        self.assertEqual(done.err.count("the reason"), 2, "asked at the beginning and at the end")
        self.assertEqual(done.json["point_in_time"], "command")
        self.guest.end()

    def test_it_has_no_descriptor_of_ours(self) -> None:
        self.begin()
        listing = "cd /proc/self/fd && for fd in *; do test ! -e $fd || echo fd-$fd.; done"
        done = self.qchain("pull", self.uri, "-o", "out.qcow2", "--still-running", listing)
        self.assertEqual(set(done.err.split()) - {"fd-0.", "fd-1.", "fd-2."}, set(), done)
        self.guest.end()

    def test_a_job_that_ends_after_the_last_read(self) -> None:
        """The command is asked last: the job ends while it waits, and it reports that."""
        self.begin()
        process = self.held_pull("read answer <go; exit $answer")
        self.cancel_in_qemu()
        self.overwrite(2)
        self.path("go").write_text("1\n")
        self.assert_refused(process, "exited with 1")

    def test_a_command_that_takes_too_long(self) -> None:
        self.begin()
        process = self.held_pull("trap '' TERM; read answer <go", "--owner-timeout", "1")
        self.assert_refused(process, "did not finish within 1 s", "--owner-timeout")
        self.assert_group_is_gone()
        self.guest.end()

    def test_a_signal_ends_the_command_and_its_children(self) -> None:
        self.begin()
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            for command in ("read answer <go", "trap '' TERM; (trap '' TERM; read answer <go); read answer <go"):
                process = self.held_pull(command)
                process.send_signal(number)
                self.assert_refused(process, expect=code)
                self.assert_group_is_gone()
                self.path("asked").unlink()
        self.guest.end()

    def held_pull(self, command: str, *options: str) -> subprocess.Popen[bytes]:
        """A pull that has read everything and waits for its command, which can read from the FIFO `go`."""
        self.path("go").unlink(missing_ok=True)
        os.mkfifo(self.path("go"))
        process = self.start("pull", self.uri, "-o", "out.qcow2", *options, "--still-running",
                             f"{self.FIRST}echo $$ >pid; mv pid ready; {command}")
        wait_until(lambda: process.poll() is not None or self.path("ready").exists(), "the pull does not ask", 60)
        self.assertIsNone(process.poll(), "the pull ended without asking")
        self.group = int(self.path("ready").read_text())
        self.path("ready").unlink()
        return process

    def assert_group_is_gone(self) -> None:
        """A killed child is gone once its new parent has reaped it."""
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if int((path / "stat").read_text().rpartition(")")[2].split()[2]) == self.group:
                    self.assertFalse(alive(int(path.name)), f"{path} is still there")


if __name__ == "__main__":
    unittest.main()
