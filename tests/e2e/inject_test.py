"""Each system call fails in its turn, and the process is killed at each: never a wrong image, never an exit 0 with
something missing, never a file destroyed, never a hang.

A fixed part of it runs always; QCHAIN_SOAK=1 in the environment runs all of it, which takes an hour or more.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
import unittest
from collections.abc import Iterable
from pathlib import Path

from harness import SOAK, Argument, end_process, environment as plain_environment, nbdkit, words
from injected import CODES, ERRORS, ON_FILES, PUBLICATION, READING, Injected, Scenario
from injector import RELEASE, SHORT, Call, Injection, environment, read_log

from qemu_tools import nbd_uri


class Errors(Injected):
    """One call fails."""

    def test_a_full_pull(self) -> None:
        self.fail_in_turn(self.scenario("full"), thorough="fsync,rename,link")

    def test_an_increment(self) -> None:
        functions = ERRORS if SOAK else [*READING, "rename", "link", "poll", "recv", "getrandom"]
        self.fail_in_turn(self.scenario("increment"), functions, thorough="access")

    def test_a_full_pull_that_replaces(self) -> None:
        self.fail_in_turn(self.scenario("replace"), ERRORS if SOAK else [*PUBLICATION.split(","), "open", "lock", "stat"],
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
            self.check_result(scenario, before, done)

    def test_a_chain_that_cannot_be_read(self) -> None:
        """Without the data there is no verdict about it."""
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
    """The order of writes and syncs."""

    def test_a_sync_that_fails(self) -> None:
        """Of a file: exit 3, and nothing is left. Of the folder, after the output has its name: a warning; before it, either."""
        for name in ("full", "replace", "restore raw", "restore qcow2"):
            scenario = self.scenario(name)
            plain = self.calls_of(scenario)
            syncs = [call for call in plain if call.function in ("fsync", "fdatasync")]
            committed = self.commit(scenario, plain)
            for effect in ("EIO", "EINVAL") if SOAK or name == "full" else ("EIO",):
                for number, sync in enumerate(syncs, 1):
                    with self.subTest(of=name, sync=str(sync), number=number, effect=effect):
                        before = self.prepare(scenario)
                        is_folder = sync.path == str(self.work.resolve())
                        if effect == "EINVAL" and is_folder:
                            continue  # a file system that does not sync folders
                        done, _ = self.run_injected(scenario, Injection("fsync,fdatasync", number, effect))
                        self.check_result(scenario, before, done)
                        allowed = (0,) if sync.begin > committed.end else (0, 3) if is_folder else (3,)
                        self.assertIn(done.code, allowed, done)
                        self.assertTrue(done.err, done)

    def test_the_order(self) -> None:
        for name in ("full", "increment", "replace", "restore raw", "restore qcow2", "compressed", "pull raw"):
            with self.subTest(of=name):
                scenario = self.scenario(name)
                self.check_order(scenario, self.calls_of(scenario))

    def commit(self, scenario: Scenario, calls: list[Call]) -> Call:
        """The calls that give the output its name."""
        for call in calls:
            if call.function in ("rename", "link") and Path(call.detail).name == scenario.output and call.result == "0":
                return call
        self.fail(f"nothing is renamed or linked to {scenario.output}")

    def names_of(self, call: Call, calls: list[Call]) -> set[str]:
        """The paths under which the file of a commit was known before it."""
        return {call.path} | {other.path for other in calls
                              if other.function == "link" and Path(other.detail).name == Path(call.path).name}

    def writes_to(self, named: Call, calls: list[Call]) -> list[Call]:
        """What this run has written to the file that gets a name."""
        return [call for call in calls if call.is_data and call.path in self.names_of(named, calls)]

    def assert_synced(self, paths: set[str], calls: list[Call], after: int, before: int, what: str) -> None:
        """Between two moments a file was synced, from beginning to end."""
        found = any(call.function in ("fsync", "fdatasync") and call.path in paths and call.result == "0"
                    and call.begin > after and call.end < before for call in calls)
        self.assertTrue(found, f"{what} is not synced:\n" + "\n".join(map(str, calls)))

    def check_order(self, scenario: Scenario, calls: list[Call]) -> None:
        """Data, sync, header, sync, name, sync of the folder; and the manifest is there before the image."""
        committed = self.commit(scenario, calls)
        image = self.names_of(committed, calls)
        writes = self.writes_to(committed, calls)
        header = None if scenario.is_raw else max((c for c in writes if c.offset == 0), key=lambda call: call.end)
        if header:
            data = max(call.end for call in writes if call is not header)
            self.assert_synced(image, calls, data, header.begin, "data before the header")
        self.assert_synced(image, calls, max(call.end for call in writes), committed.begin, "the output before its name")
        self.assert_synced({str(self.work.resolve())}, calls, committed.end, calls[-1].end + 1, "the folder")
        if header:
            first_name = next(call for call in calls if call.function in ("rename", "link")
                              and Path(call.detail).name.startswith(scenario.manifest) and self.writes_to(call, calls))
            self.assertLess(first_name.end, committed.begin, "the manifest comes after the image")
            written = max(call.end for call in self.writes_to(first_name, calls))
            self.assert_synced(self.names_of(first_name, calls), calls, written, first_name.begin, "the manifest")


class Kills(Injected):
    """SIGKILL: the old state or the new one, and the next run succeeds."""

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


class Signals(Injected):
    """SIGINT, SIGTERM and SIGHUP at chosen calls, also between a check of the flag and the wait that follows."""

    def test_while_a_server_is_silent(self) -> None:
        """Every wait for a server ends: for its greeting, for block status, and for data."""
        with socket.socket(socket.AF_UNIX) as mute:
            mute.bind(str(self.path("mute.sock")))
            mute.listen()
            self.end_all(nbd_uri("", self.path("mute.sock")), numbers=(1, 2))
        for delay in ("delay-read=600", "delay-extents=600"):
            with nbdkit(self.folder, "-r", "--filter=delay", "file", self.first, delay) as server:
                self.end_all(server.uri, numbers=range(1, 20) if SOAK else (2, 14))
                server.process.kill()  # it would wait for its delays

    def end_all(self, uri: str, numbers: Iterable[int]) -> None:
        commands = [["pull", uri, "-o", "out.qcow2"], ["pull", uri, "-o", "inc.qcow2", "--force"], ["digest", uri],
                    ["verify", "full.qcow2", "--against", uri]]
        names = ["SIGINT", "SIGTERM", "SIGHUP"]
        for at, argv in enumerate(commands):
            for number in numbers:
                for name in names if SOAK else names[(at + number) % 3:][:1]:
                    self.end(argv, Injection("poll", number, name))

    def end(self, argv: list[Argument], injection: Injection) -> None:
        """Runs a command in the folder of the chain until it gets the signal: at the call, or while it waits."""
        scenario = self.scenario("restore raw")
        before = self.prepare(scenario)
        with self.subTest(command=argv[0], call=str(injection)):
            process = subprocess.Popen(words([RELEASE, *argv]), cwd=self.work, stdin=subprocess.DEVNULL,
                                       env=plain_environment(environment(self.work, self.log, injection)),
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self.addCleanup(end_process, process)
            for _ in range(300):
                if process.poll() is not None or any(call.is_hit for call in read_log(self.log)):
                    break
                time.sleep(0.01)
            else:
                process.send_signal(signal.Signals[injection.effect])
            try:
                _, err = process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                self.fail("still running 10 s after the signal")
            self.assertIn(process.returncode, (130, 143), err)
            self.assertTrue(err)
            self.assertEqual(self.fingerprint(self.work), before)

    def test_at_any_call(self) -> None:
        """Either it ends with nothing left, or it was too late, and the output is there."""
        for name in ("full", "replace", "restore raw", "restore qcow2", "increment") if SOAK else ("replace",):
            scenario = self.scenario(name)
            functions = f"{ON_FILES},pread,poll,recv" if SOAK else PUBLICATION
            count = sum(call.function in functions.split(",") for call in self.calls_of(scenario))
            for number in range(1, count + 1):
                for effect in ("SIGINT", "SIGTERM", "SIGHUP") if SOAK else ("SIGTERM",):
                    injection = Injection(functions, number, effect)
                    before = self.prepare(scenario)
                    with self.subTest(of=name, call=str(injection)):
                        done, _ = self.run_injected(scenario, injection, expect=(0, 130, 143))
                        self.check_result(scenario, before, done)

    def test_commands_that_read(self) -> None:
        for argv in (["verify", "inc.qcow2"], ["check", "inc.qcow2"], ["digest", "inc.qcow2"], ["chaininfo", "inc.qcow2"]):
            scenario = self.scenario("restore raw")
            for number in range(1, 200) if SOAK else (1, 7):
                injection = Injection("pread", number, "SIGTERM")
                before = self.prepare(scenario)
                with self.subTest(command=argv[0], call=str(injection)):
                    self.run_release(argv, self.work, environment(self.work, self.log, injection), (0, 143))
                    self.assertEqual(self.fingerprint(self.work), before)


if __name__ == "__main__":
    unittest.main()
