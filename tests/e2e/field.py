"""Shared by tests of cases from the field: a disk with a persistent bitmap, a full layer of it, and ways to interfere."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import unittest
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from harness import QCHAIN, M, Argument, Case, Done, Server, end_process, environment, qemu_nbd, words

SIZE = 16 * M
HAS_LOOP = os.geteuid() == 0 and Path("/dev/loop-control").exists()
PULLS = ([], ["--format", "raw"])
RESTORES = ([], ["--format", "qcow2"])

needs_loop = unittest.skipUnless(HAS_LOOP, "needs root and loop devices: losetup cannot attach a file here")
needs_root = unittest.skipUnless(os.geteuid() == 0, "needs root: mknod and chown are refused otherwise")


class FieldCase(Case):
    """d.qcow2: a disk with four MiB of data, with the persistent bitmap c0; full.qcow2: pulled at c0."""

    size = SIZE
    _made: Path | None = None

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls._made = None

    def setUp(self) -> None:
        super().setUp()
        if not self._made:
            self._make()
        for path in self._made.iterdir():
            shutil.copy2(path, self.folder)

    def _make(self) -> None:
        """Once for all tests of a class."""
        self.image("d.qcow2", "write -P 1 0 4M", size=self.size)
        with self.serve() as server:
            self.qchain("pull", server.uri, "-o", "full.qcow2", "--checkpoint", "c0")
        self.add_bitmap("c0")
        folder = tempfile.TemporaryDirectory(prefix="qc-")
        self.addClassCleanup(folder.cleanup)
        for name in ("d.qcow2", "full.qcow2", "full.qcow2.manifest"):
            shutil.move(self.path(name), folder.name)
        type(self)._made = Path(folder.name)

    def serve(self, image: str = "d.qcow2", *options: Argument, bitmap: str | None = None,
              writable: bool = False) -> contextlib.AbstractContextManager[Server]:
        marks = ["-B", bitmap] if bitmap else []
        return qemu_nbd(self.folder, *options, *marks, "-f", "qcow2", self.path(image), writable=writable)

    def add_bitmap(self, name: str, image: str = "d.qcow2") -> None:
        self.run_tool("qemu-img", "bitmap", "--add", image, name)

    def write(self, *commands: str, image: str = "d.qcow2") -> None:
        """Writes to an image; its bitmaps record it."""
        self.run_tool("qemu-io", "-f", "qcow2", *(word for command in commands for word in ("-c", command)), self.path(image))

    def increment(self, uri: str, *options: Argument, out: str = "inc.qcow2", parent: str = "full.qcow2",
                  expect: int | Sequence[int] = 0) -> Done:
        return self.qchain("pull", uri, "-o", out, "--parent", parent, "--since", "c0", "--checkpoint", "c1", *options, expect=expect)

    def assert_right(self, image: str, uri: str) -> None:
        """The image equals the export, according to qchain and QEMU."""
        self.assert_sound(image)
        self.qchain("verify", image, "--against", uri)
        self.run_tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", self.path(image), uri)

    def assert_absent(self, name: str = "inc.qcow2") -> None:
        """Nothing is published, and nothing is left of the attempt."""
        self.assertEqual([path.name for path in self.folder.glob(f"{name}*")], [])

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir() if path.name != "servers"}

    def disk(self) -> Path:
        """The disk of full.qcow2 as a raw file."""
        return self.path("full.raw") if self.path("full.raw").exists() else self.flat("full.qcow2", "full.raw")

    # -- processes --------------------------------------------------------------------------------------------------

    def launch(self, *argv: Argument, through: Sequence[Argument] = (), env: Mapping[str, str] | None = None,
               stdout: int = subprocess.PIPE, hangup: signal.Handlers = signal.SIG_DFL) -> subprocess.Popen[bytes]:
        """Starts qchain through another command, with a SIGHUP that is not ignored, whatever the test was started under."""
        process = subprocess.Popen(words([*through, QCHAIN, *argv]), cwd=self.folder, env=environment(env), stdin=subprocess.DEVNULL,
                                   stdout=stdout, stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGHUP, hangup))
        self.addCleanup(end_process, process)
        return process

    def shell(self, script: str, *argv: Argument, expect: int | Sequence[int] = 0, env: Mapping[str, str] | None = None) -> Done:
        """Runs a line of bash in which "$@" is qchain with these arguments."""
        return self.finish(self.launch(*argv, through=["bash", "-c", script, "bash"], env=env), expect)

    # -- nodes and devices ------------------------------------------------------------------------------------------

    def node(self, name: str) -> tuple[object, ...]:
        """The state of a path, links not followed; for regular files with the content."""
        path = self.path(name)
        if not os.path.lexists(path):
            return ()
        found = path.lstat()
        kind = stat.S_IFMT(found.st_mode)
        content = os.readlink(path) if stat.S_ISLNK(kind) else path.read_bytes() if stat.S_ISREG(kind) else None
        return kind, found.st_ino, found.st_rdev, stat.S_IMODE(found.st_mode), content

    @contextlib.contextmanager
    def loop(self, file: Argument, *options: str) -> Iterator[Path]:
        device = self.run_tool("losetup", "--find", "--show", *options, file).strip()
        try:
            yield Path(device)
        finally:
            self.run_tool("losetup", "--detach", device)

    def filled(self, name: str, size: int) -> Path:
        """A file of 0xee bytes."""
        with self.path(name).open("wb") as file:
            for at in range(0, size, M):
                file.write(b"\xee" * min(M, size - at))
            os.fsync(file.fileno())
        return self.path(name)


class DestinationCase(FieldCase):
    """Commands that write a disk to a path, and checks of that path."""

    def writers(self, uri: str, out: Argument) -> list[list[Argument]]:
        """Every command that writes a disk to a path, in both formats."""
        return [["pull", uri, "-o", out, *options] for options in PULLS] + \
               [["restore", "full.qcow2", out, *options] for options in RESTORES]

    def refuses_node(self, name: str, argv: Sequence[Argument], expect: int | Sequence[int] = 2, says: Sequence[str] = ()) -> None:
        """Refused with a message that names the path; it and its directory are unchanged."""
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
        """The path has the disk, in either format."""
        with self.path(name).open("rb") as file:
            is_qcow2 = file.read(4) == b"QFI\xfb"
        if is_qcow2:
            self.qchain("verify", name)
        self.run_tool("qemu-img", "compare", "-f", "qcow2" if is_qcow2 else "raw", "-F", "raw", self.path(name), self.disk())


@functools.cache
def _shim() -> Path | None:
    """faulty_calls.c as a library to preload, or None where it cannot be."""
    folder = tempfile.TemporaryDirectory(prefix="qc-")
    unittest.addModuleCleanup(folder.cleanup)
    library = Path(folder.name) / "faulty_calls.so"
    source = Path(__file__).with_name("faulty_calls.c")
    with contextlib.suppress(FileNotFoundError):
        done = subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], capture_output=True, text=True)
        if done.returncode != 0:
            raise AssertionError(done.stderr)
        return library
    return None


@functools.cache
def _is_sanitized() -> bool:
    return b"__asan_init" in QCHAIN.read_bytes() or b"__tsan_init" in QCHAIN.read_bytes()


def faulty(test: unittest.TestCase, faults: str) -> dict[str, str]:
    """The environment in which system calls fail: `faults` as faulty_calls.c has it."""
    if _is_sanitized():
        test.skipTest("needs a build without sanitizers: their runtime has to be loaded first")
    library = _shim()
    if library is None:
        test.skipTest("needs a C compiler (cc), to make system calls fail")
    return {"LD_PRELOAD": str(library), "FAULTS": faults}


# A file system such as exFAT: no hard links, no unnamed files, no rename that refuses to replace.
NO_LINKS = "link=EPERM,tmpfile=EOPNOTSUPP,rename-flags=EINVAL"
