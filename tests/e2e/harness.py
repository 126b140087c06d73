"""Shared by the end-to-end tests: the tool under test, a working directory, servers, and QEMU's tools as the oracle.

Importing it puts the repository's fixtures on the module path.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

_REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(_REPOSITORY / "fixtures"))

from qemu_tools import PathLike, nbd_uri, wait_until  # noqa: E402

QCHAIN = Path(os.environ.get("QCHAIN") or _REPOSITORY / "build/dev/cli/qchain").resolve()

# Set by tests/run --soak: then everything is tried of which a fixed sample is tried otherwise.
SOAK = bool(os.environ.get("QCHAIN_SOAK"))

K, M, G, T = 1 << 10, 1 << 20, 1 << 30, 1 << 40

# A sanitizer report must not look like one of the tool's own exit codes.
_ENVIRONMENT = {"ASAN_OPTIONS": "exitcode=99", "UBSAN_OPTIONS": "halt_on_error=1:exitcode=99:print_stacktrace=1"}
_SANITIZER_WORDS = (b"Sanitizer", b"runtime error:")

Argument = PathLike | int | bytes

_T = TypeVar("_T")

_numbers = itertools.count()


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    return os.environ | _ENVIRONMENT | (changes or {})


def words(argv: Sequence[Argument]) -> list[str | bytes]:
    return [str(word) if isinstance(word, int) else os.fspath(word) for word in argv]


def spread(cases: Iterable[_T], count: int) -> list[_T]:
    """Some `count` of the cases, in their order: one from each of so many parts, the first and the last among them; all with
    SOAK. Always the same ones."""
    found = list(cases)
    if SOAK or len(found) <= count:
        return found
    chance = random.Random(1)
    bounds = [at * len(found) // count for at in range(count + 1)]
    middle = [found[chance.randrange(low, high)] for low, high in zip(bounds[1:-2], bounds[2:-1])]
    return [found[0], *middle, found[-1]]


def pairs(*axes: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Combinations of one value of each axis, few in which every two values meet; all there are with SOAK. Always the same."""
    values = [list(axis) for axis in axes]
    every = list(itertools.product(*(range(len(axis)) for axis in values)))
    if not SOAK:
        def met(combination: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
            return set(itertools.combinations(enumerate(combination), 2))

        left = set().union(*map(met, every))
        chosen = []
        while left:
            chosen.append(max(every, key=lambda combination: len(met(combination) & left)))
            left -= met(chosen[-1])
        every = sorted(chosen)
    return [tuple(axis[at] for axis, at in zip(values, combination)) for combination in every]


@dataclass(frozen=True)
class Done:
    """The result of a command."""

    argv: list[str | bytes]
    code: int
    raw_out: bytes
    raw_err: bytes

    @property
    def out(self) -> str:
        return self.raw_out.decode(errors="replace")

    @property
    def err(self) -> str:
        return self.raw_err.decode(errors="replace")

    @property
    def json(self) -> dict[str, Any]:
        """The one document on standard output; raises ValueError where there is anything else."""
        return json.loads(self.raw_out)

    def __str__(self) -> str:
        shown = " ".join(os.fsdecode(word) for word in self.argv)
        return f"{shown}\nexit {self.code}\n-- standard output --\n{self.out[:8000]}\n-- standard error --\n{self.err[:8000]}"


class Case(unittest.TestCase):
    """A test with a folder of its own, in which all commands run."""

    maxDiff = None

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="qc-", ignore_cleanup_errors=True)
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    # -- qchain -----------------------------------------------------------------------------------------------------

    def qchain(self, *argv: Argument, expect: int | Sequence[int] = 0, env: Mapping[str, str] | None = None,
               program: Path = QCHAIN, timeout: float = 120) -> Done:
        """Runs qchain, which has to exit with `expect` (or one of several) and without a sanitizer report."""
        process = self.start(*argv, env=env, program=program)
        return self.finish(process, expect, timeout)

    def start(self, *argv: Argument, env: Mapping[str, str] | None = None, program: Path = QCHAIN,
              stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
        """Starts qchain; `finish` waits for it. A test that fails in between leaves no process behind."""
        process = subprocess.Popen(words([program, *argv]), cwd=self.folder, env=environment(env), stdin=subprocess.DEVNULL,
                                   stdout=stdout, stderr=subprocess.PIPE)
        self.addCleanup(end_process, process)
        return process

    def is_writing(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether the command has its output open, which has no name before it is published."""
        for descriptor in Path(f"/proc/{process.pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                target = os.readlink(descriptor)
                if target.startswith(str(self.folder.resolve())) and target.endswith((" (deleted)", ".partial")):
                    return True
        return False

    def finish(self, process: subprocess.Popen[bytes], expect: int | Sequence[int] = 0, timeout: float = 120) -> Done:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            self.fail(f"still running after {timeout:.0f} s: {Done(list(process.args), -9, out or b'', err or b'')}")
        done = Done(list(process.args), process.returncode, out or b"", err or b"")
        expected = (expect,) if isinstance(expect, int) else tuple(expect)
        self.assertFalse(any(word in done.raw_err for word in _SANITIZER_WORDS), f"sanitizer report: {done}")
        self.assertIn(done.code, expected, done)
        return done

    def refuses(self, expect: int | Sequence[int], *argv: Argument, says: Sequence[str] = (),
                env: Mapping[str, str] | None = None, timeout: float = 120) -> Done:
        """Runs a command that has to fail: with this code, a message with these words, and no file made or changed."""
        before = self.fingerprint()
        done = self.qchain(*argv, expect=expect, env=env, timeout=timeout)
        self.assert_says(done, *says)
        self.assertEqual(self.fingerprint(), before, f"files appeared, vanished or changed: {done}")
        return done

    def assert_says(self, done: Done, *expected: str) -> None:
        """The message is on standard error; case does not matter."""
        self.assertTrue(done.err.strip(), f"no message: {done}")
        for text in expected:
            self.assertIn(text.lower(), done.err.lower(), done)

    # -- files ------------------------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        return self.folder / name

    def fingerprint(self, folder: Path | None = None) -> dict[str, str]:
        """Every regular file and link below the folder with a hash of its content, fixtures and sockets left out."""
        found = {}
        top = folder or self.folder
        for at, folders, files in os.walk(top):
            folders[:] = [name for name in folders if name not in ("export", "guest", "servers")]
            for name in files:
                path = Path(at, name)
                if path.is_symlink():
                    found[str(path.relative_to(top))] = f"-> {os.readlink(path)}"
                elif path.is_file():
                    found[str(path.relative_to(top))] = sha256(path)
        return found

    def image(self, name: str, *commands: str, size: int = 4 * M, backing: str | None = None,
              options: Sequence[str] = ()) -> Path:
        """Makes a qcow2 image with QEMU's tools, and writes to it with commands of qemu-io."""
        path = self.path(name)
        base = ["-b", backing, "-F", "qcow2"] if backing else []
        extra = [word for option in options for word in ("-o", option)]
        self.run_tool("qemu-img", "create", "-q", "-f", "qcow2", *extra, *base, path, size)
        if commands:
            self.run_tool("qemu-io", "-f", "qcow2", *(word for command in commands for word in ("-c", command)), path)
        return path

    def flat(self, image: PathLike, name: str) -> Path:
        """The disk that an image describes as a raw file, converted by QEMU."""
        self.run_tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, self.path(name))
        return self.path(name)

    def run_tool(self, *argv: Argument, expect: int = 0) -> str:
        """Runs another program in the folder."""
        done = subprocess.run(words(argv), cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=120,
                              text=True, errors="replace")
        self.assertEqual(done.returncode, expect, f"{' '.join(map(str, argv))}\n{done.stdout}{done.stderr}")
        return done.stdout

    # -- the oracle -------------------------------------------------------------------------------------------------

    def assert_sound(self, image: PathLike) -> None:
        """qemu-img check finds neither an error nor a leak."""
        report = json.loads(self.run_tool("qemu-img", "check", "--output=json", "-f", "qcow2", image))
        self.assertEqual({key: report.get(key, 0) for key in ("check-errors", "corruptions", "leaks")},
                         {"check-errors": 0, "corruptions": 0, "leaks": 0}, image)

    def assert_holds(self, image: PathLike, reference: PathLike, format: str = "qcow2") -> None:
        """qemu-img finds the image's content and length equal to a raw file."""
        info = json.loads(self.run_tool("qemu-img", "info", "--output=json", "-f", format, image))
        self.assertEqual(info["virtual-size"], (self.folder / reference).stat().st_size, f"the size of {image}")
        self.run_tool("qemu-img", "compare", "-f", format, "-F", "raw", image, reference)

    def assert_same_bytes(self, one: PathLike, other: PathLike) -> None:
        first, second = self.folder / one, self.folder / other
        self.assertEqual(first.stat().st_size, second.stat().st_size, f"the lengths of {one} and {other}")
        if sha256(first) != sha256(second):
            self.fail(f"{one} and {other} differ from byte {first_difference(first, second):#x} on")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_difference(one: Path, other: Path) -> int:
    with one.open("rb") as first, other.open("rb") as second:
        at = 0
        while True:
            left, right = first.read(M), second.read(M)
            if left != right:
                return at + next((i for i, (a, b) in enumerate(zip(left, right)) if a != b), min(len(left), len(right)))
            if not left:
                return at
            at += len(left)


def flip_byte(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x40]))


def patch(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Ends a child that may have ended, or be stopped, and closes its pipes."""
    if process.poll() is None:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()


# -- servers ------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Server:
    """An NBD server in the foreground, as a child of this process."""

    process: subprocess.Popen[bytes]
    uri: str


@contextlib.contextmanager
def _serve(folder: Path, export: str, program: str, socket_option: str, pid_option: str, *argv: Argument,
           gently: bool = True) -> Iterator[Server]:
    servers = folder / "servers"
    servers.mkdir(exist_ok=True)
    number = next(_numbers)
    socket, pid_file = servers / f"{number}.sock", servers / f"{number}.pid"
    log = servers / f"{number}.log"  # not a pipe, which could fill up
    with log.open("wb") as said:
        process = subprocess.Popen(words([program, socket_option, socket, pid_option, pid_file, *argv]),
                                   stdin=subprocess.DEVNULL, stdout=said, stderr=said)

    def answers() -> bool:  # without a connection, which some servers count
        if process.poll() is not None:
            raise AssertionError(f"{program} {argv}: ended at once: {log.read_text(errors='replace')}")
        return pid_file.exists() and bool(pid_file.read_text())

    try:
        wait_until(answers, f"{program}: does not listen", timeout=300)
        yield Server(process, nbd_uri(export, socket))
    finally:
        if process.poll() is None and gently:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
        end_process(process)


def nbdkit(folder: Path, *argv: Argument) -> contextlib.AbstractContextManager[Server]:
    """Serves with nbdkit: `nbdkit(folder, "--filter=noextents", "file", path)`."""
    return _serve(folder, "", "nbdkit", "--unix", "--pidfile", "--foreground", "--exit-with-parent", *argv)


def qemu_nbd(folder: Path, *argv: Argument, writable: bool = False) -> contextlib.AbstractContextManager[Server]:
    """Serves with qemu-nbd, to 16 clients, under the name `vda`."""
    mode = [] if writable else ["-r"]
    # One that only reads has nothing to finish, and spins for seconds where a client is left.
    return _serve(folder, "vda", "qemu-nbd", "--socket", "--pid-file", *mode, "-t", "-e", "16", "-x", "vda", *argv, gently=writable)


def failing_server(folder: Path) -> contextlib.AbstractContextManager[Server]:
    """2 MiB of data, with one sector that cannot be read at 1 MiB; the connection survives."""
    (folder / "servers").mkdir(exist_ok=True)
    bad = folder / "servers" / "bad.map"
    bad.write_text(f"# mapfile\n0x0 ? 1\n0x0 0x100000 +\n0x100000 0x200 -\n0x100200 0xffe00 +\n")
    return nbdkit(folder, "--filter=ddrescue", "pattern", "2M", f"ddrescue-mapfile={bad}")
