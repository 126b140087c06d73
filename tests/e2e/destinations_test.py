"""What is written to: standard output, devices, links, disks in use, names beside the output, file systems that lack something."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import struct
import subprocess
import unittest
from collections.abc import Callable, Sequence
from pathlib import Path

from field import NO_LINKS, SIZE, FieldCase, faulty, needs_loop, needs_root
from gate import gate
from harness import K, M, Argument, nbdkit, qemu_nbd, sha256

from qemu_tools import wait_until

PULLS = ([], ["--format", "raw"])
RESTORES = ([], ["--format", "qcow2"])


class Destinations(FieldCase):

    def writers(self, uri: str, out: Argument) -> list[list[Argument]]:
        """Every command that writes a disk to a name, in both formats."""
        return [["pull", uri, "-o", out, *options] for options in PULLS] + \
               [["restore", "full.qcow2", out, *options] for options in RESTORES]

    def refuses_node(self, name: str, argv: Sequence[Argument], expect: int | Sequence[int] = 2, says: Sequence[str] = ()) -> None:
        """Refused in a word about the name; it is what it was, and so is everything beside it."""
        node, names, content = self.node(name), self.names(), self.fingerprint()
        self.assert_says(self.qchain(*argv, expect=expect, timeout=30), *says)
        self.assertEqual((self.node(name), self.names(), self.fingerprint()), (node, names, content), argv)

    def clear(self, pattern: str = "out*") -> None:
        for left in self.folder.glob(pattern):
            if left.is_dir() and not left.is_symlink():
                left.rmdir()
            else:
                left.unlink()

    def assert_written(self, name: str) -> None:
        """The name leads to the disk, in whichever format."""
        with self.path(name).open("rb") as file:
            is_qcow2 = file.read(4) == b"QFI\xfb"
        if is_qcow2:
            self.qchain("verify", name)
        self.run_tool("qemu-img", "compare", "-f", "qcow2" if is_qcow2 else "raw", "-F", "raw", self.path(name), self.disk())


class StandardOutput(Destinations):
    """W1, and T10: what is said once a file is published cannot undo it."""

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
        """Part of a disk is no success."""
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


class NotARegularFile(Destinations):
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
                path.symlink_to(self.make(kind.removeprefix("link-to-")))
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
        """Somebody may wait for the disk there: it is not written, and the pipe stays."""
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
                            self.refuses_node(name, [*argv, *force], says=["restore" if argv[0] == "pull" else "files"])
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


class Links(Destinations):
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


class InUse(Destinations):
    """W3 and W12: what QEMU holds is not replaced or written to, and what is replaced keeps its attributes."""

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


class LongerThanTheDisk(Destinations):
    """W4: what lies behind the end of the disk is told, or zeroed."""

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
        for length in (80 * M, SIZE + 512, SIZE + 64 * K + 512):
            for options in ([], ["--read-back"]):
                with self.subTest(length=length, options=options), self.loop(self.filled("disk", length)) as device:
                    self.assert_rest(device, device.read_bytes, length, *options)

    def test_exports(self) -> None:
        disk = self.path("disk")
        for length in (80 * M, SIZE + 512):
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


class ThinDevices(Destinations):
    """W11: the space of zeros is given back."""

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
        with self.loop(self.filled("disk", 80 * M)) as device:
            self.qchain("restore", "full.qcow2", device, "--zero-rest")
            self.assertLess(self.allocated(device), 5 * M)
            self.assertTrue(device.read_bytes() == self.disk().read_bytes().ljust(80 * M, b"\0"))

    @needs_loop
    def test_space_that_is_wanted(self) -> None:
        with self.loop(self.filled("disk", SIZE)) as device:
            self.qchain("restore", "full.qcow2", device, "--preallocate")
            self.assertGreaterEqual(self.allocated(device), SIZE)
            self.assertTrue(device.read_bytes() == self.disk().read_bytes())


class OwnLayers(Destinations):
    """W12: a chain is not restored over itself, whatever name its storage goes by."""

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
    def test_a_loop_device_on_a_layer_beneath(self) -> None:
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
        """A file system on it is mounted, and the layer lies there."""
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
        """Nothing was written, so nothing is said to be incomplete."""
        with self.loop(self.filled("disk", SIZE), "--read-only") as device:
            done = self.refuses((2, 3), "restore", "full.qcow2", device, says=[str(device)])
            self.assertNotIn("not complete", done.err)


class NamesBeside(Destinations):
    """W8, T8, T9: every name that is written or removed is looked at first."""

    def test_a_manifest_whose_image_is_lost(self) -> None:
        manifest = self.path("c1.manifest")
        with self.serve() as server:
            writers = self.writers(server.uri, "c1") + [["pull", server.uri, "-o", "c1", "--digest", "none"]]
            for argv in writers:
                with self.subTest(argv=argv):
                    shutil.copy(self.path("full.qcow2.manifest"), manifest)
                    self.refuses(2, *argv, says=["c1.manifest"])

    def test_a_manifest_that_is_none(self) -> None:
        self.path("precious").write_bytes(b"precious")
        kinds: dict[str, Callable[[Path], object]] = {
            "text": lambda path: path.write_text("notes of mine\n"), "empty": lambda path: path.touch(),
            "an image": lambda path: shutil.copy(self.path("full.qcow2"), path), "folder": lambda path: path.mkdir(),
            "fifo": os.mkfifo, "link": lambda path: path.symlink_to("precious"), "dangling": lambda path: path.symlink_to("nowhere")}
        with self.serve() as server:
            for kind, make in kinds.items():
                for argv in self.writers(server.uri, "out"):
                    for force in ([], ["--force"]):
                        for present in (False, True):
                            with self.subTest(kind=kind, argv=argv, force=force, present=present):
                                self.clear()
                                make(self.path("out.manifest"))
                                if present:
                                    self.path("out").write_bytes(b"old")
                                # What is raw needs no manifest; it may be written beside the file, and not over it.
                                raw = "qcow2" not in argv[3:] if argv[0] == "restore" else "raw" in argv
                                beside = self.node("out.manifest"), self.path("precious").read_bytes()
                                if raw:
                                    self.qchain(*argv, *force, expect=(0, 2), timeout=30)
                                else:
                                    self.refuses_node("out.manifest", [*argv, *force], says=["out.manifest"])
                                self.assertEqual((self.node("out.manifest"), self.path("precious").read_bytes()), beside)
                                self.assertFalse(self.path("nowhere").exists())

    def test_names_that_look_temporary(self) -> None:
        for ending in (".partial", ".manifest.partial", ".manifest.previous", ".previous", ".tmp"):
            for kind in ("hard link", "link", "folder"):
                for faults in ("", NO_LINKS):
                    env = faulty(self, faults) if faults else None
                    with self.serve() as server:
                        for argv in self.writers(server.uri, "out"):
                            for force in ([], ["--force"]):
                                with self.subTest(ending=ending, kind=kind, argv=argv, force=force, faults=faults):
                                    self.clear()
                                    self.path("precious").unlink(missing_ok=True)
                                    self.path("precious").write_bytes(b"precious")
                                    beside = self.path(f"out{ending}")
                                    if kind == "hard link":
                                        beside.hardlink_to(self.path("precious"))
                                    elif kind == "link":
                                        beside.symlink_to("precious")
                                    else:
                                        beside.mkdir()
                                    if force:
                                        self.path("out").write_bytes(b"old")
                                    before = self.node(beside.name)
                                    self.qchain(*argv, *force, env=env)
                                    self.assertEqual(self.node(beside.name), before)
                                    self.assertEqual(self.path("precious").read_bytes(), b"precious")
                                    self.assert_written("out")
                    if ending != ".partial" and kind == "hard link":
                        break

    def test_a_part_of_the_chain(self) -> None:
        """A layer, its manifest or its log, by any path, and of any layer beneath."""
        self.write("write -P 2 1M 64k")
        with self.serve(bitmap="c0") as server:
            self.increment(server.uri)
        self.add_bitmap("c1")
        self.qchain("verify", "full.qcow2", "--record")
        self.qchain("verify", "inc.qcow2", "--record")
        self.path("sub").mkdir()
        files = [f"{layer}{ending}" for layer in ("full.qcow2", "inc.qcow2") for ending in ("", ".manifest", ".proofs")]
        targets: list[Argument] = [*files, "./full.qcow2", "sub/../full.qcow2.manifest", self.path("inc.qcow2.proofs")]
        for number, name in enumerate(files):
            self.assertTrue(self.path(name).exists(), name)
            self.path(f"link{number}").symlink_to(name)
            self.path(f"hard{number}").hardlink_to(self.path(name))
            targets += [f"link{number}", f"hard{number}"]
        with self.serve(bitmap="c1") as server:
            for target in targets:
                for argv in (["pull", server.uri, "-o", target, "--parent", "inc.qcow2", "--since", "c1"],
                             ["restore", "inc.qcow2", target], ["restore", "inc.qcow2", target, "--format", "qcow2"]):
                    with self.subTest(target=target, argv=argv):
                        self.refuses(2, *argv, "--force", says=["chain"] if "hard" not in str(target) else [])
                        self.refuses(2, *argv)
        self.qchain("verify", "inc.qcow2")

    def test_the_manifest_of_the_output_is_a_part_of_the_chain(self) -> None:
        """-o X, where X.manifest is the name of a layer."""
        self.run_tool("cp", "full.qcow2", "out.manifest")
        shutil.copy(self.path("full.qcow2.manifest"), self.path("out.manifest.manifest"))
        self.write("write -P 2 1M 64k")
        with self.serve(bitmap="c0") as server:
            for force in ([], ["--force"]):
                self.refuses(2, "pull", server.uri, "-o", "out", "--parent", "out.manifest", "--since", "c0", *force)
                self.refuses(2, "restore", "out.manifest", "out", "--format", "qcow2", *force)

    def test_a_file_that_appears_in_the_middle(self) -> None:
        """Another program makes the output, or its manifest, while the disk is read: it is not overwritten."""
        for appears in ("out", "out.manifest"):
            for faults in ("", "rename-flags=EINVAL", NO_LINKS):
                for options in PULLS:
                    if options and appears == "out.manifest":
                        continue
                    self.clear()
                    with self.subTest(appears=appears, faults=faults, options=options), self.serve() as server, \
                            gate(self.folder, server, 2 * M) as held:
                        process = self.launch("pull", held.uri, "-o", "out", *options, env=faulty(self, faults) if faults else None)
                        self.assertTrue(held.held.wait(60))
                        self.path(appears).write_bytes(b"another's")
                        held.open()
                        self.finish(process, (2, 3))
                        self.assertEqual(self.path(appears).read_bytes(), b"another's")
                        self.path(appears).unlink()
                        self.assert_absent("out")

    def test_a_cleaner_in_the_middle(self) -> None:
        """It takes the temporary file away, and a half file of somebody else has its name: that is never published."""
        for faults in ("", NO_LINKS):
            self.clear()
            with self.subTest(faults=faults), self.serve() as server, gate(self.folder, server, 2 * M) as held:
                process = self.launch("pull", held.uri, "-o", "out", env=faulty(self, faults) if faults else None)
                self.assertTrue(held.held.wait(60))
                replaced = list(self.folder.glob("out*.partial"))
                for partial in replaced:
                    partial.unlink()
                    partial.write_bytes(b"half a file of another's")
                held.open()
                done = self.finish(process, (0, 2, 3))
                for partial in replaced:
                    self.assertEqual(partial.read_bytes(), b"half a file of another's")
                    partial.unlink()
                if done.code == 0:
                    self.assert_right("out", server.uri)
                else:
                    self.assert_absent("out")

    def test_a_copy_by_hard_links_in_the_middle(self) -> None:
        """cp -al while a pull is at it: a later one that is killed destroys nothing that was published."""
        for faults in ("", NO_LINKS):
            env = faulty(self, faults) if faults else None
            with self.subTest(faults=faults):
                for name in ("today", "yesterday"):
                    shutil.rmtree(self.path(name), ignore_errors=True)
                self.path("today").mkdir()
                with self.serve() as server, gate(self.folder, server, 2 * M) as held:
                    process = self.launch("pull", held.uri, "-o", "today/mon.qcow2", env=env)
                    self.assertTrue(held.held.wait(60))
                    self.run_tool("cp", "-al", "today", "yesterday")
                    held.open()
                    self.finish(process)
                    published = sha256(self.path("today/mon.qcow2"))
                with self.serve() as server, gate(self.folder, server, 2 * M) as held:
                    process = self.launch("pull", held.uri, "-o", "yesterday/mon.qcow2", env=env)
                    self.assertTrue(held.held.wait(60))
                    process.kill()
                    process.wait()
                self.assertEqual(sha256(self.path("today/mon.qcow2")), published)
                self.qchain("verify", "today/mon.qcow2")
                with self.serve() as server:
                    self.qchain("pull", server.uri, "-o", "yesterday/mon.qcow2")


class LackingFileSystems(Destinations):
    """W9, W10, T10 to T13: what a file system refuses."""

    def assert_everything_works(self, run: Callable[..., object]) -> None:
        """A chain's life, in the folder `run` runs commands in: full, increment, replace, verify, restore, seal."""
        with self.serve() as server:
            run("pull", server.uri, "-o", "a.qcow2", "--checkpoint", "c0")
            run("pull", server.uri, "-o", "a.qcow2", "--checkpoint", "c0", "--force")
            run("pull", server.uri, "-o", "a.raw", "--format", "raw")
            run("pull", server.uri, "-o", "a.raw", "--format", "raw", "--force")
        self.write("write -P 2 1M 64k")
        with self.serve(bitmap="c0") as server:
            for force in ([], ["--force"]):
                run("pull", server.uri, "-o", "b.qcow2", "--parent", "a.qcow2", "--since", "c0", "--checkpoint", "c1", *force)
            run("verify", "b.qcow2")
            run("verify", "b.qcow2", "--against", server.uri)
        for options in ([], ["--format", "qcow2"]):
            for force in ([], ["--force"]):
                run("restore", "b.qcow2", f"c{len(options)}", *options, *force)
        run("verify", "c2")
        run("verify", "b.qcow2", "--seal")

    def test_without_hard_links(self) -> None:
        for faults in ("link=EPERM", "tmpfile=EOPNOTSUPP", "rename-flags=EINVAL", "link=EPERM,tmpfile=EOPNOTSUPP", NO_LINKS,
                       "link=EOPNOTSUPP,tmpfile=EINVAL,rename-flags=ENOSYS"):
            with self.subTest(faults=faults):
                self.clear("[abc].*")
                self.clear("c[02]*")
                env = faulty(self, faults)
                self.assert_everything_works(lambda *argv: self.qchain(*argv, env=env))
                self.assert_sound("b.qcow2")
                self.assertEqual([name for name in self.names() if "partial" in name or "previous" in name], [])

    def test_exfat(self) -> None:
        """The real one, through FUSE."""
        if os.geteuid() != 0 or not Path("/dev/fuse").exists() or not shutil.which("mount.exfat-fuse") or not shutil.which("mkfs.exfat"):
            self.skipTest("needs root, /dev/fuse, exfat-fuse and exfatprogs")
        self.run_tool("truncate", "-s", "400M", "fs.img")
        self.run_tool("mkfs.exfat", self.path("fs.img"))
        mount = self.path("mount")
        mount.mkdir()
        self.run_tool("mount.exfat-fuse", self.path("fs.img"), mount)
        try:
            self.assert_everything_works(lambda *argv: self.shell('cd mount && "$@"', *argv))
            self.run_tool("qemu-img", "check", "-q", mount / "b.qcow2")
        finally:
            self.run_tool("umount", mount)

    def test_sequential_writes_only(self) -> None:
        """The message has the cause and the way out, and nothing stays."""
        for options in PULLS:
            with self.subTest(options=options), self.serve() as server:
                done = self.qchain("pull", server.uri, "-o", "out", *options, env=faulty(self, f"aio=ENOSYS,seek=ESPIPE,{NO_LINKS}"), expect=3)
                self.assert_says(done, "seek", "sequential")
                self.assertTrue("cache" in done.err or "-o -" in done.err, done)
                self.assert_absent("out")

    def test_what_cannot_be_removed_is_said(self) -> None:
        env = faulty(self, f"aio=ENOSYS,seek=ESPIPE,unlink=EIO,{NO_LINKS}")
        with self.serve() as server:
            done = self.qchain("pull", server.uri, "-o", "out", env=env, expect=3)
        for left in self.folder.glob("out*"):
            self.assertIn(left.name, done.err)

    def test_a_file_that_cannot_be_made_durable(self) -> None:
        """fsync of a regular file fails, with EINVAL too: nothing is published."""
        for faults in ("fsync-file=EINVAL", "fsync-file=EIO", "fsync-file@2=EIO", f"fsync-file=EINVAL,{NO_LINKS}"):
            with self.serve() as server:
                for argv in self.writers(server.uri, "out"):
                    with self.subTest(faults=faults, argv=argv):
                        self.clear()
                        env = faulty(self, faults)
                        done = self.qchain(*argv, env=env, expect=3 if "@" not in faults else (0, 3))
                        if done.code == 3:
                            self.assert_absent("out")

    def test_a_folder_that_cannot_be_made_durable(self) -> None:
        """Either nothing is published, or it is and the exit says so."""
        for faults in ("fsync-dir=EIO", "fsync-dir@2=EIO", "fsync-dir=EINVAL"):
            with self.serve() as server:
                for argv in self.writers(server.uri, "out"):
                    for force in ([], ["--force"]):
                        with self.subTest(faults=faults, argv=argv, force=force):
                            self.clear()
                            if force:
                                self.path("out").write_bytes(b"old")
                            done = self.qchain(*argv, *force, "--json", env=faulty(self, faults), expect=(0, 3))
                            self.assertEqual(done.json["exit_code"], done.code)
                            if done.code == 0:
                                self.assert_written("out")
                            elif force:
                                self.assertEqual(self.path("out").read_bytes(), b"old")
                            else:
                                self.assert_absent("out")

    def test_locks_that_cannot_be_had(self) -> None:
        """A file system without locks is not another process."""
        for error in ("ENOLCK", "EOPNOTSUPP", "EINVAL"):
            for beside in ("", f",{NO_LINKS}"):
                self.clear()
                with self.subTest(error=error, beside=beside), self.serve() as server:
                    done = self.qchain("pull", server.uri, "-o", "out", env=faulty(self, f"flock={error}{beside}"), expect=(0, 3))
                    self.assertNotIn("another", done.err)
                    if done.code == 0:
                        self.assert_right("out", server.uri)

    def test_asynchronous_writes_that_fail(self) -> None:
        for faults in ("getevents=EIO", "getevents@2=EINVAL", "aio=EIO", "aio=ENOSYS"):
            with self.subTest(faults=faults), self.serve() as server:
                for argv in self.writers(server.uri, "out"):
                    self.clear()
                    done = self.qchain(*argv, env=faulty(self, faults), expect=(0, 3), timeout=60)
                    if done.code == 0:
                        self.assert_written("out")
                    else:
                        self.assert_absent("out")


class Crashes(Destinations):
    """T7: killed at any call that publishes, the name holds the old image or the new one, with a manifest that fits."""

    CALLS = ("fsync-file", "fsync-dir", "rename", "rename-flags", "link", "unlink")

    def setUp(self) -> None:
        super().setUp()
        with self.serve() as server:
            self.qchain("pull", server.uri, "-o", "old.qcow2")
        self.flat("old.qcow2", "old.raw")
        self.write("write -P 2 1M 128k")
        self.run_tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "d.qcow2", "new.raw")

    def begin(self) -> None:
        self.clear()
        for ending in ("", ".manifest"):
            shutil.copy(self.path(f"old.qcow2{ending}"), self.path(f"out{ending}"))

    def assert_old_or_new(self, expect: int | Sequence[int] = 0) -> None:
        done = self.qchain("verify", "out", expect=expect)
        flat = self.flat("out", "out.flat")
        self.assertIn(sha256(flat), (sha256(self.path("old.raw")), sha256(self.path("new.raw"))), done)
        flat.unlink()

    def crash_everywhere(self, argv: Sequence[Argument], how: Sequence[str], expect: int | Sequence[int], fallback: str = "") -> None:
        for call in self.CALLS:
            for what in how:
                for number in range(1, 20):
                    with self.subTest(call=call, number=number, what=what, fallback=fallback):
                        self.begin()
                        faults = f"{call}@{number}={what}{fallback}"
                        done = self.qchain(*argv, "--force", env=faulty(self, faults), expect=(-9, 0, 3))
                        self.assert_old_or_new(expect)
                        if done.code != 0:  # a failing retry makes nothing worse, and one that succeeds is whole
                            self.qchain(*argv, "--force", env=faulty(self, "fsync-file=EIO"), expect=3)
                            self.assert_old_or_new(expect)
                            self.qchain(*argv, "--force")
                            self.assert_old_or_new(expect)
                            continue
                    break

    def test_killed(self) -> None:
        with self.serve() as server:
            self.crash_everywhere(["pull", server.uri, "-o", "out"], ["KILL"], 0)

    def test_killed_without_hard_links(self) -> None:
        with self.serve() as server:
            self.crash_everywhere(["pull", server.uri, "-o", "out"], ["KILL"], 0, fallback=f",{NO_LINKS}")

    def test_errors(self) -> None:
        with self.serve() as server:
            self.crash_everywhere(["pull", server.uri, "-o", "out"], ["EIO"], 0)

    def test_without_a_manifest(self) -> None:
        """A new image without one is not judged by the old one's."""
        with self.serve() as server:
            self.crash_everywhere(["pull", server.uri, "-o", "out", "--digest", "none"], ["KILL"], (0, 4))

    def test_restore(self) -> None:
        with self.serve() as server:
            self.qchain("pull", server.uri, "-o", "new.qcow2")
        self.crash_everywhere(["restore", "new.qcow2", "out", "--format", "qcow2"], ["KILL", "EIO"], 0)


class BeforeTheFirstByte(Destinations):
    """T16 and T24: what will be refused is refused before the disk is read."""

    def setUp(self) -> None:
        super().setUp()
        self.path("disk").write_bytes(b"data" * M)

    def read_nothing(self, *options: Argument, out: Argument = "out", expect: int | Sequence[int] = 2) -> int:
        log = self.path("servers/log")
        log.unlink(missing_ok=True)
        with nbdkit(self.folder, "--filter=log", "file", self.path("disk"), f"logfile={log}") as server:
            done = self.qchain("pull", server.uri, "-o", out, *options, expect=expect)
        if done.code != 0:
            self.assert_says(done)
            self.assertNotIn(" Read ", log.read_text(errors="replace") if log.exists() else "", done)
        return done.code

    def test_outputs(self) -> None:
        self.path("folder").mkdir()
        self.path("file").write_bytes(b"old")
        self.path("manifest-only.manifest").write_bytes(b"text")
        for out, options in (("folder", ["--force"]), ("folder", []), ("file", []), ("manifest-only", ["--force"]),
                             ("nosuch/out", []), ("file/out", []), ("x" * 300, [])):
            with self.subTest(out=out, options=options):
                self.read_nothing(*options, out=out, expect=(2, 3))
                self.read_nothing(*options, "--format", "raw", out=out, expect=(0, 2, 3) if out == "manifest-only" else (2, 3))
                self.clear("manifest-only")

    def test_keys(self) -> None:
        self.path("bad.pem").write_text("no key\n")
        for key in ("nosuch.pem", "bad.pem"):
            with self.subTest(key=key):
                self.read_nothing("--sign-key", key, expect=(2, 3, 5))

    def test_checkpoints(self) -> None:
        """Refused at once, or fit to be built upon."""
        names: list[bytes] = [b"\xff\xfe", b"caf\xe9", b"caf\xc3\xa9", b"a\nb", b"\x1b[31m", b'"quoted\\', b"x" * 255, b"x" * 1000, b"x" * 3000,
                              b"x" * 5000, b"x" * 70000, b"\xed\xa0\x80", b"\xc0\x80", b""]
        for name in names:
            for options in ([], ["--cluster-size", "4K"]):
                with self.subTest(name=name[:20], length=len(name), options=options):
                    self.clear()
                    code = self.read_nothing("--checkpoint", name, *options) if self.is_refused(name, options) else 0
                    if code == 0:
                        self.qchain("verify", "out")
                        self.image("next.qcow2", "write -P 1 0 64k", size=4 * M)
                        self.add_bitmap("c", "next.qcow2")
                        with self.serve("next.qcow2", bitmap="c") as server:
                            self.qchain("pull", server.uri, "-o", "out2", "--parent", "out", "--since", name, "--allow-other-export",
                                        "--check-clean", "none", "--on-missed", "compare")
                        self.assertEqual(self.qchain("chaininfo", "out", "--json").json["exit_code"], 0)

    def is_refused(self, name: bytes, options: Sequence[Argument]) -> bool:
        with nbdkit(self.folder, "file", self.path("disk")) as server:
            return self.qchain("pull", server.uri, "-o", "out", "--checkpoint", name, *options, expect=(0, 2)).code == 2


if __name__ == "__main__":
    unittest.main()
