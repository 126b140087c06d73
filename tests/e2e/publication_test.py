"""How a result gets its name: names beside it, file systems that lack something, crashes, and what is refused before the first byte."""

from __future__ import annotations

import os
import re
import shutil
import unittest
from collections.abc import Callable, Sequence
from pathlib import Path

from field import NO_LINKS, PULLS, DestinationCase, faulty
from gate import gate
from harness import SOAK, K, M, Argument, nbdkit, pairs, sha256, spread

FORCE = ([], ["--force"])


class NamesBeside(DestinationCase):
    """W8, T8, T9: every path that is written or removed is checked first."""

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
            for kind, argv, force, present in pairs(kinds, self.writers(server.uri, "out"), FORCE, (False, True)):
                with self.subTest(kind=kind, argv=argv, force=force, present=present):
                    self.clear()
                    kinds[kind](self.path("out.manifest"))
                    if present:
                        self.path("out").write_bytes(b"old")
                    # What is raw needs no manifest; it may be written beside the file, and not over it.
                    raw = "qcow2" not in argv[3:] if argv[0] == "restore" else "raw" in argv
                    beside = self.node("out.manifest"), self.path("precious").read_bytes()
                    if raw:
                        self.qchain(*argv, *force, expect=(0, 2), timeout=30)
                    else:
                        self.refuses_node("out.manifest", [*argv, *force], says=[] if present and not force else ["out.manifest"])
                    self.assertEqual((self.node("out.manifest"), self.path("precious").read_bytes()), beside)
                    self.assertFalse(self.path("nowhere").exists())

    def test_names_that_look_temporary(self) -> None:
        endings = (".partial", ".manifest.partial", ".manifest.previous", ".previous", ".tmp")
        with self.serve() as server:
            for ending, kind, faults, argv, force in pairs(endings, ("hard link", "link", "folder"), ("", NO_LINKS),
                                                           self.writers(server.uri, "out"), FORCE):
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
                    self.qchain(*argv, *force, env=faulty(self, faults) if faults else None)
                    self.assertEqual(self.node(beside.name), before)
                    self.assertEqual(self.path("precious").read_bytes(), b"precious")
                    self.assert_written("out")

    def test_a_part_of_the_chain(self) -> None:
        """A layer, its manifest or its log, by any path, and of any layer below."""
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
            attempts = [argv for target in targets
                        for argv in (["pull", server.uri, "-o", target, "--parent", "inc.qcow2", "--since", "c1"],
                                     ["restore", "inc.qcow2", target], ["restore", "inc.qcow2", target, "--format", "qcow2"])]
            for argv in spread(attempts, len(targets)):
                with self.subTest(argv=argv):
                    self.refuses(2, *argv, "--force", says=["chain"] if "hard" not in " ".join(map(str, argv)) else [])
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
                        done = self.finish(process, (2, 3) if appears == "out" else (0, 2, 3))
                        self.assertEqual(self.path(appears).read_bytes(), b"another's")
                        self.path(appears).unlink()
                        if done.code != 0:
                            self.assert_absent("out")

    def test_a_cleaner_in_the_middle(self) -> None:
        """It replaces the temporary file with an incomplete one: that is never published."""
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
        """cp -al during a pull: a later one that is killed destroys nothing that was published."""
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


class LackingFileSystems(DestinationCase):
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
        for faults in spread(("link=EPERM", "tmpfile=EOPNOTSUPP", "rename-flags=EINVAL", "link=EPERM,tmpfile=EOPNOTSUPP", NO_LINKS,
                              "link=EOPNOTSUPP,tmpfile=EINVAL,rename-flags=ENOSYS"), 3):
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
        """The message has the cause and the remedy, and nothing is left."""
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
        with self.serve() as server:
            for faults in ("fsync-file=EINVAL", "fsync-file=EIO", "fsync-file@2=EIO", f"fsync-file=EINVAL,{NO_LINKS}"):
                for argv in self.writers(server.uri, "out"):
                    with self.subTest(faults=faults, argv=argv):
                        self.clear()
                        env = faulty(self, faults)
                        done = self.qchain(*argv, env=env, expect=3 if "@" not in faults else (0, 3))
                        if done.code == 3:
                            self.assert_absent("out")

    def test_a_folder_that_cannot_be_made_durable(self) -> None:
        """Either nothing is published, or it is and the exit says so."""
        with self.serve() as server:
            for faults, argv, force in pairs(("fsync-dir=EIO", "fsync-dir@2=EIO", "fsync-dir=EINVAL"),
                                             self.writers(server.uri, "out"), FORCE):
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
        """A file system without locks does not mean that another process has the file open."""
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


class Crashes(DestinationCase):
    """T7: killed at any call that publishes, the name has the old image or the new one, with a matching manifest."""

    CALLS = ("fsync-file", "fsync-dir", "rename", "rename-flags", "link", "unlink")

    def setUp(self) -> None:
        super().setUp()
        with self.serve() as server:
            self.qchain("pull", server.uri, "-o", "old.qcow2")
        self.flat("old.qcow2", "old.raw")
        self.write("write -P 2 1M 128k")
        self.run_tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "d.qcow2", "new.raw")
        self.old_or_new = sha256(self.path("old.raw")), sha256(self.path("new.raw"))

    def begin(self) -> None:
        self.clear()
        for ending in ("", ".manifest"):
            shutil.copy(self.path(f"old.qcow2{ending}"), self.path(f"out{ending}"))

    def assert_old_or_new(self, expect: int | Sequence[int] = 0) -> None:
        done = self.qchain("verify", "out", expect=expect)
        flat = self.flat("out", "out.flat")
        self.assertIn(sha256(flat), self.old_or_new, done)
        flat.unlink()

    def crash_everywhere(self, argv: Sequence[Argument], how: Sequence[str], expect: int | Sequence[int], fallback: str = "") -> None:
        """Tries again after each crash with SOAK, and after every third without."""
        crashes = 0
        for call in self.CALLS:
            for what in how:
                for number in range(1, 20):
                    with self.subTest(call=call, number=number, what=what, fallback=fallback):
                        self.begin()
                        faults = f"{call}@{number}={what}{fallback}"
                        done = self.qchain(*argv, "--force", env=faulty(self, faults), expect=(-9, 0, 3))
                        self.assert_old_or_new(expect)
                        crashes += done.code != 0
                        if done.code != 0 and not SOAK and crashes % 3 != 0:
                            continue
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
        """A new image without a manifest is not compared with the old one's."""
        with self.serve() as server:
            self.crash_everywhere(["pull", server.uri, "-o", "out", "--digest", "none"], ["KILL"], (0, 4))

    def test_restore(self) -> None:
        with self.serve() as server:
            self.qchain("pull", server.uri, "-o", "new.qcow2")
        self.crash_everywhere(["restore", "new.qcow2", "out", "--format", "qcow2"], ["KILL", "EIO"], 0)


class BeforeTheFirstByte(DestinationCase):
    """T16 and T24: invalid requests are refused before the disk is read."""

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
            counts = re.findall(r" Read .*count=(0x[0-9a-f]+)", log.read_text(errors="replace") if log.exists() else "")
            self.assertLess(sum(int(count, 16) for count in counts), 64 * K, f"more than a look at the server's answer times: {done}")
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
        """Refused at once, or usable as a parent."""
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
