"""Wrong assumptions: bitmaps that missed a change, other disks, modified parents, exports that are written to."""

from __future__ import annotations

import itertools
import os
import shutil
import unittest
from collections.abc import Sequence

from field import FieldCase
from gate import gate
from harness import K, M, Argument, Case, Done, nbdkit, qemu_nbd, spread

from export import Export


SIZE = 64 * M


class Trust(FieldCase):

    size = SIZE

    def right_or_refused(self, uri: str, *options: Argument, codes: Sequence[int] = (1,), out: str = "inc.qcow2",
                         parent: str = "full.qcow2", since: str = "c0") -> Done:
        """An increment that is right, or none."""
        done = self.qchain("pull", uri, "-o", out, "--parent", parent, "--since", since, "--checkpoint", "c1", *options, expect=(0, *codes))
        if done.code == 0:
            self.assert_right(out, uri)
        else:
            self.assert_says(done)
            self.assert_absent(out)
        self.clear(out)
        return done

    def clear(self, name: str = "inc.qcow2") -> None:
        for left in self.folder.glob(f"{name}*"):
            left.unlink()

    def refused(self, expect: int, uri: str, *options: Argument, says: Sequence[str] = (), parent: str = "full.qcow2") -> Done:
        return self.refuses(expect, "pull", uri, "-o", "inc.qcow2", "--parent", parent, "--since", "c0", "--checkpoint", "c1", *options, says=says)

    def warnings(self, done: Done) -> str:
        """On standard error, and in the document."""
        said = " ".join(done.json["warnings"]).lower()
        self.assertTrue(said, done)
        return said


class MissedChanges(Trust):
    """W5, T3: a dirty bitmap is not trusted blindly."""

    def snapshot(self, *writes: str) -> None:
        """An external snapshot: the bitmap is in the base, which takes no more writes."""
        shutil.copy(self.path("d.qcow2"), self.path("b.qcow2"))
        self.image("snap.qcow2", *writes, size=SIZE, backing="b.qcow2")

    def test_a_snapshot_s_writes(self) -> None:
        """Where the parent holds nothing, whatever is clean and not zero is found."""
        for writes in (["write -P 9 33M 64k"], ["write -P 9 33M 512"], [f"write -P 9 {SIZE - 512} 512"], ["write -P 9 4M 4k"],
                       ["write -P 9 8M 1M", "write -P 8 60M 512"]):
            self.snapshot(*writes)
            with self.subTest(writes=writes), self.serve("snap.qcow2", bitmap="c0") as server:
                done = self.increment(server.uri, "--json")
                self.assertIn("bitmap", self.warnings(done))
                self.assertIn("bitmap", done.err)
                self.assert_right("inc.qcow2", server.uri)
                self.clear()
                self.increment(server.uri, "--on-missed", "compare")
                self.assert_right("inc.qcow2", server.uri)
                self.clear()
                self.refused(1, server.uri, "--on-missed", "fail", says=["bitmap"])

    def test_over_what_the_parent_holds(self) -> None:
        """All of the parent's data is less than the sample."""
        for writes in (["write -P 9 0 64k"], ["write -P 9 3M 512"], [f"write -P 9 {4 * M - 512} 512"], ["write -z 2M 64k"]):
            self.snapshot(*writes)
            with self.subTest(writes=writes), self.serve("snap.qcow2", bitmap="c0") as server:
                self.increment(server.uri)
                self.assert_right("inc.qcow2", server.uri)
                self.clear()
                self.refused(1, server.uri, "--on-missed", "fail")

    def test_beside_what_is_dirty(self) -> None:
        self.write("write -P 3 1M 64k", "write -P 4 40M 64k")
        self.snapshot("write -P 9 1088k 64k", "write -P 9 41M 4k", "write -P 9 1M 512")
        with self.serve("snap.qcow2", bitmap="c0") as server:
            self.increment(server.uri)
            self.assert_right("inc.qcow2", server.uri)

    def test_everything_compared(self) -> None:
        """One block anywhere in a disk that is full of data."""
        self.image("dense.qcow2", f"write -P 1 0 {SIZE}", size=SIZE)
        with self.serve("dense.qcow2") as server:
            self.qchain("pull", server.uri, "-o", "dense0.qcow2", "--checkpoint", "c0")
        self.add_bitmap("c0", "dense.qcow2")
        for at in (23 * M + 64 * K + 512, 61 * M):
            self.image("top.qcow2", f"write -P 9 {at} 512", size=SIZE, backing="dense.qcow2")
            with self.subTest(at=at), self.serve("top.qcow2", bitmap="c0") as server:
                self.increment(server.uri, "--check-clean", "all", parent="dense0.qcow2")
                self.assert_right("inc.qcow2", server.uri)
                self.clear()
                self.increment(server.uri, "--check-clean", "1", parent="dense0.qcow2")
                self.assert_right("inc.qcow2", server.uri)
                self.clear()
                self.refused(1, server.uri, "--check-clean", "all", "--on-missed", "fail", parent="dense0.qcow2")

    def test_nothing_missed_is_nothing_said(self) -> None:
        self.write("write -P 3 1M 64k", "write -z 2M 128k", f"write -P 4 {SIZE - 64 * K} 64k")
        with self.serve(bitmap="c0") as server:
            for options in ([], ["--check-clean", "all"], ["--check-clean", "none"], ["--check-clean", "0.5"], ["--check-clean", "0"],
                            ["--on-missed", "fail", "--require-read-only"]):
                with self.subTest(options=options):
                    done = self.increment(server.uri, "--json", *options)
                    self.assertEqual(done.json["warnings"], [], done)
                    self.assertEqual(done.json["data_bytes"], 128 * K)
                    self.assert_right("inc.qcow2", server.uri)
                    self.clear()

    def test_options_that_are_wrong(self) -> None:
        with self.serve(bitmap="c0") as server:
            for options in (["--check-clean", "2"], ["--check-clean", "-0.1"], ["--check-clean", "some"], ["--check-clean", "nan"],
                            ["--check-clean", ""], ["--check-clean", "0.5x"], ["--on-missed", "ignore"]):
                with self.subTest(options=options):
                    self.refused(2, server.uri, *options, says=[options[0]])

    def test_a_parent_older_than_the_live_base(self) -> None:
        """--shallow takes the active layer for all that changed; the base has moved on since."""
        self.write("write -P 9 33M 64k", "write -P 9 1M 64k")
        self.snapshot("write -P 8 50M 64k")
        with self.serve("snap.qcow2", "-A") as server:
            shallow = ["pull", server.uri, "-o", "inc.qcow2", "--parent", "full.qcow2", "--shallow", "--since", "c0"]
            done = self.qchain(*shallow, "--json", expect=(0, 1))
            if done.code == 0:
                self.assertTrue(self.warnings(done))
                self.assert_right("inc.qcow2", server.uri)
            self.clear()
            self.refuses(1, *shallow, "--on-missed", "fail")

    def test_a_bitmap_that_was_switched_off(self) -> None:
        """As QEMU leaves one that it has forgotten to enable."""
        self.run_tool("qemu-img", "bitmap", "--disable", "d.qcow2", "c0")
        self.write("write -P 9 33M 64k", "write -P 9 2M 4k")
        with self.serve(bitmap="c0") as server:
            self.increment(server.uri)
            self.assert_right("inc.qcow2", server.uri)
            self.clear()
            self.refused(1, server.uri, "--on-missed", "fail")

    def test_the_wrong_bitmap(self) -> None:
        """A later one, under the name of the checkpoint."""
        self.write("write -P 9 33M 64k", "write -P 9 2M 4k")
        self.add_bitmap("later")
        self.write("write -P 9 10M 64k")
        with self.serve(bitmap="later") as server:
            self.right_or_refused(server.uri, "--bitmap", "later")
            self.refused(1, server.uri, "--bitmap", "later", "--on-missed", "fail")

    def test_other_formats_of_the_layer(self) -> None:
        self.snapshot("write -P 9 33M 64k")
        with self.serve("snap.qcow2", bitmap="c0") as server:
            for options in (["--compress", "zstd"], ["--extended-l2"], ["--cluster-size", "4K"], ["--cluster-size", "2M"],
                            ["--connections", "1", "--requests", "1"], ["--digest", "none"], ["--no-extents"]):
                with self.subTest(options=options):
                    self.increment(server.uri, *options)
                    self.assert_sound("inc.qcow2")
                    self.run_tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", self.path("inc.qcow2"), server.uri)
                    self.clear()


class OtherDisks(Trust):
    """W6: an increment of one disk onto the chain of another."""

    def other(self, *writes: str, name: str = "other.qcow2") -> None:
        self.image(name, *writes, size=SIZE)
        self.add_bitmap("c0", name)

    def test_of_equal_size_and_checkpoint(self) -> None:
        for writes in (["write -P 7 0 4M"], ["write -P 1 0 4M", "write -P 7 2M 64k"], ["write -P 7 0 4M", "write -P 7 60M 4M"], [],
                       [f"write -P 7 0 {SIZE}"]):
            self.other(*writes)
            self.write("write -P 5 32M 64k", image="other.qcow2")
            for options in ([], ["--on-missed", "fail"], ["--json"]):
                self.clear()
                with self.subTest(writes=writes, options=options), self.serve("other.qcow2", bitmap="c0") as server:
                    # If much of the sample differs, it is not a missed change; a little cannot be distinguished.
                    if not writes or len(writes) == 2 and "2M" in writes[1] and options != ["--on-missed", "fail"]:
                        self.right_or_refused(server.uri, *options)
                    else:
                        done = self.refused(1, server.uri, *options)
                        if options == ["--json"]:
                            self.assertEqual(done.json["exit_code"], 1)

    def test_another_export(self) -> None:
        self.write("write -P 5 32M 64k")
        for name in ("vdb", "vda2", "VDA", "vd"):
            self.clear()
            with self.subTest(name=name), self.serve("d.qcow2", "-x", name, bitmap="c0") as server:
                uri = server.uri.replace("///vda?", f"///{name}?")
                self.refused(1, uri, says=["--allow-other-export", "vda"])
                done = self.increment(uri, "--allow-other-export", "--json")
                self.assertEqual(done.json["export"], name)
                self.assert_right("inc.qcow2", uri)
                self.clear()

    def test_another_export_of_another_disk(self) -> None:
        """The option accepts the name, not other content."""
        self.other("write -P 7 0 4M")
        with self.serve("other.qcow2", "-x", "vdb", bitmap="c0") as server:
            self.refused(1, server.uri.replace("///vda?", "///vdb?"), "--allow-other-export")

    def test_another_size(self) -> None:
        self.image("other.qcow2", "write -P 7 0 4M", size=2 * SIZE)
        self.add_bitmap("c0", "other.qcow2")
        with self.serve("other.qcow2", bitmap="c0") as server:
            self.right_or_refused(server.uri)

    def test_another_checkpoint(self) -> None:
        with self.serve(bitmap="c0") as server:
            self.refuses((1, 2), "pull", server.uri, "-o", "inc.qcow2", "--parent", "full.qcow2", "--since", "c9", says=["c9", "c0"])


class LiveExports(Trust):
    """W7: a writable export is not a point in time."""

    def pulls(self, uri: str) -> list[list[Argument]]:
        return [["pull", uri, "-o", "out"], ["pull", uri, "-o", "out", "--format", "raw"],
                ["pull", uri, "-o", "out", "--parent", "full.qcow2", "--since", "c0"]]

    def test_one_that_can_be_written_to(self) -> None:
        with self.serve(bitmap="c0", writable=True) as server:
            for argv in self.pulls(server.uri):
                self.clear("out")
                with self.subTest(argv=argv):
                    done = self.qchain(*argv, "--json")
                    if "raw" not in argv:  # which has no identity
                        self.assertEqual(done.json["source"], "writable export")
                    self.assertIn("writ", self.warnings(done))
                    self.assert_says(done, "writ")
                    self.clear("out")
                    self.assert_says(self.qchain(*argv), "writ")
                    self.clear("out")
                    self.refuses(2, *argv, "--require-read-only", says=["writ"])

    def test_a_read_only_one(self) -> None:
        with self.serve(bitmap="c0") as server:
            for argv in self.pulls(server.uri):
                self.clear("out")
                with self.subTest(argv=argv):
                    done = self.qchain(*argv, "--json", "--require-read-only")
                    self.assertNotEqual(done.json.get("source"), "writable export")
                    self.assertEqual(done.json["warnings"], [])
                    self.clear("out")

    def test_other_servers(self) -> None:
        self.path("disk").write_bytes(b"data" * M)
        with nbdkit(self.folder, "file", self.path("disk")) as server:
            self.assertEqual(self.qchain("pull", server.uri, "-o", "out", "--json").json["source"], "writable export")
            self.clear("out")
            self.refuses(2, "pull", server.uri, "-o", "out", "--require-read-only")
        with nbdkit(self.folder, "--readonly", "file", self.path("disk")) as server:
            self.qchain("pull", server.uri, "-o", "out", "--require-read-only")

    def test_refused_before_it_is_read(self) -> None:
        log = self.path("log")
        with nbdkit(self.folder, "--filter=log", "pattern", "4M", f"logfile={log}") as server:
            pass
        with nbdkit(self.folder, "--filter=log", "memory", "4M", f"logfile={log}") as server:
            self.qchain("pull", server.uri, "-o", "out", "--require-read-only", expect=2)
        self.assertNotIn(" Read ", log.read_text())


class Parents(Trust):
    """T4: a parent that was modified since it was pulled."""

    def setUp(self) -> None:
        super().setUp()
        self.write("write -P 2 1M 64k", "write -P 3 32M 64k")

    def test_written_to(self) -> None:
        for write in ("write -P 9 0 64k", "write -P 9 3M 512", "write -P 9 50M 64k", "write -z 0 64k", "discard 0 1M", "write -P 9 1M 64k"):
            with self.subTest(write=write), self.serve(bitmap="c0") as server:
                self.path("parent").mkdir(exist_ok=True)
                for name in ("full.qcow2", "full.qcow2.manifest"):
                    shutil.copy2(self.path(name), self.path(f"parent/{name}"))
                self.write(write, image="parent/full.qcow2")
                self.refused(1, server.uri, parent="parent/full.qcow2", says=["full.qcow2"])
                self.refused(1, server.uri, "--json", "--check-clean", "all", parent="parent/full.qcow2", says=["full.qcow2"])

    def test_written_to_with_its_time_put_back(self) -> None:
        for write in ("write -P 9 0 64k", "write -P 9 3M 512"):
            with self.subTest(write=write), self.serve(bitmap="c0") as server:
                self.clear()
                self.keep("full.qcow2")
                before = self.path("full.qcow2").stat()
                self.write(write, image="full.qcow2")
                os.utime(self.path("full.qcow2"), ns=(before.st_atime_ns, before.st_mtime_ns))
                self.refused(1, server.uri, says=["full.qcow2"])
                self.put_back("full.qcow2")

    def keep(self, name: str) -> None:
        shutil.copy2(self.path(name), self.path(f"kept-{name}"))

    def put_back(self, name: str) -> None:
        shutil.copy2(self.path(f"kept-{name}"), self.path(name))

    def test_copied_without_its_times(self) -> None:
        for ways in (["cp"], ["cp", "--preserve=timestamps"], ["cp", "--sparse=never"], ["cp", "--reflink=auto"]):
            with self.subTest(ways=ways), self.serve(bitmap="c0") as server:
                for name in ("full.qcow2", "full.qcow2.manifest"):
                    self.run_tool(*ways, name, f"copy-{name}")
                # Its manifest goes by the name of its image.
                self.path("copies").mkdir(exist_ok=True)
                for name in ("full.qcow2", "full.qcow2.manifest"):
                    self.run_tool("mv", f"copy-{name}", f"copies/{name}")
                done = self.increment(server.uri, "--json", parent="copies/full.qcow2", out="copies/inc.qcow2")
                self.assertEqual(done.json["warnings"], [])
                self.assert_right("copies/inc.qcow2", server.uri)
                shutil.rmtree(self.path("copies"))

    def test_touched(self) -> None:
        for when in (0, 1 << 31, 4 << 30):
            with self.subTest(when=when), self.serve(bitmap="c0") as server:
                os.utime(self.path("full.qcow2"), (when, when))
                self.increment(server.uri)
                self.assert_right("inc.qcow2", server.uri)
                self.clear()

    def test_without_a_manifest(self) -> None:
        """With its modification time reset: not noticed. With another one: everything is compared."""
        self.path("full.qcow2.manifest").unlink()
        with self.serve(bitmap="c0") as server:
            self.increment(server.uri)
            self.assert_sound("inc.qcow2")
            self.run_tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", self.path("inc.qcow2"), server.uri)
            self.clear()
            os.utime(self.path("full.qcow2"), (0, 0))
            self.increment(server.uri)
            self.run_tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", self.path("inc.qcow2"), server.uri)

    def test_without_a_manifest_and_written_to(self) -> None:
        self.path("full.qcow2.manifest").unlink()
        for write in ("write -P 9 50M 64k", "write -P 9 0 64k", "write -z 3M 64k", "write -P 9 1M 64k"):
            with self.subTest(write=write), self.serve(bitmap="c0") as server:
                self.keep("full.qcow2")
                self.write(write, image="full.qcow2")
                done = self.qchain("pull", server.uri, "-o", "inc.qcow2", "--parent", "full.qcow2", "--since", "c0", expect=(0, 1))
                if done.code == 0:
                    self.run_tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", self.path("inc.qcow2"), server.uri)
                else:
                    self.assert_absent()
                self.clear()
                self.put_back("full.qcow2")

    def test_changed_in_its_metadata_alone(self) -> None:
        """A bitmap or a snapshot added with QEMU's tools: refused, or right."""
        for change in (["qemu-img", "bitmap", "--add", "full.qcow2", "x"], ["qemu-img", "snapshot", "-c", "x", "full.qcow2"],
                       ["qemu-img", "amend", "-f", "qcow2", "-o", "lazy_refcounts=on", "full.qcow2"], ["truncate", "-s", "+64K", "full.qcow2"]):
            with self.subTest(change=change), self.serve(bitmap="c0") as server:
                self.keep("full.qcow2")
                self.run_tool(*change)
                self.right_or_refused(server.uri, codes=(1, 2))
                self.put_back("full.qcow2")

    def test_one_further_below(self) -> None:
        with self.serve(bitmap="c0") as server:
            self.increment(server.uri)
        self.add_bitmap("c1")
        self.write("write -P 4 34M 64k")
        with self.serve(bitmap="c1") as server:
            for write in ("write -P 9 0 64k", "write -P 9 50M 64k"):
                with self.subTest(write=write):
                    self.keep("full.qcow2")
                    self.write(write, image="full.qcow2")
                    self.refuses(1, "pull", server.uri, "-o", "top.qcow2", "--parent", "inc.qcow2", "--since", "c1", says=["full.qcow2"])
                    self.put_back("full.qcow2")
            self.qchain("pull", server.uri, "-o", "top.qcow2", "--parent", "inc.qcow2", "--since", "c1")
            self.assert_right("top.qcow2", server.uri)

    def test_another_layer_in_its_place(self) -> None:
        """Of the same disk at another time, with its manifest."""
        with self.serve() as server:
            self.qchain("pull", server.uri, "-o", "later.qcow2", "--checkpoint", "c0")
        self.write("write -P 4 34M 64k")
        for ending in ("", ".manifest"):
            self.run_tool("cp", f"later.qcow2{ending}", f"full.qcow2{ending}")
        with self.serve(bitmap="c0") as server:
            self.right_or_refused(server.uri, codes=(1, 5))

    # -- T15 --------------------------------------------------------------------------------------------------------

    def test_moved_away_or_replaced_in_the_middle(self) -> None:
        self.write("write -P 4 8M 8M")

        def move() -> None:
            self.path("full.qcow2").rename(self.path("moved.qcow2"))

        def replace() -> None:
            self.image("fresh.qcow2", "write -P 9 0 1M", size=SIZE)
            self.path("fresh.qcow2").replace(self.path("full.qcow2"))

        def replace_by_a_copy() -> None:
            """Another inode with equal content is another file; right or refused."""
            self.run_tool("cp", "full.qcow2", "fresh.qcow2")
            self.path("fresh.qcow2").replace(self.path("full.qcow2"))

        def relink() -> None:
            self.path("full.qcow2").rename(self.path("moved.qcow2"))
            self.path("full.qcow2").symlink_to("d.qcow2")

        for change in (move, replace, relink, replace_by_a_copy):
            for options in ([], ["--check-clean", "none"]):
                with self.subTest(change=change.__name__, options=options):
                    shutil.copy2(self.path("full.qcow2"), self.path("kept.qcow2"))
                    with self.serve(bitmap="c0") as server, gate(self.folder, server, 2 * M) as held:
                        process = self.launch("pull", held.uri, "-o", "inc.qcow2", "--parent", "full.qcow2", "--since", "c0", *options)
                        self.assertTrue(held.held.wait(60), "the pull has ended before it was half done")
                        change()
                        held.open()
                        done = self.finish(process, (0, 3) if change is replace_by_a_copy else 3)
                        if done.code == 0:
                            self.assert_right("inc.qcow2", server.uri)
                        else:
                            self.assert_says(done, "full.qcow2")
                            self.assert_absent()
                    self.clear()
                    self.path("full.qcow2").unlink(missing_ok=True)
                    shutil.move(self.path("kept.qcow2"), self.path("full.qcow2"))
                    self.path("moved.qcow2").unlink(missing_ok=True)

    def test_written_to_in_the_middle(self) -> None:
        self.write("write -P 4 8M 8M")
        with self.serve(bitmap="c0") as server, gate(self.folder, server, 2 * M) as held:
            process = self.launch("pull", held.uri, "-o", "inc.qcow2", "--parent", "full.qcow2", "--since", "c0")
            self.assertTrue(held.held.wait(60))
            self.run_tool("dd", "if=/dev/urandom", "of=full.qcow2", "bs=64k", "seek=8", "count=4", "conv=notrunc")
            held.open()
            done = self.finish(process, (1, 3))
            self.assert_says(done, "full.qcow2")
            self.assert_absent()


class Reconnects(Trust):
    """T5: what answers after a reconnect is another disk of equal size."""

    def test_another_disk(self) -> None:
        self.image("dense.qcow2", f"write -P 5 0 {SIZE}", size=SIZE)
        self.image("other.qcow2", f"write -P 6 0 {SIZE}", size=SIZE)
        for after in (4 * M, 50 * M):
            for options in spread(([], ["--connections", "2"], ["--format", "raw"], ["--connections", "4", "--requests", "2"]), 2):
                with self.subTest(after=after, options=options), self.serve("dense.qcow2") as server, self.serve("other.qcow2") as other, \
                        gate(self.folder, server, after) as held:
                    process = self.launch("pull", held.uri, "-o", "out", *options)
                    self.assertTrue(held.held.wait(60))
                    held.divert(other.uri)
                    held.open()
                    done = self.finish(process, (0, 3, 6))
                    if done.code == 0:
                        format = "raw" if "raw" in options else "qcow2"
                        self.run_tool("qemu-img", "compare", "-f", format, "-F", "raw", self.path("out"), server.uri)
                    else:
                        self.assert_says(done)
                        self.assert_absent("out")
                    self.clear("out")

    def test_the_same_disk(self) -> None:
        """A connection that is cut, and made again to the same server, costs nothing but time."""
        self.image("dense.qcow2", f"write -P 5 0 {SIZE}", size=SIZE)
        with self.serve("dense.qcow2") as server, gate(self.folder, server, 20 * M) as held:
            process = self.launch("pull", held.uri, "-o", "out", "--connections", "2")
            self.assertTrue(held.held.wait(60))
            held.divert(server.uri)
            held.open()
            done = self.finish(process, (0, 3, 6))
            if done.code == 0:
                self.assert_right("out", server.uri)
            else:
                self.assert_absent("out")


class Resized(Case):
    """T2, T23: a disk that was cut and grown back, or resized, between two checkpoints."""

    def begin(self, size: int, cluster_size: int = 64 * K, base: bool = False, fill: int = 8 * M) -> None:
        if base:
            self.path("base.raw").write_bytes(b"base" * (size // 4))
        self.export = Export.start(self.folder, size, cluster_size=cluster_size, base_raw=self.path("base.raw") if base else None)
        self.addCleanup(self.export.stop)
        self.export.io(f"write -P 1 0 {fill}")
        self.qchain("pull", self.export.backup("c0"), "-o", "full.qcow2", "--checkpoint", "c0")
        self.export.end()

    def pull_and_prove(self, *options: Argument) -> None:
        uri = self.export.backup("c1", "c0")
        self.export.reference(self.path("reference.raw"))
        self.qchain("pull", uri, "-o", "inc.qcow2", "--parent", "full.qcow2", "--since", "c0", "--checkpoint", "c1", *options)
        self.assert_sound("inc.qcow2")
        self.assert_holds("inc.qcow2", "reference.raw")
        self.qchain("verify", "inc.qcow2", "--against", uri)
        self.export.end()

    def test_cut_and_grown_back(self) -> None:
        """Inside a cluster of an overlay, where it cannot be deduced: everything has to be compared."""
        cases = itertools.product((64 * K, 1 * M, 2 * M), (4 * M + 32 * K, 4 * M + 512, 4 * M - 4 * K))
        for cluster_size, cut in spread(cases, 4):
            with self.subTest(cluster_size=cluster_size, cut=cut):
                self.setUp()
                self.begin(8 * M, cluster_size, base=True)
                self.export.resize(cut)
                self.export.resize(8 * M)
                self.pull_and_prove("--check-clean", "all")
                self.export.stop()

    def test_cut_and_grown_back_to_another_size(self) -> None:
        for size in (8 * M + 512, 8 * M - 512, 16 * M):
            with self.subTest(size=size):
                self.setUp()
                self.begin(8 * M, base=True)
                self.export.resize(4 * M + 32 * K)
                self.export.resize(size)
                self.pull_and_prove()
                self.export.stop()

    def test_resized(self) -> None:
        cases = itertools.product((32 * M, 48 * M, 17 * M + 512), ([], ["--check-clean", "none"]))
        for size, options in spread(cases, 4):
            with self.subTest(size=size, options=options):
                self.setUp()
                self.begin(24 * M, fill=24 * M)
                self.export.resize(size)
                self.export.io(f"write -P 7 {size - 512} 512", "write -P 7 1M 64k")
                self.pull_and_prove(*options)
                self.export.stop()

    def test_a_missed_write_of_a_live_disk(self) -> None:
        """T3: where the parent holds nothing, and over what it holds."""
        for write in ("write -P 9 20M 64k", "write -P 9 31M 512", "write -P 9 2M 64k", "write -z 1M 64k"):
            with self.subTest(write=write):
                self.setUp()
                self.begin(32 * M, fill=4 * M)
                with self.export.blind("c0"):
                    self.export.io(write)
                self.pull_and_prove()
                self.export.stop()


if __name__ == "__main__":
    unittest.main()
