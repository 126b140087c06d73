"""The installed library: an external program is built against it, out of tree, and backs up a disk.

QCHAIN_BUILD is the build of the preset `release`, with the target `libraries`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from harness import K, M, Case, nbdkit, qemu_nbd  # noqa: E402

HERE = Path(__file__).resolve().parent
BUILD = Path(os.environ.get("QCHAIN_BUILD") or HERE.parents[1] / "build/release")


class Library(Case):
    """One installation for all."""

    def setUp(self) -> None:
        super().setUp()
        self.prefix = self.path("prefix")
        self.run_tool("cmake", "--install", BUILD, "--prefix", self.prefix)

    def build_by_cmake(self) -> None:
        self.run_tool("cmake", "-S", HERE, "-B", self.path("out"), f"-DCMAKE_PREFIX_PATH={self.prefix}")
        self.run_tool("cmake", "--build", self.path("out"))

    def pkg_config(self, *words: str) -> list[str]:
        found = next(self.prefix.rglob("qchain.pc"))
        env = {**os.environ, "PKG_CONFIG_PATH": str(found.parent)}
        return subprocess.run(["pkg-config", *words, "qchain"], env=env, check=True, capture_output=True, text=True).stdout.split()

    def run_example(self, program: Path, *words: object) -> str:
        library = next(self.prefix.rglob("libqchain.so")).parent
        done = subprocess.run([str(program), *map(str, words)], env={**os.environ, "LD_LIBRARY_PATH": str(library)},
                              capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done)
        return done.stdout

    def test_an_external_program(self) -> None:
        """By CMake against both libraries, and by pkg-config; it pulls in two threads, and what it prints is true."""
        self.build_by_cmake()
        by_pkg_config = self.path("by_pkg_config")
        self.run_tool("c++", "-std=c++20", "-pthread", HERE / "example.cc", "-o", by_pkg_config, *self.pkg_config("--cflags", "--libs"))
        self.image("live.qcow2", "write -P 1 0 3M", size=8 * M)
        self.run_tool("qemu-img", "bitmap", "--add", "-g", 64 * K, "live.qcow2", "b0")
        for program in (self.path("out/example"), self.path("out/example_static"), by_pkg_config):
            with self.subTest(program=program.name), qemu_nbd(self.folder, "-r", "-t", "-e", "16", "-B", "b0", "-f", "qcow2", self.path("live.qcow2")) as server:
                folder = self.path(f"chains-{program.name}")
                for part in ("0", "1"):
                    (folder / part).mkdir(parents=True)
                said = [line.split() for line in self.run_example(program, folder, server.uri, "b0").splitlines()]
                self.assertEqual(len(said), 4, said)
                for path, digest, data, layers in said:
                    self.run_tool("qemu-img", "check", "-q", path)
                    printed = self.qchain("digest", path).out.split()[0]
                    self.assertEqual(digest, f"sha256:{printed}")
                    self.assertEqual(int(data), 3 * M if "full" in path else 0)
                    self.assertEqual(int(layers), 1 if "full" in path else 2)
                    self.qchain("verify", path)
                    self.run_tool("qemu-img", "compare", "-q", path, f"{path}.raw")

    def test_cancellation(self) -> None:
        self.build_by_cmake()
        with nbdkit(self.folder, "--filter=rate", "pattern", "64M", "rate=64M") as server:
            self.assertIn("interrupted", self.run_example(self.path("out/example"), "cancel", self.folder, server.uri))
        self.assertEqual(list(self.folder.glob("cancelled*")), [])

    def test_it_shows_nothing_but_its_interface(self) -> None:
        library = next(self.prefix.rglob("libqchain.so"))
        symbols = subprocess.run(["nm", "-DC", "--defined-only", library], check=True, capture_output=True, text=True).stdout
        for verb in ("qchain::pull(", "qchain::pull_raw(", "qchain::restore(", "qchain::verify(", "qchain::inspect(", "qchain::seal(",
                     "qchain::digest("):
            self.assertIn(verb, symbols)
        for inner in ("qchain::Chain::", "qchain::NbdExport::", "qchain::LayerBuild::"):
            self.assertNotIn(inner, symbols)


if __name__ == "__main__":
    unittest.main()
