"""A virtual machine boots from a backup and finds the disk of that point in time."""

from __future__ import annotations

import os
import struct
import unittest
from pathlib import Path

from harness import M, Case

from export import Export

SIZE = 4 * M
SECTOR = 512
# Two adjacent sectors in two clusters: one is only in the full image, the other in every layer.
OLD, NEW = M - SECTOR, M

# What the boot code writes to the port of isa-debug-exit ends QEMU with twice that and one.
PRINTED, UNREADABLE = 0x10, 0x20


def boot_sector() -> bytes:
    """16-bit code, loaded at 7c00, that reads both sectors, sends their text to the first serial port, and ends the machine."""
    code = bytes([
        0x31, 0xC0,              # 7c00  xor ax, ax
        0x8E, 0xD8,              # 7c02  mov ds, ax
        0x8E, 0xD0,              # 7c04  mov ss, ax
        0xBC, 0x00, 0x7C,        # 7c06  mov sp, 0x7c00
        0xFC,                    # 7c09  cld
        0xB4, 0x42,              # 7c0a  mov ah, 0x42        read from the disk in dl,
        0xBE, 0x40, 0x7C,        # 7c0c  mov si, 0x7c40      as the packet says
        0xCD, 0x13,              # 7c0f  int 0x13
        0xB0, UNREADABLE,        # 7c11  mov al, UNREADABLE
        0x72, 0x1F,              # 7c13  jc 0x7c34
        0xBE, 0x00, 0x7E,        # 7c15  mov si, 0x7e00
        0xAC,                    # 7c18  lodsb               the next byte,
        0x84, 0xC0,              # 7c19  test al, al         unless it is zero,
        0x74, 0x0F,              # 7c1b  jz 0x7c2c
        0x88, 0xC4,              # 7c1d  mov ah, al
        0xBA, 0xFD, 0x03,        # 7c1f  mov dx, 0x3fd       once the line
        0xEC,                    # 7c22  in al, dx
        0xA8, 0x20,              # 7c23  test al, 0x20       can take it,
        0x74, 0xFB,              # 7c25  jz 0x7c22
        0xB2, 0xF8,              # 7c27  mov dl, 0xf8
        0x88, 0xE0,              # 7c29  mov al, ah
        0xEE,                    # 7c2b  out dx, al          is sent to port 3f8
        0x81, 0xFE, 0x00, 0x82,  # 7c2c  cmp si, 0x8200      up to the end of both sectors
        0x72, 0xE6,              # 7c30  jb 0x7c18
        0xB0, PRINTED,           # 7c32  mov al, PRINTED
        0xE6, 0xF4,              # 7c34  out 0xf4, al        isa-debug-exit
        0xF4,                    # 7c36  hlt
        0xEB, 0xFD,              # 7c37  jmp 0x7c36
    ])
    packet = struct.pack("<BBHHHQ", 16, 0, 2, 0x7E00, 0, OLD // SECTOR)  # two sectors, to 0000:7e00, from this one on
    return (code.ljust(0x40, b"\0") + packet).ljust(SECTOR - 2, b"\0") + b"\x55\xaa"


class Boot(Case):

    def setUp(self) -> None:
        super().setUp()
        self.export = Export.start(self.folder, SIZE)
        self.addCleanup(self.export.stop)

    def write(self, offset: int, content: bytes) -> None:
        source = self.path("source")
        source.write_bytes(content)
        self.export.io(f"write -s {source} {offset} {len(content)}")

    def boot(self, image: str) -> str:
        """Starts a machine from the image, which stays as it is, and returns what it says."""
        before = self.fingerprint()
        said = self.path("serial")
        self.run_tool("timeout", "100", "qemu-system-x86_64", "-accel", "tcg", "-m", "16", "-nodefaults", "-display", "none",
                      "-no-reboot", "-snapshot", "-drive", f"file={image},format=qcow2,if=ide", "-serial", f"file:{said}",
                      "-device", "isa-debug-exit,iobase=0xf4,iosize=4", expect=2 * PRINTED + 1)
        text = said.read_text()
        said.unlink()
        self.assertEqual(self.fingerprint(), before)
        return text

    def pull_and_boot(self, *options: str) -> None:
        """A full image and two increments, of which each is started."""
        self.write(0, boot_sector())
        self.write(OLD, b"of old, ".ljust(SECTOR, b"\0"))
        images: list[str] = []
        for number, word in enumerate(["first", "second", "third"]):
            self.write(NEW, word.encode().ljust(SECTOR, b"\0"))
            # Whole compressible clusters, and others.
            self.write(2 * M, bytes(range(32)) * 4096 + os.urandom(64 << 10))
            image, since = f"{word}.qcow2", f"check{number - 1}"
            parent = ["--parent", images[-1], "--since", since] if images else []
            uri = self.export.backup(f"check{number}", since if images else None)
            done = self.qchain("pull", uri, "-o", image, "--checkpoint", f"check{number}", *parent, *options, "--json").json
            self.export.end()
            self.assertEqual(done["compressed_clusters"] > 0, "--compress" in options)
            images.append(image)
        for image in images:
            self.assertEqual(self.boot(image), f"of old, {Path(image).stem}")
            self.assert_sound(image)

    def test_from_plain_layers(self) -> None:
        self.pull_and_boot()

    def test_from_compressed_layers(self) -> None:
        self.pull_and_boot("--compress", "zstd")

    def test_from_layers_with_subclusters(self) -> None:
        self.pull_and_boot("--extended-l2")

    def test_from_both_in_one(self) -> None:
        self.pull_and_boot("--extended-l2", "--compress", "zlib")


if __name__ == "__main__":
    unittest.main()
