"""Each remedy that `qchain check` prints, carried out on an image that has the fault."""

from __future__ import annotations

import os
import unittest
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import K, Case

CLUSTER = 64 * K
OFFSET = 0x00FF_FFFF_FFFF_FE00
COPIED = 1 << 63
BITMAPS = bytes.fromhex("23852875")

CHECK_ALL = "qemu-img check -r all"
CHECK_LEAKS = "qemu-img check -r leaks"
SALVAGE = "qemu-img convert --salvage -O qcow2 IMAGE COPY"
CONVERT = "qemu-img convert -O qcow2 IMAGE COPY"
RESTORE = "qchain restore IMAGE COPY --format qcow2"


class Remedies(Case):

    def setUp(self) -> None:
        super().setUp()
        self.made = 0

    # -- images -------------------------------------------------------------------------------------------------------

    def make(self, *commands: str, options: Sequence[str] = ("cluster_size=64K",)) -> Path:
        self.made += 1
        return self.image(f"{self.made}.qcow2", *(commands or ("write -P 1 0 64k", "write -P 2 64k 64k")), options=options)

    def word(self, image: Path, at: int, length: int = 8) -> int:
        return int.from_bytes(image.read_bytes()[at:at + length], "big")

    def put(self, image: Path, at: int, value: int, length: int = 8) -> None:
        with image.open("r+b") as file:
            file.seek(at)
            file.write(value.to_bytes(length, "big"))

    def l1(self, image: Path) -> int:
        return self.word(image, 40)

    def l2(self, image: Path) -> int:
        return self.word(image, self.l1(image)) & OFFSET

    def refcount(self, image: Path, host: int) -> int:
        return self.word(image, self.word(image, 48)) + 2 * (host // CLUSTER)

    def data(self, image: Path) -> int:
        return self.word(image, self.l2(image)) & OFFSET

    def with_snapshot(self) -> tuple[Path, int]:
        image = self.make()
        self.run_tool("qemu-img", "snapshot", "-c", "before", image)
        self.run_tool("qemu-io", "-f", "qcow2", "-c", "write -P 3 0 64k", image)
        return image, self.word(image, 64)

    def with_bitmap(self) -> tuple[Path, int]:
        """And where the bitmaps extension is."""
        image = self.make()
        self.run_tool("qemu-img", "bitmap", "-f", "qcow2", "--add", image, "b")
        return image, image.read_bytes().index(BITMAPS)

    # -- carrying them out --------------------------------------------------------------------------------------------

    def findings(self, image: Path) -> list[dict[str, Any]]:
        done = self.qchain("check", image, "--strict", "--decode", "--json", expect=(0, 1))
        self.assertEqual(done.json["problems"], [])
        return done.json["layers"][0]["findings"]

    def assert_sound_for_both(self, image: Path) -> None:
        self.assertEqual(self.findings(image), [])
        self.run_tool("qemu-img", "check", "-q", "-f", "qcow2", image)
        self.run_tool("qemu-io", "-r", "-f", "qcow2", "-c", "read 0 1M", image)

    def heal(self, flaw: str, image: Path, remedy: str) -> None:
        """The fault is found, its remedy is the one named, and it works: on the image, or in a copy."""
        with self.subTest(flaw=flaw, image=image.name, remedy=remedy):
            found = [finding for finding in self.findings(image) if finding["code"] == flaw]
            self.assertTrue(found, self.findings(image))
            self.assertIn(remedy, found[0]["remedy"])
            argv: list[str | Path]
            if "COPY" in remedy:
                copy = self.path(f"{image.name}.copy")
                argv = [image if word == "IMAGE" else copy if word == "COPY" else word for word in remedy.split()]
                if argv[0] == "qchain":
                    self.qchain(*argv[1:], expect=(0, 4))  # 4: no manifest
                else:
                    self.run_tool(*argv)
                self.assert_sound_for_both(copy)
                return
            codes = (0, 1, 2, 3)  # of what it found before it repaired it
            done = self.qchain(*remedy.split()[1:], image, program=Path("/usr/bin/qemu-img"), expect=codes)
            self.assertNotIn(flaw, [finding["code"] for finding in self.findings(image)], done)
            self.assert_sound_for_both(image)

    # -- the faults ---------------------------------------------------------------------------------------------------

    def test_the_mark(self) -> None:
        image = self.make()
        self.put(image, 72, 2)
        self.heal("marked-corrupt", image, CHECK_ALL)

    def test_reserved_bits(self) -> None:
        for place in (self.l1, self.l2, lambda i: self.word(i, 48)):
            image = self.make()
            self.put(image, place(image), self.word(image, place(image)) | 2)
            self.heal("reserved-bits", image, CONVERT)

    def test_offsets_that_are_not_aligned(self) -> None:
        for place, value in ((self.l1, None), (self.l2, None), (self.l2, 0x8000000000052a01)):
            image = self.make()
            self.put(image, place(image), value if value is not None else self.word(image, place(image)) + 512)
            self.heal("misaligned", image, SALVAGE)

    def test_offsets_past_the_end(self) -> None:
        for place in (self.l1, self.l2):
            image = self.make()
            self.put(image, place(image), COPIED | 0x700000000)
            self.heal("past-end", image, SALVAGE)
        image, table = self.with_snapshot()
        self.put(image, table, 0x7000000)
        self.heal("past-end", image, SALVAGE)

    def test_files_that_were_cut(self) -> None:
        image = self.make()
        os.truncate(image, image.stat().st_size - 4096)
        self.heal("truncated", image, SALVAGE)
        image = self.make("write -c -P 1 0 64k", "write -c -P 2 64k 64k")
        os.truncate(image, image.stat().st_size - 30)
        self.heal("truncated", image, SALVAGE)
        image = self.make("write -z 0 64k", "write -z 1M 64k")
        os.truncate(image, image.stat().st_size - CLUSTER + 128)
        self.heal("truncated", image, SALVAGE)

    def test_a_refcount_table_that_was_cut(self) -> None:
        image = self.make()
        self.put(image, 48, 0x7000000)
        self.heal("truncated", image, CHECK_ALL)

    def test_entries_and_streams(self) -> None:
        image = self.make(options=("cluster_size=64K", "extended_l2=on"))
        self.put(image, self.l2(image) + 8, self.word(image, self.l2(image) + 8) | 1 << 32)
        self.heal("bad-entry", image, SALVAGE)
        image = self.make("write -P 1 0 64k", "write -c -P 2 64k 64k", "write -P 3 128k 64k")
        self.put(image, self.word(image, self.l2(image) + 8) & 0x003FFFFFFFFFFFFF, 0xFFFFFFFF, 4)
        self.heal("bad-stream", image, SALVAGE)

    def test_two_owners(self) -> None:
        image = self.make()
        self.put(image, self.l2(image), self.word(image, self.l1(image)))
        self.heal("overlap", image, RESTORE)

    def test_refcounts(self) -> None:
        for flaw, value, remedy in (("refcount-low", 0, CHECK_ALL), ("refcount-high", 5, CHECK_LEAKS)):
            image = self.make()
            self.put(image, self.refcount(image, self.data(image)), value, 2)
            self.heal(flaw, image, remedy)
        image = self.make()
        self.put(image, self.word(image, 48), 0x700000000)
        self.heal("past-end", image, SALVAGE)
        image = self.make()
        self.put(image, self.word(image, 48) + 8, self.word(image, self.word(image, 48)))
        self.heal("bad-refcount-block", image, CHECK_ALL)
        image = self.make()
        self.put(image, 56, 0, 4)
        self.heal("bad-refcount-block", image, CHECK_ALL)

    def test_stale_refcounts(self) -> None:
        for repair in ([], ["qemu-io", "-f", "qcow2", "-c", "quit"]):
            image = self.make(options=("cluster_size=64K", "lazy_refcounts=on"))
            self.put(image, 72, 1)
            self.put(image, self.refcount(image, self.data(image)), 0, 2)
            if repair:
                self.run_tool(*repair, image)
                self.assert_sound_for_both(image)
            else:
                self.heal("refcount-stale", image, CHECK_ALL)

    def test_refcounts_past_the_end(self) -> None:
        image = self.make()
        self.put(image, self.refcount(image, image.stat().st_size + 3 * CLUSTER), 1, 2)
        [found] = self.findings(image)
        self.assertEqual(found["code"], "refcount-past-end")
        self.assertIn("truncate --size=END IMAGE", found["remedy"])
        self.assertIn(CHECK_LEAKS, found["remedy"])
        self.run_tool("truncate", f"--size={found['host_offset'] + found['host_length']}", image)
        self.run_tool("qemu-img", "check", "-q", "-r", "leaks", image)
        self.assert_sound_for_both(image)

    def test_copied_bits(self) -> None:
        image = self.make()
        self.put(image, self.l2(image), self.word(image, self.l2(image)) & ~COPIED)
        self.heal("copied-missing", image, CHECK_ALL)
        image = self.make()
        self.put(image, self.l2(image) + 8, self.word(image, self.l2(image)))
        self.heal("copied-set", image, CHECK_ALL)
        image = self.make("write -c -P 1 0 64k")
        self.put(image, self.l2(image), self.word(image, self.l2(image)) | COPIED)
        self.heal("copied-set", image, RESTORE)

    def test_snapshots(self) -> None:
        for offset, value, length, remedy in ((36, 8, 4, CHECK_ALL), (36, 0xFFFFFFF0, 4, CHECK_ALL),
                                              (8, 0x7FFFFFFF, 4, RESTORE)):
            image, table = self.with_snapshot()
            self.put(image, table + offset, value, length)
            self.heal("bad-snapshot", image, remedy)
        image, _ = self.with_snapshot()
        self.put(image, 64, 0x7000000)
        self.heal("bad-snapshot", image, RESTORE)

    def test_bitmaps(self) -> None:
        """QEMU opens none of the first three at all."""
        for offset, value, length in ((24, 0x7000000, 8), (8, 9, 4)):
            image, extension = self.with_bitmap()
            self.put(image, extension + offset, value, length)
            self.run_tool("qemu-img", "bitmap", "--remove", image, "b", expect=1)
            self.heal("bad-bitmap", image, RESTORE)
        image, extension = self.with_bitmap()
        self.put(image, extension + 4, 25, 4)
        self.heal("bad-extension", image, RESTORE)
        for offset, value, length in ((16, 9, 1), (0, 0x7000000, 8), (12, 4, 4)):
            image, extension = self.with_bitmap()
            self.put(image, self.word(image, extension + 24) + offset, value, length)
            self.heal("bad-bitmap", image, RESTORE)


if __name__ == "__main__":
    unittest.main()
