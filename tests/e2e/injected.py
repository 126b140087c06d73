"""Scenarios for tests with failing system calls, and checks of what they leave."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
import unittest
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from harness import SOAK, M, Case, Done, environment as plain_environment, nbdkit, qemu_nbd, sha256, words
from injector import KILL, RELEASE, SHORT, Call, Injection, environment, read_log, require_programs

SIZE = M
CODES = (0, 1, 2, 3, 4, 5, 6, 130, 143)
PATIENCE = 60
NEW_LAYER = "00000000-0000-4000-8000-00000000000a"

# What gives names to files, and what makes them durable; and all else that is done to files.
PUBLICATION = "fsync,fdatasync,rename,link,unlink,futimens,fchmod,fchown,ftruncate"
ON_FILES = PUBLICATION + ",tmpfile,open,pwrite,write,io_submit,aio_result,fallocate,flock,fstat,stat,access"

# How each function fails; the first one always, the others with QCHAIN_SOAK.
ERRORS = {
    "fsync": ["EIO", "EINVAL", "EINTR"], "fdatasync": ["EIO"], "ftruncate": ["EIO", "EFBIG"], "futimens": ["EPERM"],
    "fchmod": ["EPERM"], "fchown": ["EPERM"], "rename": ["EIO", "EINVAL", "EXDEV"], "link": ["EIO", "EPERM", "EMLINK"],
    "unlink": ["EIO"], "tmpfile": ["EOPNOTSUPP", "EMFILE"], "open": ["EMFILE", "EACCES", "EINTR"],
    "pwrite": ["ENOSPC", "EIO", "EINTR", SHORT], "write": ["ENOSPC", "EINTR", SHORT], "pread": ["EIO", "EINTR", SHORT],
    "fallocate": ["EOPNOTSUPP"], "sync_file_range": ["EIO"], "flock": ["ENOLCK", "EWOULDBLOCK"],
    "lock": ["ENOLCK", "EINVAL", "EAGAIN"], "fstat": ["EIO"], "stat": ["EACCES"], "access": ["EACCES"], "fstatvfs": ["EIO"],
    "fsetxattr": ["EOPNOTSUPP"], "lseek": ["EINVAL"], "ioctl": ["ENOTTY"], "dup": ["EMFILE"], "mmap": ["ENOMEM"],
    "pthread_create": ["EAGAIN"], "io_setup": ["EAGAIN"], "io_submit": ["EAGAIN", "EIO"], "io_getevents": ["EIO", "EINTR"],
    "aio_result": ["EIO", "ENOSPC", SHORT], "socket": ["EMFILE"], "bind": ["EADDRINUSE", "EPERM"],
    "connect": ["ECONNREFUSED"], "recv": ["ECONNRESET", SHORT, "EINTR"], "send": ["EPIPE", SHORT, "EINTR"],
    "poll": ["EINTR", "ENOMEM"], "getrandom": ["EIO", SHORT]}
READING = ["open", "pread", "fstat", "stat", "lock", "access"]


@dataclass(frozen=True)
class Shared:
    """What all tests read, and none changes."""

    folder: Path
    full: str  # a server with the first disk
    changed: str  # a server with the second, and what changed


@dataclass
class Scenario:
    """A command that makes `output` in a folder with `files`."""

    argv: list[str]
    output: str
    reference: Path  # what the output describes, as a raw file
    files: Path  # a folder with what is there before
    known_good: set[tuple[str, ...]] = field(default_factory=set)

    @property
    def is_raw(self) -> bool:
        return self.output.endswith(".raw")

    @property
    def manifest(self) -> str:
        return f"{self.output}.manifest"

    def is_ours(self, name: str) -> bool:
        """The output, its manifest under either name, or a temporary file of theirs."""
        return name == self.output or name == self.manifest or self.is_left_over(name)

    def is_left_over(self, name: str) -> bool:
        return name.startswith(f"{self.output}.") and name.endswith(".partial") or name.startswith(f"{self.manifest}.")


class Injected(Case):
    """Runs scenarios under injections, and checks what they leave."""

    always: Mapping[str, str] = {}  # functions that the file system does not support
    _shared: ClassVar[Shared | None] = None

    def setUp(self) -> None:
        require_programs()
        super().setUp()
        self.work = self.path("work")
        self.log = self.path("calls.log")
        self.now: dict[str, str] | None = None  # the content of `work`
        if Injected._shared is None:
            Injected._shared = self.make_shared()
        self.shared = Injected._shared
        self.first, self.second = self.shared.folder / "first.raw", self.shared.folder / "second.raw"

    # -- scenarios --------------------------------------------------------------------------------------------------

    def make_shared(self) -> Shared:
        """A disk, the same disk later with a bitmap of what changed, and the chain of both; for all tests of a run."""
        stack = contextlib.ExitStack()
        unittest.addModuleCleanup(stack.close)
        own, self.folder = self.folder, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qc-")))
        first, live = self.path("first.raw"), self.path("live.qcow2")
        self.image("live.qcow2", "write -P 1 0 256k", "write -P 2 400k 60k", "write -P 3 1023k 1k", size=SIZE)
        self.run_tool("qemu-img", "convert", "-O", "raw", live, first)
        self.run_tool("qemu-img", "bitmap", "--add", live, "b0")
        self.run_tool("qemu-io", "-f", "qcow2", "-c", "write -P 5 192k 150k", "-c", "write -z 64k 64k", "-c",
                      "write -P 6 800k 4k", live)
        self.run_tool("qemu-img", "convert", "-O", "raw", live, self.path("second.raw"))
        full = stack.enter_context(nbdkit(self.folder, "-r", "file", first))
        changed = stack.enter_context(qemu_nbd(self.folder, "-B", "b0", "-f", "qcow2", live))
        for name in ("empty", "one"):
            self.path(name).mkdir()
        self.plain("pull", full.uri, "-o", "one/full.qcow2", "--checkpoint", "c0", "--cluster-size", "16K")
        shutil.copytree(self.path("one"), self.path("two"))
        self.plain("pull", changed.uri, "-o", "two/inc.qcow2", "--parent", "two/full.qcow2", "--since", "c0")
        self.path("two/other.txt").write_text("of somebody else")
        shared, self.folder = Shared(self.folder, full.uri, changed.uri), own
        return shared

    def scenario(self, name: str) -> Scenario:
        one, two, empty = (self.shared.folder / files for files in ("one", "two", "empty"))
        connections = ["--connections", "2", "--requests", "4"]
        full = ["pull", self.shared.full, "--cluster-size", "16K", "--layer-id", NEW_LAYER, *connections]
        changed = ["--parent", "full.qcow2", "--since", "c0", "--layer-id", NEW_LAYER, *connections]
        restore = ["restore", "inc.qcow2"]
        match name:
            case "full":
                return Scenario([*full, "-o", "out.qcow2"], "out.qcow2", self.first, empty)
            case "increment":
                return Scenario(["pull", self.shared.changed, "-o", "out.qcow2", *changed], "out.qcow2", self.second, one)
            case "replace":
                return Scenario([*full, "-o", "inc.qcow2", "--force"], "inc.qcow2", self.first, two)
            case "replace increment":
                return Scenario(["pull", self.shared.changed, "-o", "inc.qcow2", "--force", *changed], "inc.qcow2", self.second, two)
            case "restore raw":
                return Scenario([*restore, "out.raw"], "out.raw", self.second, two)
            case "restore qcow2":
                return Scenario([*restore, "out.qcow2", "--format", "qcow2"], "out.qcow2", self.second, two)
            case "compressed":
                return Scenario([*full, "-o", "out.qcow2", "--compress", "zstd"], "out.qcow2", self.first, empty)
            case "pull raw":
                return Scenario(["pull", self.shared.full, "-o", "out.raw", "--format", "raw", *connections], "out.raw", self.first, empty)
        raise KeyError(name)

    # -- runs -------------------------------------------------------------------------------------------------------

    def plain(self, *argv: object, folder: Path | None = None, expect: Iterable[int] = (0,)) -> Done:
        """Runs the program without an injection."""
        return self.run_release(argv, folder or self.folder, {}, expect)

    def run_release(self, argv: Iterable[object], folder: Path, env: dict[str, str], expect: Iterable[int]) -> Done:
        command = words([RELEASE, *argv])
        try:
            done = subprocess.run(command, cwd=folder, env=plain_environment(env), stdin=subprocess.DEVNULL,
                                  capture_output=True, timeout=PATIENCE)
        except subprocess.TimeoutExpired as hung:
            self.fail(f"still running after {PATIENCE} s: {command}\n{hung.stderr}")
        result = Done(command, done.returncode, done.stdout, done.stderr)
        self.assertIn(result.code, tuple(expect), result)
        return result

    def prepare(self, scenario: Scenario) -> dict[str, str]:
        """The folder as it is before the command; returns its fingerprint."""
        if self.now != self.fingerprint(scenario.files):
            shutil.rmtree(self.work, ignore_errors=True)
            shutil.copytree(scenario.files, self.work)
            self.now = self.fingerprint(self.work)
        self.log.unlink(missing_ok=True)
        return dict(self.now)

    def run_injected(self, scenario: Scenario, injection: Injection | None = None,
                     expect: Iterable[int] = CODES) -> tuple[Done, list[Call]]:
        self.now = None
        done = self.run_release(scenario.argv, self.work, environment(self.work, self.log, injection, self.always), expect)
        self.now = self.fingerprint(self.work)
        return done, read_log(self.log)

    def calls_of(self, scenario: Scenario) -> list[Call]:
        """What a run calls where nothing fails."""
        before = self.prepare(scenario)
        done, calls = self.run_injected(scenario, expect=(0,))
        self.check_result(scenario, before, done)
        return calls

    # -- verdicts ---------------------------------------------------------------------------------------------------

    def check_result(self, scenario: Scenario, before: dict[str, str], done: Done, unlink_failed: bool = False) -> None:
        """What has to hold after a run that was not killed."""
        after = self.now or {}
        if done.code == 0:
            self.assert_published(scenario, before, done)
            return
        self.assertTrue(done.err.strip(), f"no message: {done}")
        if unlink_failed:  # what cannot be removed stays, under no name that matters
            after = {name: content for name, content in after.items() if not scenario.is_left_over(name) or name in before}
        self.assertEqual(after, before, f"files appeared, vanished or changed: {done}")

    def assert_published(self, scenario: Scenario, before: dict[str, str], done: object) -> None:
        """The new output is there, right and proven, and nothing else has changed."""
        after = self.now or {}
        self.assertIn(scenario.output, after, f"the output is missing: {done}")
        others = {name: content for name, content in before.items() if not scenario.is_ours(name)}
        self.assertEqual({name: content for name, content in after.items() if not scenario.is_ours(name)}, others, done)
        state = tuple(f"{name} {content}" for name, content in sorted(after.items()))
        if state in scenario.known_good:
            return
        self.assert_holds_reference(scenario, done)
        scenario.known_good.add(state)

    def assert_holds_reference(self, scenario: Scenario, done: object) -> None:
        if scenario.is_raw:
            self.assertEqual(sha256(self.work / scenario.output), sha256(scenario.reference), done)
            return
        self.assert_sound(self.work / scenario.output)
        self.run_tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", self.work / scenario.output, scenario.reference)
        proven = self.plain("verify", scenario.output, folder=self.work, expect=CODES)
        self.assertEqual(proven.code, 0, f"after\n{done}\n{proven}")

    def check_killed(self, scenario: Scenario, before: dict[str, str], where: str) -> None:
        """The old state or the new one; and the next run succeeds, and clears up."""
        after = self.now or {}
        old = scenario.output not in after or after[scenario.output] == before.get(scenario.output)
        if old:
            self.assertEqual({name: content for name, content in after.items() if not scenario.is_ours(name)},
                             {name: content for name, content in before.items() if not scenario.is_ours(name)}, where)
            self.assertEqual(scenario.output in after, scenario.output in before, f"{where}: the old output is gone")
            if scenario.output in after:
                proven = self.plain("verify", scenario.output, folder=self.work, expect=CODES)
                self.assertEqual(proven.code, 0, f"killed at {where}; {sorted(after)}\n{proven}")
        else:
            self.assert_published(scenario, before, where)
        argv = scenario.argv if old or "--force" in scenario.argv else [*scenario.argv, "--force"]
        done = self.run_release(argv, self.work, {}, CODES)
        self.now = self.fingerprint(self.work)
        self.assertEqual(done.code, 0, f"the next run, after a kill at {where}; there was {sorted(after)}\n{done}")
        self.assert_published(scenario, before, done)
        self.assertEqual([name for name in self.now if scenario.is_left_over(name)], [], f"left from a kill at {where}")

    # -- many of them -----------------------------------------------------------------------------------------------

    def fail_calls(self, scenario: Scenario, functions: str, effect: str, numbers: Iterable[int] | None = None,
                   repeat: bool = False) -> int:
        """Hits the calls with these numbers, or all, one in each run; returns how many there were to hit."""
        hits = 0
        where = f"{scenario.argv[0]} to {scenario.output}"
        for number in numbers or range(1, 100_000):
            injection = Injection(functions, number, effect, repeat)
            before = self.prepare(scenario)
            with self.subTest(call=str(injection), of=where):
                done, calls = self.run_injected(scenario, injection)
                hit = [call for call in calls if call.is_hit]
                hits += bool(hit)
                try:
                    self.check_result(scenario, before, done, unlink_failed=functions == "unlink")
                except AssertionError as error:
                    raise AssertionError(f"{injection}, {hit[0] if hit else 'not reached'}\n{error}") from None
            if not any(call.is_hit for call in read_log(self.log)):
                break
        return hits

    def kill_at(self, scenario: Scenario, functions: str, choose: Callable[[list[Call]], list[int]]) -> None:
        """Kills it at chosen ones of these calls: `choose` gets them all, and returns indices."""
        counted = [call for call in self.calls_of(scenario) if call.function in functions.split(",")
                   and call.path.startswith(str(self.work.resolve()))]
        self.assertTrue(counted)
        for index in choose(counted):
            before = self.prepare(scenario)
            with self.subTest(killed_at=str(counted[index]), argv=scenario.argv[0]):
                done, calls = self.run_injected(scenario, Injection(functions, index + 1, KILL), (*CODES, -signal.SIGKILL))
                hit = [call for call in calls if call.is_hit]
                if not hit:  # threads: a call more or less
                    self.check_result(scenario, before, done)
                    continue
                self.assertEqual(done.code, -signal.SIGKILL, done)
                self.check_killed(scenario, before, str(hit[0]))

    def fail_in_turn(self, scenario: Scenario, functions: Iterable[str] = ERRORS, thorough: str = "") -> None:
        """Of each of these functions that is called: the first call and the last, or all of those in `thorough`, and with
        QCHAIN_SOAK all of all, each with every error."""
        calls = self.calls_of(scenario)
        for function in functions:
            count = sum(call.function == function for call in calls)
            every = SOAK or function in thorough.split(",")
            numbers = None if SOAK else range(1, count + 1) if every else sorted({1, count})
            for effect in ERRORS[function] if SOAK else ERRORS[function][:1]:
                if count:
                    self.fail_calls(scenario, function, effect, numbers)
