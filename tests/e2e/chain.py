"""A chain of three layers, for tests of what reads chains."""

from __future__ import annotations

import contextlib
import tempfile
import unittest
from collections.abc import Iterator
from pathlib import Path

from harness import M, Case, qemu_nbd

from export import Export

SIZE = 4 * M
LAYERS = ["check3.qcow2", "check2.qcow2", "check1.qcow2"]
WRITES = [["write -P 1 0 2M", "write -P 2 3M 64k"],
          ["write -P 3 1M 128k", "write -z 0 64k"],
          ["write -P 4 1088k 128k", "write -P 5 64k 4k", f"write -P 6 {SIZE - 512} 512"]]


class ChainTest(Case):
    """A chain of three layers and what the disk was at each: check1.qcow2 and check1.raw to check3.qcow2 and check3.raw."""

    _built: Path | None = None  # by the first test; the others copy it

    def build(self) -> None:
        if ChainTest._built is None:
            self._pull_the_layers()
            built = tempfile.TemporaryDirectory(prefix="qc-")
            unittest.addModuleCleanup(built.cleanup)
            ChainTest._built = Path(built.name)
            self._copy(self.folder, ChainTest._built)
        else:
            self._copy(ChainTest._built, self.folder)

    def _copy(self, source: Path, target: Path) -> None:
        for name in source.glob("check?.*"):
            self.run_tool("cp", "--sparse=always", name, target)

    def _pull_the_layers(self) -> None:
        with Export.start(self.folder, SIZE) as export:
            for number, writes in enumerate(WRITES, 1):
                export.io(*writes)
                uri = export.backup(f"check{number}", f"check{number - 1}" if number > 1 else None)
                export.reference(self.path(f"check{number}.raw"))
                parent = ["--parent", f"check{number - 1}.qcow2", "--since", f"check{number - 1}"] if number > 1 else []
                self.qchain("pull", uri, "-o", f"check{number}.qcow2", "--checkpoint", f"check{number}", *parent)
                export.end()

    def forget_manifests(self) -> None:
        for manifest in self.folder.glob("*.manifest"):
            manifest.unlink()

    @contextlib.contextmanager
    def live(self, image: str = "check3.raw", format: str = "raw") -> Iterator[str]:
        """An export of a file's content."""
        with qemu_nbd(self.folder, "-f", format, self.path(image)) as server:
            yield server.uri

    def all_refuse(self, expect: int | tuple[int, ...], image: str, says: list[str]) -> None:
        """No command reads through such a chain, and none leaves anything behind; chaininfo still shows it."""
        with self.live() as uri:
            for argv in (["verify", image], ["verify", image, "--against", uri], ["digest", image],
                         ["restore", image, "out.raw", "--no-verify"], ["chaininfo", image],
                         ["pull", uri, "-o", "next.qcow2", "--parent", image, "--since", "check3", "--bitmap", "none"]):
                with self.subTest(command=" ".join(argv[:2])):
                    codes = (expect, 2) if argv[0] == "pull" else expect  # 2: the bitmap does not exist either
                    done = self.refuses(codes, *argv)
                    if done.code != 2:
                        self.assert_says(done, *says)
