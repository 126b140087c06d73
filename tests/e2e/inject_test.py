"""Each system call fails in its turn, and the process is killed at each: never a wrong image, never an exit 0 with
something missing, never a file destroyed, never a hang.

A fixed part of it runs always; QCHAIN_SOAK=1 in the environment runs all of it, which takes about an hour.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import unittest
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness import K, M, Case, Done, environment as plain_environment, nbdkit, qemu_nbd, sha256, words
from injector import KILL, RELEASE, SHORT, SOAK, Call, Injection, environment, read_log, require_programs

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
    "fcntl": ["ENOLCK", "EINVAL", "EAGAIN"], "fstat": ["EIO"], "stat": ["EACCES"], "access": ["EACCES"], "fstatvfs": ["EIO"],
    "fsetxattr": ["EOPNOTSUPP"], "lseek": ["EINVAL"], "ioctl": ["ENOTTY"], "dup": ["EMFILE"], "mmap": ["ENOMEM"],
    "pthread_create": ["EAGAIN"], "io_setup": ["EAGAIN"], "io_submit": ["EAGAIN", "EIO"], "io_getevents": ["EIO", "EINTR"],
    "aio_result": ["EIO", "ENOSPC", SHORT], "socket": ["EMFILE"], "bind": ["EADDRINUSE", "EPERM"],
    "connect": ["ECONNREFUSED"], "recv": ["ECONNRESET", SHORT, "EINTR"], "send": ["EPIPE", SHORT, "EINTR"],
    "poll": ["EINTR", "ENOMEM"], "getrandom": ["EIO", SHORT]}
READING = ["open", "pread", "fstat", "stat", "fcntl", "access"]


@dataclass
class Scenario:
    """A command that makes `output` in a folder with `files`."""

    argv: list[str]
    output: str
    reference: Path  # what the output describes, as a raw file
    files: Path  # a folder with what is there before
    force: bool = False
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
    """Runs scenarios under injections, and judges what they leave."""

    always: Mapping[str, str] = {}  # what the file system does not have

    def setUp(self) -> None:
        require_programs()
        super().setUp()
        self.work = self.path("work")
        self.log = self.path("calls.log")
        self.now: dict[str, str] | None = None  # what lies in `work`
        self.make_disks()

    # -- scenarios --------------------------------------------------------------------------------------------------

    def make_disks(self) -> None:
        """A disk, the same disk later with a bitmap of what changed, and the chain of both."""
        (self.folder / "servers").mkdir()
        self.first, self.second = self.path("first.raw"), self.path("second.raw")
        self.image("servers/live.qcow2", "write -P 1 0 256k", "write -P 2 400k 60k", "write -P 3 1023k 1k", size=SIZE)
        live = self.path("servers/live.qcow2")
        self.run_tool("qemu-img", "convert", "-O", "raw", live, self.first)
        self.run_tool("qemu-img", "bitmap", "--add", live, "b0")
        self.run_tool("qemu-io", "-f", "qcow2", "-c", "write -P 5 192k 150k", "-c", "write -z 64k 64k", "-c",
                      "write -P 6 800k 4k", live)
        self.run_tool("qemu-img", "convert", "-O", "raw", live, self.second)
        for server, name in ((nbdkit(self.folder, "-r", "file", self.first), "full"),
                             (qemu_nbd(self.folder, "-B", "b0", "-f", "qcow2", live), "changed")):
            setattr(self, name, self.enterContext(server).uri)
        for name in ("empty", "one", "two"):
            (self.folder / name).mkdir()
        self.plain("pull", self.full, "-o", "one/full.qcow2", "--checkpoint", "c0", "--cluster-size", "16K")
        shutil.copytree(self.path("one"), self.path("two"), dirs_exist_ok=True)
        self.plain("pull", self.changed, "-o", "two/inc.qcow2", "--parent", "two/full.qcow2", "--since", "c0")
        self.path("two/other.txt").write_text("of somebody else")

    def scenario(self, name: str) -> Scenario:
        one, two, empty = self.path("one"), self.path("two"), self.path("empty")
        connections = ["--connections", "2", "--requests", "4"]
        full = ["pull", self.full, "--cluster-size", "16K", "--layer-id", NEW_LAYER, *connections]
        changed = ["--parent", "full.qcow2", "--since", "c0", "--layer-id", NEW_LAYER, *connections]
        restore = ["restore", "inc.qcow2"]
        match name:
            case "full":
                return Scenario([*full, "-o", "out.qcow2"], "out.qcow2", self.first, empty)
            case "increment":
                return Scenario(["pull", self.changed, "-o", "out.qcow2", *changed], "out.qcow2", self.second, one)
            case "replace":
                return Scenario([*full, "-o", "inc.qcow2", "--force"], "inc.qcow2", self.first, two, force=True)
            case "replace increment":
                return Scenario(["pull", self.changed, "-o", "inc.qcow2", "--force", *changed], "inc.qcow2", self.second, two,
                                force=True)
            case "restore raw":
                return Scenario([*restore, "out.raw"], "out.raw", self.second, two)
            case "restore qcow2":
                return Scenario([*restore, "out.qcow2", "--format", "qcow2"], "out.qcow2", self.second, two)
            case "compressed":
                return Scenario([*full, "-o", "out.qcow2", "--compress", "zstd"], "out.qcow2", self.first, empty)
            case "pull raw":
                return Scenario(["pull", self.full, "-o", "out.raw", "--format", "raw", *connections], "out.raw", self.first, empty)
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
        done = self.run_release(scenario.argv, self.work, environment(self.work, self.log, injection, self.always), expect)
        self.now = self.fingerprint(self.work)
        return done, read_log(self.log)

    def calls_of(self, scenario: Scenario) -> list[Call]:
        """What a run calls where nothing fails."""
        before = self.prepare(scenario)
        done, calls = self.run_injected(scenario, expect=(0,))
        self.judge(scenario, before, done)
        return calls

    # -- verdicts ---------------------------------------------------------------------------------------------------

    def judge(self, scenario: Scenario, before: dict[str, str], done: Done, unlink_failed: bool = False) -> None:
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

    def judge_killed(self, scenario: Scenario, before: dict[str, str], where: str) -> None:
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
                    self.judge(scenario, before, done, unlink_failed=functions == "unlink")
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
                    self.judge(scenario, before, done)
                    continue
                self.assertEqual(done.code, -signal.SIGKILL, done)
                self.judge_killed(scenario, before, str(hit[0]))

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


class Errors(Injected):
    """One call fails."""

    def test_a_full_pull(self) -> None:
        self.fail_in_turn(self.scenario("full"), thorough="fsync,rename,link")

    def test_an_increment(self) -> None:
        functions = ERRORS if SOAK else [*READING, "rename", "link", "poll", "recv", "getrandom"]
        self.fail_in_turn(self.scenario("increment"), functions)

    def test_a_full_pull_that_replaces(self) -> None:
        self.fail_in_turn(self.scenario("replace"), ERRORS if SOAK else [*PUBLICATION.split(","), "open", "fcntl", "stat"],
                          thorough=PUBLICATION)

    def test_a_restore(self) -> None:
        functions = ERRORS if SOAK else [*READING, "fsync", "link", "rename", "pthread_create", "aio_result", "io_submit"]
        self.fail_in_turn(self.scenario("restore raw"), functions)

    def test_a_restore_to_qcow2(self) -> None:
        self.fail_in_turn(self.scenario("restore qcow2"), ERRORS if SOAK else ["fsync", "rename", "link", "pread"],
                          thorough="rename,link")

    @unittest.skipUnless(SOAK, "QCHAIN_SOAK")
    def test_the_others(self) -> None:
        for name in ("replace increment", "compressed", "pull raw"):
            self.fail_in_turn(self.scenario(name))

    def test_memory(self) -> None:
        """An allocation that fails: every 53rd with QCHAIN_SOAK."""
        for name in ("full", "restore qcow2"):
            self.fail_calls(self.scenario(name), "malloc", "ENOMEM", range(1, 1_000_000, 53) if SOAK else (1, 200, 1000))

    def test_what_never_works_again(self) -> None:
        """From one call on: a full disk, no more threads, no more descriptors, a device that has gone."""
        cases = [("pwrite,write,aio_result", "ENOSPC"), ("fsync", "EIO"), ("pthread_create", "EAGAIN"), ("open,tmpfile", "EMFILE"),
                 ("io_submit", "EIO"), ("io_getevents", "EIO"), ("recv", "ECONNRESET"), ("pread", "EIO")]
        for name in ("full", "increment", "restore qcow2") if SOAK else ("increment",):
            for functions, effect in cases:
                self.fail_calls(self.scenario(name), functions, effect, None if SOAK else (1, 3), repeat=True)

    def test_everything_is_short(self) -> None:
        """Reads, writes and messages that do half of what was asked for are no errors."""
        for name in ("full", "increment", "restore raw", "restore qcow2"):
            scenario = self.scenario(name)
            before = self.prepare(scenario)
            functions = "read,pread,write,pwrite,recv,send,io_submit,aio_result"
            done, _ = self.run_injected(scenario, Injection(functions, 1, SHORT, repeat=True), expect=(0,))
            self.judge(scenario, before, done)

    def test_a_chain_that_cannot_be_read(self) -> None:
        """Without the bytes there is no verdict about them."""
        scenario = self.scenario("restore raw")
        for argv in (["verify", "inc.qcow2"], ["check", "inc.qcow2"], ["digest", "inc.qcow2"]):
            for number in range(1, 10_000) if SOAK else (1, 5, 9):
                injection = Injection("pread", number, "EIO", repeat=True)
                with self.subTest(command=argv[0], call=str(injection)):
                    before = self.prepare(scenario)
                    done = self.run_release(argv, self.work, environment(self.work, self.log, injection), CODES)
                    self.assertEqual(self.fingerprint(self.work), before, done)
                    if not any(call.is_hit for call in read_log(self.log)):
                        break
                    self.assertIn(done.code, (3, 4, 5), done)


class Syncs(Injected):
    """What is durable before what."""

    def test_a_sync_that_fails(self) -> None:
        """Of a file: exit 3, and nothing is left. Of the folder, after the output has its name: a warning; before it, either."""
        for name in ("full", "replace", "restore raw", "restore qcow2"):
            scenario = self.scenario(name)
            plain = self.calls_of(scenario)
            syncs = [call for call in plain if call.function == "fsync"]
            committed = self.commit(scenario, plain)
            for effect in ("EIO", "EINVAL") if SOAK or name == "full" else ("EIO",):
                for number, sync in enumerate(syncs, 1):
                    with self.subTest(of=name, sync=str(sync), number=number, effect=effect):
                        before = self.prepare(scenario)
                        is_folder = sync.path == str(self.work.resolve())
                        if effect == "EINVAL" and is_folder:
                            continue  # a file system that does not sync folders
                        done, _ = self.run_injected(scenario, Injection("fsync", number, effect))
                        self.judge(scenario, before, done)
                        allowed = (0,) if sync.begin > committed.end else (0, 3) if is_folder else (3,)
                        self.assertIn(done.code, allowed, done)
                        self.assertTrue(done.err, done)

    def test_the_order(self) -> None:
        for name in ("full", "increment", "replace", "restore raw", "restore qcow2", "compressed", "pull raw"):
            with self.subTest(of=name):
                scenario = self.scenario(name)
                self.check_order(scenario, self.calls_of(scenario))

    def commit(self, scenario: Scenario, calls: list[Call], name: str = "") -> Call:
        """What gives the output its name."""
        for call in calls:
            if call.function in ("rename", "link") and Path(call.detail).name == (name or scenario.output) and call.result == "0":
                return call
        self.fail(f"nothing is renamed or linked to {name or scenario.output}")

    def names_of(self, call: Call, calls: list[Call]) -> set[str]:
        """The paths under which the file of a commit was known before it."""
        return {call.path} | {other.path for other in calls
                              if other.function == "link" and Path(other.detail).name == Path(call.path).name}

    def assert_synced(self, paths: set[str], calls: list[Call], after: int, before: int, what: str) -> None:
        """Between two moments a file was synced, from beginning to end."""
        found = any(call.function in ("fsync", "fdatasync") and call.path in paths and call.result == "0"
                    and call.begin > after and call.end < before for call in calls)
        self.assertTrue(found, f"{what} is not synced:\n" + "\n".join(map(str, calls)))

    def check_order(self, scenario: Scenario, calls: list[Call]) -> None:
        """Data, sync, header, sync, name, sync of the folder; and the manifest is there before the image."""
        committed = self.commit(scenario, calls)
        image = self.names_of(committed, calls)
        writes = [call for call in calls if call.is_data and call.path in image]
        header = None if scenario.is_raw else max((c for c in writes if c.offset == 0), key=lambda call: call.end)
        if header:
            data = max(call.end for call in writes if call is not header)
            self.assert_synced(image, calls, data, header.begin, "data before the header")
        self.assert_synced(image, calls, max(call.end for call in writes), committed.begin, "the output before its name")
        self.assert_synced({str(self.work.resolve())}, calls, committed.end, calls[-1].end + 1, "the folder")
        if header:
            first_name = next(call for call in calls if call.function in ("rename", "link")
                              and Path(call.detail).name.startswith(scenario.manifest))
            self.assertLess(first_name.end, committed.begin, "the manifest comes after the image")
            written = max(call.end for call in calls if call.is_data and call.path in self.names_of(first_name, calls))
            self.assert_synced(self.names_of(first_name, calls), calls, written, first_name.begin, "the manifest")


class Kills(Injected):
    """SIGKILL: the old state or the new one, and the next run is not in trouble."""

    def at_publication(self, calls: list[Call]) -> list[int]:
        """From the last writes on."""
        first = next(i for i, call in enumerate(calls) if call.function in ("fsync", "fdatasync"))
        return list(range(first, len(calls)))

    def kill_in(self, *names: str) -> None:
        for name in names:
            if SOAK:
                self.kill_at(self.scenario(name), ON_FILES, lambda calls: list(range(len(calls))))
            else:
                self.kill_at(self.scenario(name), PUBLICATION, self.at_publication)

    def test_a_new_image(self) -> None:
        self.kill_in("full", *(["increment", "restore raw", "restore qcow2", "compressed", "pull raw"] if SOAK else []))

    def test_a_replaced_image(self) -> None:
        self.kill_in("replace", *(["replace increment"] if SOAK else []))


class WithoutUnnamedFiles(Kills):
    """The same on a file system without O_TMPFILE, as NFS and FUSE: the output has a temporary name."""

    always = {"tmpfile": "EOPNOTSUPP"}

    def test_errors(self) -> None:
        self.fail_in_turn(self.scenario("replace"), ERRORS if SOAK else ["rename", "unlink"])


if __name__ == "__main__":
    unittest.main()
