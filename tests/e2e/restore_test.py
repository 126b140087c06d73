"""`qchain restore`: to files, onto block devices and to exports, and what is read back."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chain import LAYERS, SIZE, WRITES, ChainTest
from harness import K, M, Argument, Server, nbdkit, patch, qemu_nbd

from export import Export


class RestoreTest(ChainTest):

    def setUp(self) -> None:
        super().setUp()
        self.build()

    def old_content(self, size: int, name: str = "disk") -> Path:
        """A file without a zero byte."""
        self.path(name).write_bytes(os.urandom(size).replace(b"\0", b"\1"))
        return self.path(name)

    @contextlib.contextmanager
    def device(self, size: int) -> Iterator[Path]:
        """A block device over a file `disk` of other content."""
        device = self.run_tool("losetup", "--find", "--show", self.old_content(size)).strip()
        try:
            yield Path(device)
        finally:
            self.run_tool("losetup", "--detach", device)

    def scripted(self, size: int, **methods: str) -> contextlib.AbstractContextManager[Server]:
        """A server of shell scripts over a file `disk` of other content; `methods` replace what it does by itself."""
        disk = self.old_content(size)
        scripts = {"get_size": f"echo {size}", "flush": "true", "can_multi_conn": "true",
                   "pread": f"dd if={disk} skip=$4 count=$3 iflag=count_bytes,skip_bytes status=none",
                   "pwrite": f"dd of={disk} seek=$4 conv=notrunc oflag=seek_bytes status=none"} | methods
        return nbdkit(self.folder, "eval", *(f"{name}={script}" for name, script in scripts.items()))

    @contextlib.contextmanager
    def spoiling(self, name: str, offset: int) -> Iterator[None]:
        """Another process writes to the file all the time, as soon as it exists."""
        ended = threading.Event()

        def spoil() -> None:
            while not ended.is_set():
                with contextlib.suppress(FileNotFoundError), self.path(name).open("r+b") as file:
                    while not ended.is_set():
                        os.pwrite(file.fileno(), b"spoilt", offset)

        spoiler = threading.Thread(target=spoil)
        spoiler.start()
        try:
            yield
        finally:
            ended.set()
            spoiler.join()


class Restore(RestoreTest):

    def test_any_point_of_the_chain(self) -> None:
        for number in (1, 2, 3):
            document = self.qchain("restore", f"check{number}.qcow2", f"{number}.raw", "--no-verify", "--json").json
            self.assert_same_bytes(f"{number}.raw", f"check{number}.raw")
            self.assertEqual(document["data_bytes"] + document["zero_bytes"], SIZE)
        self.assertLess(self.path("3.raw").stat().st_blocks * 512, 3 * M, "a sparse file")

    def test_without_proof_is_incomplete(self) -> None:
        self.forget_manifests()
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

    def test_onto_a_device_whose_old_content_never_shows(self) -> None:
        with self.device(SIZE) as device:
            self.qchain("restore", "check3.qcow2", device, "--no-verify")
        self.assert_same_bytes("disk", "check3.raw")

    def test_onto_a_device_again_and_without_proof(self) -> None:
        self.forget_manifests()
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
        """Without manifests, what can be read is written, and what cannot is zeros, and listed."""
        self.break_check1()
        for option in ("--no-verify", "--salvage"):
            for format in ("raw", "qcow2"):
                with self.subTest(option=option, format=format):
                    done = self.qchain("restore", "check3.qcow2", "out", option, "--format", format, "--force", expect=4)
                    self.assertIn("guest [0x300000, 0x310000)", done.out)
                    self.assertIn("check1.qcow2", done.out)
                    self.assert_rescued("out", format)
            with self.device(SIZE) as device:
                document = self.qchain("restore", "check3.qcow2", device, option, "--json", expect=4).json
            self.assertEqual(document["losses"]["unread_bytes"], 64 * K)
            self.assertFalse(document["verified"])

    def assert_rescued(self, name: str, format: str) -> None:
        """All but the block that is broken, which is zeros."""
        disk = bytearray(self.path("check1.raw").read_bytes())
        disk[3 * M:3 * M + 64 * K] = bytes(64 * K)
        self.path("rescued.raw").write_bytes(disk)
        self.run_tool("qemu-img", "compare", "-f", format, "-F", "raw", name, "rescued.raw")

    def test_a_failed_restore_keeps_the_file_it_was_to_replace(self) -> None:
        self.run_tool("qemu-io", "-f", "qcow2", "-c", "write -P 9 3M 512", "check1.qcow2")
        self.path("out.raw").write_bytes(b"mine")
        self.refuses(1, "restore", "check3.qcow2", "out.raw", "--force", says=["check1.qcow2"])

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


class ToAnExport(RestoreTest):

    def restore_over(self, server: contextlib.AbstractContextManager[Server], *options: Argument,
                     image: str = "check3.qcow2") -> None:
        with server as live:
            document = self.qchain("restore", image, live.uri, "--json", *options).json
        self.assertEqual((document["exit_code"], document["destination"]), (0, live.uri))

    def test_old_content_never_shows(self) -> None:
        disk = self.path("disk")
        servers = {"nbdkit": lambda: nbdkit(self.folder, "file", disk),
                   "without zeros": lambda: nbdkit(self.folder, "--filter=nozero", "file", disk),
                   "one client": lambda: nbdkit(self.folder, "--filter=limit", "file", disk, "limit=1"),
                   "QEMU": lambda: qemu_nbd(self.folder, "-f", "raw", disk, writable=True),
                   "QEMU, one client": lambda: qemu_nbd(self.folder, "-e", "1", "-f", "raw", disk, writable=True)}
        for name, server in servers.items():
            for options in ((), ("--no-verify", "--read-back"), ("--connections", "1", "--read-back")):
                with self.subTest(server=name, options=options):
                    self.old_content(SIZE)
                    self.restore_over(server(), *options)
                    self.assert_same_bytes("disk", "check3.raw")

    def test_to_memory(self) -> None:
        """Of a server that has nothing but memory, filled with other content before."""
        with nbdkit(self.folder, "memory", SIZE) as live:
            self.run_tool("nbdcopy", self.old_content(SIZE), live.uri)
            self.qchain("restore", "check2.qcow2", live.uri, "--read-back")
            self.run_tool("nbdcopy", live.uri, self.path("out.raw"))
        self.assert_same_bytes("out.raw", "check2.raw")

    def test_into_a_qcow2_image(self) -> None:
        """Through QEMU, which then knows the zeros as zeros."""
        self.image("target.qcow2", f"write -P 7 0 {SIZE}", size=SIZE)
        self.restore_over(qemu_nbd(self.folder, "-f", "qcow2", self.path("target.qcow2"), writable=True), "--read-back")
        self.assert_sound("target.qcow2")
        self.assert_holds("target.qcow2", "check3.raw")

    def test_a_larger_one_keeps_what_is_behind(self) -> None:
        old = self.old_content(SIZE + M).read_bytes()
        self.restore_over(nbdkit(self.folder, "file", self.path("disk")), "--read-back")
        self.assertEqual(self.path("disk").read_bytes(), self.path("check3.raw").read_bytes() + old[SIZE:])

    def test_one_that_is_too_small(self) -> None:
        self.old_content(SIZE - 512)
        for server in (nbdkit(self.folder, "file", self.path("disk")), nbdkit(self.folder, "memory", SIZE - 1),
                       qemu_nbd(self.folder, "-f", "raw", self.path("disk"), writable=True)):
            with self.subTest(), server as live:
                self.refuses(2, "restore", "check3.qcow2", live.uri, says=[live.uri, str(SIZE)])

    def test_one_that_is_read_only(self) -> None:
        for server in (nbdkit(self.folder, "--readonly", "file", self.old_content(SIZE)),
                       qemu_nbd(self.folder, "-f", "raw", self.path("disk"))):
            with self.subTest(), server as live:
                self.refuses(2, "restore", "check3.qcow2", live.uri, says=[live.uri, "read-only"])

    def test_one_that_is_not_there(self) -> None:
        self.refuses(3, "restore", "check3.qcow2", f"nbd+unix:///?socket={self.path('nobody')}", says=["nobody"])
        with qemu_nbd(self.folder, "-f", "raw", self.old_content(SIZE), writable=True) as live:
            self.refuses(3, "restore", "check3.qcow2", live.uri.replace("vda", "vdb"), says=["vdb"])

    def test_disks_and_exports_of_any_size(self) -> None:
        for size in (1, 511, 512, 65536, 65537, M + 1, 2 * M - 77):
            with self.subTest(size=size):
                self.path("odd.raw").write_bytes(os.urandom(size))
                with nbdkit(self.folder, "file", self.path("odd.raw")) as live:
                    self.qchain("pull", live.uri, "-o", "odd.qcow2", "--force")
                self.old_content(size)
                self.restore_over(nbdkit(self.folder, "file", self.path("disk")), "--read-back", image="odd.qcow2")
                self.assert_same_bytes("disk", "odd.raw")
                filled = self.path("odd.raw").read_bytes().ljust((size + 511) // 512 * 512, b"\0")
                for server in (nbdkit(self.folder, "file", self.path("disk")),
                               nbdkit(self.folder, "--filter=blocksize-policy", "file", self.path("disk"), "blocksize-minimum=64K",
                                      "blocksize-preferred=64K", "blocksize-error-policy=error"),
                               qemu_nbd(self.folder, "-f", "raw", self.path("disk"), writable=True)):
                    old = self.old_content(4 * M).read_bytes()
                    self.restore_over(server, "--read-back", image="odd.qcow2")
                    self.assertEqual(self.path("disk").read_bytes(), filled + old[len(filled):])

    def test_with_a_key(self) -> None:
        self.path("keys.psk").write_text("alice:0123456789abcdef0123456789abcdef\n")
        with nbdkit(self.folder, "--tls=require", f"--tls-psk={self.path('keys.psk')}", "file", self.old_content(SIZE)) as live:
            uri = live.uri.replace("nbd+unix://", "nbds+unix://alice@")
            self.refuses(2, "restore", "check3.qcow2", uri, says=["--tls-psk-file"])
            self.qchain("restore", "check3.qcow2", uri, "--tls-psk-file", "keys.psk", "--read-back")
        self.assert_same_bytes("disk", "check3.raw")

    def test_a_server_that_dies(self) -> None:
        """In the middle: at the first write behind 3 MiB."""
        with self.scripted(SIZE, pwrite="if [ $4 -ge 3145728 ]; then rm -rf $tmpdir; kill -9 $PPID; fi; cat >/dev/null") as live:
            done = self.qchain("restore", "check3.qcow2", live.uri, expect=3)
            self.assert_says(done, live.uri, "lost", "not complete")

    def test_a_server_that_has_no_room(self) -> None:
        with nbdkit(self.folder, "--filter=error", "file", self.old_content(SIZE), "error-pwrite=ENOSPC", "error-pwrite-rate=100%") as live:
            done = self.qchain("restore", "check3.qcow2", live.uri, "--json", expect=3)
            self.assert_says(done, live.uri, "no space", "not complete")
            self.assertEqual(done.json["exit_code"], 3)

    def test_a_server_that_cannot_flush(self) -> None:
        with self.scripted(SIZE, flush="echo EIO >&2; exit 1") as live:
            done = self.qchain("restore", "check3.qcow2", live.uri, expect=3)
            self.assert_says(done, live.uri, "flush", "not complete")

    def test_a_chain_with_rot(self) -> None:
        """A block that is not what its manifest says is not written."""
        with nbdkit(self.folder, "file", self.old_content(SIZE)) as live:
            self.rot_check1()
            done = self.qchain("restore", "check3.qcow2", live.uri, expect=1)
            self.assert_says(done, "check1.qcow2", "manifest")

    def rot_check1(self) -> None:
        self.run_tool("qemu-io", "-f", "qcow2", "-c", "write -P 9 3M 512", "check1.qcow2")


class AsALayer(RestoreTest):
    """--format qcow2: a full layer, like a pulled one."""

    def restore(self, *options: Argument, image: str = "check3.qcow2", expect: int = 0) -> dict[str, Any]:
        return self.qchain("restore", image, "flat.qcow2", "--format", "qcow2", "--json", *options, expect=expect).json

    def test_any_point_of_the_chain(self) -> None:
        for number in (1, 2, 3):
            with self.subTest(number=number):
                document = self.restore("--force", image=f"check{number}.qcow2")
                self.assertEqual((document["format"], document["verified"]), ("qcow2", True))
                self.assert_sound("flat.qcow2")
                self.assert_holds("flat.qcow2", f"check{number}.raw")
                with self.live(f"check{number}.raw") as uri:
                    proven = self.qchain("verify", "flat.qcow2", "--against", uri, "--json").json
                self.assertEqual(proven["root"], document["root"])
                (layer,) = proven["layers"]
                self.assertEqual((layer["layer_id"], layer["checkpoint"]), (document["layer_id"], f"check{number}"))
        self.qchain("verify", "flat.qcow2")
        self.assertLess(self.path("flat.qcow2").stat().st_size, 3 * M, "zeros are left out")

    def test_the_next_increment_can_stand_on_it(self) -> None:
        self.restore()
        with Export.start(self.folder, SIZE) as export:
            export.io(*(write for writes in WRITES for write in writes))
            export.backup("check3")
            export.end()
            export.io("write -P 8 2M 64k")
            uri = export.backup("check4", "check3")
            export.reference(self.path("check4.raw"))
            self.qchain("pull", uri, "-o", "check4.qcow2", "--parent", "flat.qcow2", "--since", "check3", "--checkpoint", "check4")
            export.end()
        self.assert_holds("check4.qcow2", "check4.raw")
        self.qchain("verify", "check4.qcow2")

    def test_a_disk_of_any_size(self) -> None:
        for size in (1, 512, 65537, M + 77):
            with self.subTest(size=size):
                self.path("odd.raw").write_bytes(os.urandom(size))
                with nbdkit(self.folder, "file", self.path("odd.raw")) as live:
                    self.qchain("pull", live.uri, "-o", "odd.qcow2", "--force")
                    self.restore("--force", image="odd.qcow2")
                    self.qchain("verify", "flat.qcow2", "--against", live.uri)

    def test_without_manifests(self) -> None:
        self.forget_manifests()
        self.assertFalse(self.restore(expect=4)["verified"])
        self.qchain("verify", "flat.qcow2")
        self.restore("--no-verify", "--force")
        self.assert_holds("flat.qcow2", "check3.raw")

    def test_one_that_exists(self) -> None:
        self.path("flat.qcow2").write_bytes(b"mine")
        self.refuses(2, "restore", "check3.qcow2", "flat.qcow2", "--format", "qcow2", says=["--force"])
        self.restore("--force")
        self.qchain("verify", "flat.qcow2")

    def test_a_chain_with_rot(self) -> None:
        """Also where data has become zeros, which a full layer leaves out."""
        for change in ("write -P 9 3M 512", "write -z 3M 64k"):
            with self.subTest(change=change):
                self.run_tool("qemu-io", "-f", "qcow2", "-c", change, "check1.qcow2")
                self.refuses(1, "restore", "check3.qcow2", "flat.qcow2", "--format", "qcow2", says=["check1.qcow2", "[0x300000, "])

    def test_where_it_cannot_be(self) -> None:
        with self.device(SIZE) as device, nbdkit(self.folder, "memory", SIZE) as live:
            for target in (device, live.uri):
                self.refuses(2, "restore", "check3.qcow2", target, "--format", "qcow2", says=["files"])
        self.refuses(2, "restore", "check3.qcow2", "flat.qcow2", "--format", "qcow2", "--read-back", says=["verify"])
        self.refuses(2, "restore", "check3.qcow2", "flat.qcow2", "--format", "vmdk", says=["vmdk"])


class ReadBack(RestoreTest):
    """--read-back of targets that differ from what was written."""

    def assert_found(self, document: dict[str, Any], ranges: list[tuple[int, int]]) -> None:
        read_back = document["read_back"]
        self.assertEqual([(found["offset"], found["length"]) for found in read_back["differences"]], ranges)
        self.assertEqual(read_back["different_bytes"], sum(length for _, length in ranges))
        self.assertEqual((document["exit_code"], read_back["unread_bytes"], read_back["read_bytes"]), (1, 0, SIZE))

    def test_it_is_said(self) -> None:
        with self.device(SIZE) as device:
            plain = self.qchain("restore", "check3.qcow2", device)
            self.assertNotIn("read back", plain.out)
            self.assertIn("read back", self.qchain("restore", "check3.qcow2", device, "--read-back").out)
            self.assertIsNone(self.qchain("restore", "check3.qcow2", device, "--json").json["read_back"])
            document = self.qchain("restore", "check3.qcow2", device, "--read-back", "--json").json
        self.assertEqual(document["read_back"], {"read_bytes": SIZE, "different_bytes": 0, "unread_bytes": 0, "differences": [], "unread": []})
        self.assert_same_bytes("disk", "check3.raw")

    def test_a_file(self) -> None:
        self.assertIn("read back", self.qchain("restore", "check3.qcow2", "out.raw", "--read-back").out)
        self.assert_same_bytes("out.raw", "check3.raw")
        self.assertLess(self.path("out.raw").stat().st_blocks * 512, 3 * M, "a sparse file")

    def test_without_manifests_the_chain_is_read_again(self) -> None:
        self.forget_manifests()
        with self.device(SIZE) as device:
            self.qchain("restore", "check3.qcow2", device, "--read-back", expect=4)
            self.qchain("restore", "check3.qcow2", device, "--read-back", "--no-verify")
        self.assert_same_bytes("disk", "check3.raw")

    def test_a_larger_device(self) -> None:
        with self.device(SIZE + M) as device:
            self.qchain("restore", "check3.qcow2", device, "--read-back")
            self.qchain("restore", "check3.qcow2", device, "--read-back", "--no-verify")

    def assert_found_what_is_wrong(self, document: dict[str, Any]) -> None:
        """Exactly the wrong blocks of `disk` are reported."""
        disk, reference = self.path("disk").read_bytes(), self.path("check3.raw").read_bytes()
        wrong = {at for at in range(0, SIZE, 64 * K) if disk[at:at + 64 * K] != reference[at:at + 64 * K]}
        self.assertTrue(wrong)
        self.assertEqual({at for found in document["read_back"]["differences"]
                          for at in range(found["offset"], found["offset"] + found["length"], 64 * K)}, wrong)

    def test_a_write_that_is_dropped(self) -> None:
        drop = "if [ $4 -ge 1048576 ] && [ $4 -lt 1310720 ]; then cat >/dev/null; else dd of={} seek=$4 conv=notrunc oflag=seek_bytes; fi"
        with self.scripted(SIZE, pwrite=drop.format(self.path("disk"))) as live:
            self.qchain("restore", "check3.qcow2", live.uri)
            done = self.qchain("restore", "check3.qcow2", live.uri, "--read-back", expect=1)
            self.assertIn("guest [0x1", done.out)
            self.assertNotIn("restored from", done.out)
            self.assert_says(done, live.uri, "differ from what was written", "not complete")
            document = self.qchain("restore", "check3.qcow2", live.uri, "--read-back", "--json", expect=1).json
        self.assert_found_what_is_wrong(document)

    def test_a_write_that_is_altered(self) -> None:
        alter = "dd of={0} seek=$4 conv=notrunc oflag=seek_bytes status=none; printf x | dd of={0} seek=3200000 bs=1 conv=notrunc status=none"
        with self.scripted(SIZE, pwrite=alter.format(self.path("disk"))) as live:
            document = self.qchain("restore", "check3.qcow2", live.uri, "--read-back", "--json", expect=1).json
            self.assert_found(document, [(3200000 // (64 * K) * 64 * K, 64 * K)])
            # Compared with the chain itself, the sector is reported.
            document = self.qchain("restore", "check3.qcow2", live.uri, "--read-back", "--no-verify", "--json", expect=1).json
            self.assert_found(document, [(3200000 // 512 * 512, 512)])

    def test_zeros_that_are_dropped(self) -> None:
        """The server claims that it wrote them, and even that they are allocated."""
        with self.scripted(SIZE, can_zero="true", zero="true", can_extents="true", extents="echo $4 $3 hole,zero") as live:
            document = self.qchain("restore", "check3.qcow2", live.uri, "--read-back", "--json", expect=1).json
        self.assert_found_what_is_wrong(document)

    def test_what_cannot_be_read_again(self) -> None:
        refuse = "if [ $4 -le 2097152 ] && [ $(($4 + $3)) -gt 2097152 ]; then echo EIO bad >&2; exit 1; fi; "
        read = f"dd if={self.path('disk')} skip=$4 count=$3 iflag=count_bytes,skip_bytes status=none"
        with self.scripted(SIZE, pread=refuse + read) as live:
            done = self.qchain("restore", "check3.qcow2", live.uri, "--read-back", "--json", expect=3)
        self.assertEqual([(part["offset"], part["length"]) for part in done.json["read_back"]["unread"]], [(2 * M, 64 * K)])
        self.assert_says(done, "not read back", "not complete")

    def test_a_server_that_is_gone_by_then(self) -> None:
        with self.scripted(SIZE, pread="rm -rf $tmpdir; kill -9 $PPID") as live:
            done = self.qchain("restore", "check3.qcow2", live.uri, "--read-back", expect=3)
            self.assert_says(done, live.uri, "not complete")

    def test_a_device_is_read_past_its_cache(self) -> None:
        """The page cache of the device has what was written; the storage below does not."""
        with self.device(SIZE) as device, self.spoiling("disk", SIZE - 1000):
            document = self.qchain("restore", "check3.qcow2", device, "--read-back", "--json", expect=1).json
        self.assert_found(document, [(SIZE - 64 * K, 64 * K)])


if __name__ == "__main__":
    unittest.main()
