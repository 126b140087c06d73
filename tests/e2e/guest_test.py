"""What happens to a libvirt guest between two backups: the next pull is right, or refused.

The one thing that must never happen is exit 0 with wrong content. Whatever libvirt itself refuses needs no proof here.
"""

from __future__ import annotations

import os
import signal
import unittest
from typing import Any

from harness import M, Case

from guest import DISKS, Guest
from qemu_tools import FixtureError, wait_until

SIZE = 32 * M


class GuestTest(Case):
    """A guest with two disks, and a full image of each at check1: vda.check1.qcow2 and vdb.check1.qcow2."""

    def setUp(self) -> None:
        super().setUp()
        self.folder.chmod(0o755)
        self.guest = Guest.start(self.folder, SIZE)
        self.addCleanup(self.guest.stop)
        self.write("write -P 1 4M 3M", "write -P 2 20M 1M")
        self.begin("check1")
        self.pull_all("check1")
        self.guest.end()

    def write(self, *commands: str) -> None:
        for disk in DISKS:
            self.guest.io(disk, *commands)

    def begin(self, checkpoint: str, since: str | None = None) -> None:
        self.uris = self.guest.backup(checkpoint, since)
        for disk in DISKS:
            self.guest.reference(disk, self.path(f"{disk}.{checkpoint}.raw"))

    def pull_all(self, checkpoint: str, parent: str | None = None, since: str | None = None, expect: Any = 0) -> None:
        """Pulls both disks. What exits with 0 has to be right; what does not has to leave nothing behind."""
        for disk in DISKS:
            image = f"{disk}.{checkpoint}.qcow2"
            options = ["--parent", f"{disk}.{parent}.qcow2", "--since", since or parent] if parent else []
            done = self.qchain("pull", self.uris[disk], "-o", image, "--checkpoint", checkpoint, *options, expect=expect)
            if done.code:
                self.assert_says(done)
                self.assertFalse(list(self.folder.glob(f"{image}*")), done)
            else:
                self.prove(disk, checkpoint)
                self.qchain("verify", image, "--against", self.uris[disk])

    def prove(self, disk: str, checkpoint: str) -> None:
        self.assert_sound(f"{disk}.{checkpoint}.qcow2")
        self.assert_holds(f"{disk}.{checkpoint}.qcow2", f"{disk}.{checkpoint}.raw")

    def next_or_refused(self, checkpoint: str, since: str) -> bool:
        """An increment on the layer of `since`, unless libvirt refuses the job; then a new full image is right."""
        try:
            self.begin(checkpoint, since)
        except FixtureError:
            self.begin(checkpoint)
            self.pull_all(checkpoint)
            self.guest.end()
            return False
        self.pull_all(checkpoint, parent=since, expect=(0, 1, 2, 4, 6))
        self.guest.end()
        return True


class BetweenTwoBackups(GuestTest):

    def lie(self, disk: str, image: str, parent: str, since: str) -> None:
        """A bitmap that starts later than claimed: NBD shows only its name.

        Unchecked, the proof finds what is missing; with all that is said to be clean compared, the layer is right. What a
        sample finds is chance, and no test.
        """
        argv = ["pull", self.uris[disk], "-o", image, "--parent", parent, "--since", since, "--force", "--check-clean"]
        self.qchain(*argv, "none")
        self.qchain("verify", image, "--against", self.uris[disk], expect=1)
        self.qchain(*argv, "all", "--on-missed", "fail", expect=1)
        self.assert_says(self.qchain(*argv, "all"), "as clean that differ")
        self.qchain("verify", image, "--against", self.uris[disk])

    def test_nothing(self) -> None:
        """Increments and a differential, as they are meant: all of them succeed."""
        self.write("write -P 3 5M 1M", "write -z 20M 64k")
        self.begin("check2", "check1")
        self.pull_all("check2", "check1")
        self.guest.end()
        self.write("discard 6M 1M", "write -P 4 20M 4k")
        self.begin("check3", "check2")
        self.pull_all("check3", "check2")
        self.guest.end()
        self.begin("check4", "check1")
        self.pull_all("check4", "check1")
        self.guest.end()
        for checkpoint in ("check1", "check2", "check3", "check4"):
            for disk in DISKS:
                self.prove(disk, checkpoint)

    def test_a_snapshot_taken_and_committed(self) -> None:
        self.write("write -P 3 5M 64k")
        self.guest.snapshot()
        self.write("write -P 4 6M 64k", "write -z 20M 64k", "discard 4M 64k", "write -P 5 30M 64k")
        self.guest.commit()
        self.write("write -P 6 8M 64k")
        self.next_or_refused("check2", "check1")

    def test_a_snapshot_that_is_still_there(self) -> None:
        self.write("write -P 3 5M 64k")
        self.guest.snapshot()
        self.write("write -P 4 6M 64k", "write -z 20M 64k", "write -P 5 30M 64k")
        self.next_or_refused("check2", "check1")

    def test_a_backup_on_a_snapshot_that_is_committed_then(self) -> None:
        self.guest.snapshot()
        self.write("write -P 4 6M 64k", "write -z 20M 64k")
        incremental = self.next_or_refused("check2", "check1")
        self.write("write -P 5 7M 64k")
        self.guest.commit()
        self.write("write -P 6 8M 64k")
        self.next_or_refused("check3", "check2" if incremental else "check2")

    def test_two_snapshots_committed_at_once(self) -> None:
        self.guest.snapshot()
        self.write("write -P 4 6M 64k")
        self.guest.snapshot()
        self.write("write -P 5 6M 4k", "write -z 5M 128k")
        self.guest.commit()
        self.next_or_refused("check2", "check1")

    def test_the_parents_checkpoint_deleted(self) -> None:
        """The changes since check1 are lost: those since a later checkpoint do not match its layer."""
        self.write("write -P 3 5M 64k")
        self.begin("check2", "check1")
        self.guest.end()  # the layer of check2 was never pulled
        self.guest.delete_checkpoint("check1")
        self.write("write -P 4 6M 64k")
        self.assertRaises(FixtureError, self.guest.backup, "check3", "check1")
        self.begin("check3", "check2")
        self.pull_all("check3", parent="check1", since="check2", expect=1)
        self.guest.end()

    def test_a_checkpoint_in_the_middle_deleted(self) -> None:
        """Its changes are merged into the previous one: the changes since check1 are still right, but not since check2."""
        self.write("write -P 3 5M 64k")
        self.begin("check2", "check1")
        self.pull_all("check2", "check1")
        self.guest.end()
        self.write("write -P 4 6M 64k")
        self.guest.delete_checkpoint("check2")
        self.write("write -P 5 7M 64k")
        self.assertRaises(FixtureError, self.guest.backup, "check3", "check2")
        self.begin("check3", "check1")
        self.pull_all("check3", "check1")
        for disk in DISKS:
            for suffix in ("", ".manifest"):
                os.rename(self.path(f"{disk}.check3.qcow2{suffix}"), self.path(f"{disk}.keep{suffix}"))
        self.pull_all("check3", parent="check2", since="check1", expect=1)
        self.guest.end()

    def test_the_newest_checkpoint_deleted_and_made_again(self) -> None:
        """Two points in time of one name: the layer of the first must not pass for that of the second."""
        self.write("write -P 3 5M 64k")
        self.begin("check2", "check1")
        self.pull_all("check2", "check1")
        self.guest.end()
        self.guest.delete_checkpoint("check2")
        self.write("write -P 4 6M 64k")
        self.begin("check2", "check1")  # and not pulled: its name now stands for a later time
        self.guest.end()
        self.write("write -P 5 7M 64k")
        self.begin("check3", "check2")
        for disk in DISKS:
            image = f"{disk}.check3.qcow2"
            self.lie(disk, image, f"{disk}.check2.qcow2", "check2")
        self.guest.end()

    def test_a_job_aborted_and_restarted(self) -> None:
        self.write("write -P 3 5M 64k")
        self.begin("check2", "check1")
        self.write("write -P 4 6M 64k")  # while it runs
        self.guest.end()
        self.write("write -P 5 7M 64k")
        self.begin("check3", "check1")  # what counts is check1, of which the layer is there
        self.pull_all("check3", "check1")
        self.guest.end()
        self.write("write -P 6 8M 64k")
        self.begin("check4", "check3")
        self.pull_all("check4", "check3")
        self.guest.end()

    def test_a_job_aborted_and_the_next_one_counts_from_it(self) -> None:
        """The layer of check2 was never made: changes since check2 on the layer of check1 would lose what came between."""
        self.write("write -P 3 5M 64k")
        self.begin("check2", "check1")
        self.guest.end()
        self.write("write -P 4 6M 64k")
        self.begin("check3", "check2")
        self.pull_all("check3", parent="check1", since="check2", expect=1)
        for disk in DISKS:  # a wrong --since is found by verify
            self.lie(disk, f"{disk}.lie.qcow2", f"{disk}.check1.qcow2", "check1")
        self.guest.end()

    def test_a_disk_that_grew_and_shrank(self) -> None:
        for size in (40 * M, 24 * M, 32 * M):
            for disk in DISKS:
                self.guest.resize(disk, size)
            self.write("write -P 9 23M 64k")
        self.next_or_refused("check2", "check1")


class DuringAPull(GuestTest):

    def test_the_guest_writes(self) -> None:
        """Old data under way to the scratch, zeros over it: what is pulled is the point in time at which the job began."""
        self.write("write -P 3 0 16M")
        self.begin("check2", "check1")
        for disk in DISKS:
            process = self.start("pull", self.uris[disk], "-o", f"{disk}.check2.qcow2", "--parent", f"{disk}.check1.qcow2",
                                 "--since", "check1", "--requests", "1", "--connections", "1")
            for at in range(15, 0, -3):
                self.guest.io(disk, f"write -z {at}M 1M", f"discard {at - 1}M 1M", f"write -P 9 {at}M 64k")
            self.finish(process)
            self.prove(disk, "check2")
        self.guest.end()

    def test_the_job_is_aborted(self) -> None:
        self.write("write -P 3 0 32M")
        self.begin("check2", "check1")
        process = self.start_pull()
        self.guest.end()
        self.write("write -P 4 0 32M")
        self.right_or_refused(process)

    def test_the_guest_is_killed(self) -> None:
        self.write("write -P 3 0 32M")
        self.begin("check2", "check1")
        process = self.start_pull()
        assert self.guest.pid is not None
        os.kill(self.guest.pid, signal.SIGKILL)
        self.right_or_refused(process)

    def start_pull(self) -> Any:
        """Begins a slow pull of vda, and waits until the first megabytes are there.

        By then all connections are made: QEMU 7.2 hangs for good if its server is stopped while a client negotiates.
        """
        process = self.start("pull", self.uris["vda"], "-o", "vda.check2.qcow2", "--requests", "1", "--connections", "1")

        def under_way() -> bool:
            return process.poll() is not None or any(p.stat().st_blocks > 4096 for p in self.folder.glob("vda.check2.qcow2*"))

        wait_until(under_way, "the pull does not get on")
        return process

    def right_or_refused(self, process: Any) -> None:
        done = self.finish(process, (0, 3, 6), timeout=90)
        if done.code == 0:
            self.prove("vda", "check2")
        else:
            self.assertEqual([p.name for p in self.folder.glob("vda.check2*")], ["vda.check2.raw"])


if __name__ == "__main__":
    unittest.main()
