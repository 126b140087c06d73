"""What is written to: standard output, devices, links, disks in use, the chain's own storage."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import subprocess
import unittest
from collections.abc import Callable
from pathlib import Path

from field import PULLS, SIZE, DestinationCase, needs_loop, needs_root
from harness import K, M, Argument, nbdkit, qemu_nbd, sha256


class StandardOutput(DestinationCase):
    """W1, and T10: an output error after a file was published cannot undo it."""

    def test_restore_streams_the_disk(self) -> None:
        done = self.qchain("restore", "full.qcow2", "-")
        self.assertTrue(done.raw_out == self.disk().read_bytes(), f"{len(done.raw_out)} bytes, and not the disk")
        self.assert_says(done, "full.qcow2")
        self.assertFalse(self.path("-").exists(), "a file of that name")

    def test_into_a_file_and_a_pipe(self) -> None:
        self.shell('"$@" >out.raw', "restore", "full.qcow2", "-")
        self.assert_same_bytes("out.raw", self.disk())
        self.shell('set -o pipefail; "$@" | dd of=target bs=1M status=none', "restore", "full.qcow2", "-")
        self.assert_same_bytes("target", self.disk())
        self.shell('"$@" >>target', "restore", "full.qcow2", "-")
        self.assertEqual(self.path("target").read_bytes(), self.disk().read_bytes() * 2)

    def test_an_increment_and_no_manifest(self) -> None:
        self.write("write -P 2 1M 64k", f"write -P 3 {SIZE - 512} 512", "write -z 2M 1M")
        with self.serve(bitmap="c0") as server:
            self.increment(server.uri)
        self.flat("inc.qcow2", "inc.raw")
        done = self.qchain("restore", "inc.qcow2", "-")
        self.assertTrue(done.raw_out == self.path("inc.raw").read_bytes())
        for manifest in self.folder.glob("*.manifest"):
            manifest.unlink()
        done = self.qchain("restore", "inc.qcow2", "-", expect=4)
        self.assertTrue(done.raw_out == self.path("inc.raw").read_bytes())
        done = self.qchain("restore", "inc.qcow2", "-", "--no-verify")
        self.assertTrue(done.raw_out == self.path("inc.raw").read_bytes())

    def test_what_it_cannot_be(self) -> None:
        for options in (["--format", "qcow2"], ["--json"], ["--read-back"]):
            with self.subTest(options=options):
                done = self.refuses(2, "restore", "full.qcow2", "-", *options)
                self.assertNotIn(b"\0", done.raw_out, "none of the disk")

    def test_a_file_whose_name_is_a_dash(self) -> None:
        self.qchain("restore", "full.qcow2", "./-")
        self.assert_same_bytes("./-", self.disk())
        with self.serve() as server:
            self.qchain("pull", server.uri, "-o", "./-", "--force")
        self.assert_written("./-")

    def test_standard_output_without_room_or_reader(self) -> None:
        """Part of a disk is not a success."""
        done = self.shell('"$@" >/dev/full', "restore", "full.qcow2", "-", expect=3)
        self.assert_says(done, "No space left", "not complete")
        done = self.shell('set -o pipefail; "$@" | head -c 1 >/dev/null', "restore", "full.qcow2", "-", expect=(3, 141))
        with self.serve() as server:
            self.shell('"$@" >/dev/full', "pull", server.uri, "-o", "-", "--format", "raw", expect=3)
            for name, argv in (("pull", ["pull", server.uri, "-o", "-", "--format", "raw"]), ("restore", ["restore", "full.qcow2", "-"])):
                with self.subTest("closed", command=name):
                    self.assert_says(self.shell('"$@" >&-', *argv, expect=(2, 3)))

    def test_the_summary_cannot_be_written(self) -> None:
        with self.serve() as server:
            for redirection in (">/dev/full", ">&-"):
                for json in ([], ["--json"]):
                    for number, argv in enumerate(self.writers(server.uri, "out")):
                        with self.subTest(redirection=redirection, json=json, number=number):
                            self.clear()
                            done = self.shell(f'"$@" {redirection}', *argv, *json, expect=0)
                            self.assert_says(done, "standard output")
                            self.assert_written("out")


class NotARegularFile(DestinationCase):
    """W2: nothing but a regular file is ever replaced."""

    def make(self, kind: str) -> str:
        name = f"a-{kind}"
        path = self.path(name)
        match kind:
            case "fifo":
                os.mkfifo(path)
            case "socket":
                with socket.socket(socket.AF_UNIX) as server:
                    server.bind(str(path))
            case "folder":
                path.mkdir()
            case "null":
                os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
            case "dangling":
                path.symlink_to("nowhere")
            case "loop":
                path.symlink_to(name)
            case _:
                if not os.path.lexists(self.path(f"a-{kind.removeprefix('link-to-')}")):
                    self.make(kind.removeprefix("link-to-"))
                path.symlink_to(f"a-{kind.removeprefix('link-to-')}")
        return name

    def assert_all_refuse(self, *kinds: str) -> None:
        with self.serve() as server:
            for kind in kinds:
                name = self.make(kind)
                for force in ([], ["--force"]):
                    for argv in self.writers(server.uri, name):
                        with self.subTest(kind=kind, argv=argv[0], options=argv[3:], force=force):
                            expect = (2, 3) if kind == "loop" else 2
                            self.refuses_node(name, [*argv, *force], expect, says=[name])
                self.path(name).rmdir() if kind == "folder" else self.path(name).unlink()
            self.assertFalse(os.path.lexists(self.path("nowhere")))

    def test_nodes(self) -> None:
        self.assert_all_refuse("fifo", "socket", "folder")

    def test_links(self) -> None:
        self.assert_all_refuse("dangling", "loop", "link-to-fifo", "link-to-folder", "link-to-socket")

    @needs_root
    def test_character_devices(self) -> None:
        self.assert_all_refuse("null", "link-to-null")

    def test_a_link_to_standard_output(self) -> None:
        """Which is a pipe here."""
        self.path("link").symlink_to("/proc/self/fd/1")
        with self.serve() as server:
            for force in ([], ["--force"]):
                for argv in self.writers(server.uri, "link"):
                    with self.subTest(argv=argv, force=force):
                        self.refuses_node("link", [*argv, *force])

    def test_a_fifo_with_a_reader(self) -> None:
        """Another process may read from it: it is not written, and the pipe stays."""
        os.mkfifo(self.path("pipe"))
        reader = os.open(self.path("pipe"), os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        with self.serve() as server:
            for argv in self.writers(server.uri, "pipe"):
                self.refuses_node("pipe", [*argv, "--force"])

    @needs_loop
    def test_block_devices(self) -> None:
        """A pull does not write to them, nor does a layer go there; the node stays what it is."""
        with self.loop(self.filled("disk", SIZE)) as device, self.serve() as server:
            os.mknod(self.path("node"), stat.S_IFBLK | 0o660, device.stat().st_rdev)
            self.path("link").symlink_to(device)
            before = sha256(self.path("disk"))
            for name in ("node", "link"):
                for force in ([], ["--force"]):
                    for argv in (*(["pull", server.uri, "-o", name, *options] for options in PULLS),
                                 ["restore", "full.qcow2", name, "--format", "qcow2"]):
                        with self.subTest(name=name, argv=argv, force=force):
                            self.refuses_node(name, [*argv, *force], says=["block device" if argv[0] == "pull" else "files"])
            self.assertEqual(sha256(self.path("disk")), before)

    @needs_loop
    def test_restore_writes_to_a_block_device(self) -> None:
        with self.loop(self.filled("disk", SIZE)) as device:
            os.mknod(self.path("node"), stat.S_IFBLK | 0o660, device.stat().st_rdev)
            self.path("link").symlink_to("node")
            for name, force in (("node", []), ("node", ["--force"]), ("link", [])):
                with self.subTest(name=name, force=force):
                    self.filled("other", SIZE)
                    self.run_tool("dd", "if=other", f"of={device}", "bs=1M", "conv=fsync")
                    before = self.node(name)
                    self.qchain("restore", "full.qcow2", name, *force)
                    self.assertEqual(self.node(name), before)
                    self.run_tool("qemu-img", "compare", "-f", "raw", "-F", "raw", device, self.disk())


class Links(DestinationCase):
    """A link to a regular file is followed."""

    def test_a_link_to_a_file(self) -> None:
        self.path("store").mkdir()
        with self.serve() as server:
            for number, argv in enumerate(self.writers(server.uri, "link")):
                with self.subTest(argv=argv[3:]):
                    target = self.path(f"store/{number}")
                    target.write_bytes(b"old")
                    self.path("link").unlink(missing_ok=True)
                    self.path("middle").unlink(missing_ok=True)
                    self.path("middle").symlink_to(f"store/{number}")
                    self.path("link").symlink_to("middle")
                    self.refuses(2, *argv, says=["--force"])
                    self.qchain(*argv, "--force")
                    self.assertEqual((os.readlink(self.path("link")), os.readlink(self.path("middle"))), ("middle", f"store/{number}"))
                    self.assertTrue(stat.S_ISREG(target.lstat().st_mode))
                    self.assert_written("link")
                    self.assertEqual(list(self.path("store").glob("*.partial")), [])

    def test_another_name_of_the_file_keeps_the_old_content(self) -> None:
        with self.serve() as server:
            for argv in self.writers(server.uri, "out"):
                with self.subTest(argv=argv[3:]):
                    self.clear()
                    self.path("other").unlink(missing_ok=True)
                    self.path("out").write_bytes(b"old")
                    self.path("other").hardlink_to(self.path("out"))
                    self.qchain(*argv, "--force")
                    self.assertEqual(self.path("other").read_bytes(), b"old")
                    self.assert_written("out")


class InUse(DestinationCase):
    """W3 and W12: files that QEMU has open are not replaced or written to; a replaced file keeps its attributes."""

    def test_a_disk_that_qemu_writes_to(self) -> None:
        self.run_tool("qemu-img", "convert", "-O", "raw", "full.qcow2", "vm.raw")
        self.run_tool("qemu-img", "convert", "-O", "qcow2", "full.qcow2", "vm.qcow2")
        self.run_tool("qemu-img", "convert", "-O", "vmdk", "full.qcow2", "vm.vmdk")
        for name in ("vm.qcow2", "vm.raw", "vm.vmdk"):
            self.path(f"link-{name}").symlink_to(name)
            with self.serve() as server, qemu_nbd(self.folder, "-f", name[3:], self.path(name), writable=True):
                for out in (name, f"link-{name}"):
                    for argv in self.writers(server.uri, out):
                        with self.subTest(out=out, argv=argv):
                            self.refuses_node(out, [*argv, "--force"], 3, says=[name, "in use"])
            self.qchain("restore", "full.qcow2", name, "--force")

    @needs_loop
    def test_a_device_that_qemu_writes_to(self) -> None:
        with self.loop(self.filled("disk", SIZE)) as device:
            os.mknod(self.path("node"), stat.S_IFBLK | 0o660, device.stat().st_rdev)
            before = sha256(self.path("disk"))
            with qemu_nbd(self.folder, "-f", "raw", device, writable=True):
                for options in ([], ["--force"], ["--no-verify", "--read-back"], ["--zero-rest"]):
                    with self.subTest(options=options):
                        self.refuses(3, "restore", "full.qcow2", device, *options, says=[str(device), "in use"])
            self.run_tool("sync", device)
            self.assertEqual(sha256(self.path("disk")), before)
            self.qchain("restore", "full.qcow2", device)

    def attributes(self, path: Path) -> tuple[object, ...]:
        found = path.stat()
        return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, {name: os.getxattr(path, name) for name in os.listxattr(path)}

    def test_force_keeps_the_attributes(self) -> None:
        root = os.geteuid() == 0
        acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in (
            (1, 6, 0xffffffff), (2, 4, 1234), (4, 0, 0xffffffff), (16, 4, 0xffffffff), (32, 0, 0xffffffff)))
        with self.serve() as server:
            for argv in self.writers(server.uri, "out"):
                for mode in (0o600, 0o640, 0o666):
                    with self.subTest(argv=argv, mode=oct(mode)):
                        self.clear()
                        out = self.path("out")
                        out.write_bytes(b"old")
                        if root:
                            os.chown(out, 1234, 2345)
                        out.chmod(mode)
                        try:
                            os.setxattr(out, "user.backup", b"nightly\0")
                        except OSError:
                            self.skipTest("the file system of the temporary folder has no extended attributes")
                        if root:
                            os.setxattr(out, "trusted.label", b"x" * 200)
                        if mode == 0o640:
                            with contextlib.suppress(OSError):
                                os.setxattr(out, "system.posix_acl_access", acl)
                        before = self.attributes(out)
                        self.qchain(*argv, "--force")
                        self.assertEqual(self.attributes(out), before)
                        self.assert_written("out")

    def test_the_mode_of_a_new_file_is_the_user_s(self) -> None:
        with self.serve() as server:
            for number, argv in enumerate(self.writers(server.uri, "out")):
                for mask, mode in (("022", 0o644), ("077", 0o600), ("007", 0o660)):
                    with self.subTest(number=number, mask=mask):
                        self.clear()
                        self.shell(f'umask {mask}; "$@"', *argv)
                        for made in self.folder.glob("out*"):
                            self.assertEqual(oct(stat.S_IMODE(made.stat().st_mode)), oct(mode), made.name)


class LongerThanTheDisk(DestinationCase):
    """W4: data after the end of the disk is reported, or zeroed."""

    def assert_rest(self, target: Argument, read: Callable[[], bytes], length: int, *options: Argument) -> None:
        rest = length - SIZE
        done = self.qchain("restore", "full.qcow2", target, *options)
        self.assertIn(str(rest), done.out + done.err, "the bytes that are left, in the text")
        self.assertIn("--zero-rest", done.out + done.err)
        document = self.qchain("restore", "full.qcow2", target, "--json", *options).json
        self.assertEqual((document["rest_bytes"], document["exit_code"]), (rest, 0))
        found = read()
        self.assertTrue(found[:SIZE] == self.disk().read_bytes())
        self.assertTrue(found[SIZE:] == b"\xee" * rest, "the rest is left as it was")
        self.qchain("restore", "full.qcow2", target, "--zero-rest", *options)
        found = read()
        self.assertTrue(found[:SIZE] == self.disk().read_bytes())
        self.assertTrue(found[SIZE:] == bytes(rest), "the rest is zero")
        self.assertEqual(len(found), length)

    @needs_loop
    def test_devices(self) -> None:
        for length in (SIZE + 16 * M, SIZE + 512, SIZE + 64 * K + 512):
            for options in ([], ["--read-back"]):
                with self.subTest(length=length, options=options), self.loop(self.filled("disk", length)) as device:
                    self.assert_rest(device, device.read_bytes, length, *options)

    def test_exports(self) -> None:
        disk = self.path("disk")
        for length in (SIZE + 16 * M, SIZE + 512):
            servers = {"nbdkit": lambda: nbdkit(self.folder, "file", disk),
                       "without zeros": lambda: nbdkit(self.folder, "--filter=nozero", "file", disk),
                       "QEMU": lambda: qemu_nbd(self.folder, "-f", "raw", disk, writable=True)}
            for name, server in servers.items():
                with self.subTest(server=name, length=length):
                    self.filled("disk", length)
                    with server() as live:
                        self.assert_rest(live.uri, disk.read_bytes, length, "--read-back")

    def test_equal_lengths(self) -> None:
        with nbdkit(self.folder, "file", self.filled("disk", SIZE)) as live:
            for options in ([], ["--zero-rest"]):
                with self.subTest(options=options):
                    self.assertEqual(self.qchain("restore", "full.qcow2", live.uri, "--json", *options).json["rest_bytes"], 0)
                    self.assertNotIn("--zero-rest", self.qchain("restore", "full.qcow2", live.uri, *options).err)
            self.assert_same_bytes("disk", self.disk())


class ThinDevices(DestinationCase):
    """W11: the space of zeros is freed."""

    def allocated(self, device: Path) -> int:
        self.run_tool("sync", device)
        with self.path("disk").open("rb") as file:
            os.fsync(file.fileno())
        return self.path("disk").stat().st_blocks * 512

    @needs_loop
    def test_the_space_of_zeros_is_given_back(self) -> None:
        for options in ([], ["--read-back"]):
            with self.subTest(options=options), self.loop(self.filled("disk", SIZE)) as device:
                self.qchain("restore", "full.qcow2", device, *options)
                self.assertLess(self.allocated(device), 5 * M)
                self.assertTrue(device.read_bytes() == self.disk().read_bytes())

    @needs_loop
    def test_the_rest_too(self) -> None:
        with self.loop(self.filled("disk", SIZE + 16 * M)) as device:
            self.qchain("restore", "full.qcow2", device, "--zero-rest")
            self.assertLess(self.allocated(device), 5 * M)
            self.assertTrue(device.read_bytes() == self.disk().read_bytes().ljust(SIZE + 16 * M, b"\0"))

    @needs_loop
    def test_space_that_is_wanted(self) -> None:
        with self.loop(self.filled("disk", SIZE)) as device:
            self.qchain("restore", "full.qcow2", device, "--preallocate")
            self.assertGreaterEqual(self.allocated(device), SIZE)
            self.assertTrue(device.read_bytes() == self.disk().read_bytes())


class OwnLayers(DestinationCase):
    """W12: a chain is not restored over itself, under any name of its storage."""

    def setUp(self) -> None:
        super().setUp()
        # A layer that is longer than its disk, so that the disk has room where the layer is.
        self.image("dense.qcow2", f"write -P 7 0 {8 * M}", size=8 * M)
        with self.serve("dense.qcow2") as server:
            self.qchain("pull", server.uri, "-o", "layer.qcow2")

    def refuses_target(self, target: Argument, *storage: Path, image: Argument = "layer.qcow2", expect: int = 2) -> None:
        before = [sha256(path) for path in storage]
        for options in ([], ["--force"], ["--no-verify"], ["--zero-rest"]):
            with self.subTest(target=target, options=options):
                self.assert_says(self.qchain("restore", image, target, *options, expect=expect), "layer")
                self.run_tool("sync", *storage)
                self.assertEqual([sha256(path) for path in storage], before, "its storage was written to")

    @needs_loop
    def test_a_loop_device_on_a_layer(self) -> None:
        layer = self.path("layer.qcow2")
        with self.loop(layer) as device:
            self.refuses_target(device, layer)
            with self.loop(device) as second:
                self.refuses_target(second, layer)
        with self.loop(layer, "--offset", "512") as device:
            self.refuses_target(device, layer)

    @needs_loop
    def test_a_loop_device_on_a_lower_layer(self) -> None:
        self.add_bitmap("c0", "dense.qcow2")
        self.write("write -P 8 1M 64k", image="dense.qcow2")
        with self.serve("dense.qcow2", bitmap="c0") as server:
            self.qchain("pull", server.uri, "-o", "top.qcow2", "--parent", "layer.qcow2", "--bitmap", "c0")
        with self.loop(self.path("layer.qcow2")) as device:
            self.refuses_target(device, self.path("layer.qcow2"), image="top.qcow2")

    @needs_loop
    def test_another_node_of_the_layer_s_device(self) -> None:
        self.run_tool("truncate", "-s", "12M", "layer.qcow2")
        with self.loop(self.path("layer.qcow2")) as device:
            os.mknod(self.path("node"), stat.S_IFBLK | 0o660, device.stat().st_rdev)
            before = sha256(self.path("layer.qcow2"))
            for source, target in ((device, self.path("node")), (self.path("node"), device), (device, device)):
                done = self.qchain("restore", source, target, "--no-verify", "--backing-root", "/", expect=2)
                self.assert_says(done, "layer")
                self.run_tool("sync", device)
                self.assertEqual(sha256(self.path("layer.qcow2")), before)

    @needs_loop
    def test_a_mapped_device_on_a_layer(self) -> None:
        name = f"qc-{os.getpid()}"
        with self.loop(self.path("layer.qcow2")) as device:
            sectors = int(self.run_tool("blockdev", "--getsz", device))
            try:
                made = subprocess.run(["dmsetup", "create", name, "--table", f"0 {sectors} linear {device} 0"], capture_output=True)
            except FileNotFoundError:
                self.skipTest("needs dmsetup")
            if made.returncode != 0:
                self.skipTest(f"needs device-mapper: {made.stderr.decode(errors='replace').strip()}")
            try:
                self.run_tool("dmsetup", "mknodes", name)
                self.refuses_target(f"/dev/mapper/{name}", self.path("layer.qcow2"))
            finally:
                self.run_tool("dmsetup", "remove", "--retry", name)

    @needs_loop
    def test_the_device_that_holds_the_chain(self) -> None:
        """A file system on it is mounted, and has the layer."""
        self.run_tool("truncate", "-s", "48M", "fs.img")
        self.run_tool("mkfs.ext4", "-q", "-F", "fs.img")
        with self.loop(self.path("fs.img")) as device:
            script = """set -e; mkdir m; mount "$DEVICE" m; cp layer.qcow2 layer.qcow2.manifest m; sync -f m; set +e
                        sha256sum <m/layer.qcow2 >before; "$@"; code=$?; umount m; mount "$DEVICE" m || exit 99
                        sha256sum <m/layer.qcow2 | cmp - before || exit 98; umount m; exit $code"""
            done = self.finish(self.launch("restore", "m/layer.qcow2", device, through=["unshare", "--mount", "bash", "-c", script, "bash"],
                                           env={"DEVICE": str(device)}), (2, 3))
            self.assert_says(done, str(device))

    @needs_loop
    def test_a_read_only_device(self) -> None:
        """Nothing was written, so nothing is reported as incomplete."""
        with self.loop(self.filled("disk", SIZE), "--read-only") as device:
            done = self.refuses((2, 3), "restore", "full.qcow2", device, says=[str(device)])
            self.assertNotIn("not complete", done.err)


if __name__ == "__main__":
    unittest.main()
