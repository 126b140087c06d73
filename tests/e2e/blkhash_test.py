"""The independent digest implementation, which other tests compare qchain with, against the published vectors."""

from __future__ import annotations

import unittest

import blkhash

VECTORS = [
    (b"", "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc"),
    (b"hello", "337355feb53a5309d5aba92796223c2c84ffab930e706c01fef573a2722545e6"),
    (b"A" * (64 << 10), "2e3a5f57d5e726ee5de62db1a85ff816f4fa6ea4627807d9a51bdc4c883e165e"),
    (bytes(64 << 10), "8ab067ab7939a3d4f40cbb118956c07c06aeae2d075d6e0a2ebbb94bd42832af"),
    (bytes(32 << 10), "842d185f0ff348b0d689e184bddc47f69a19032a6934c89b879479f1e86f9d56"),
    (b"hello".ljust(1 << 20, b"\0") + b"goodbye", "61b8f3a8cea76e16eeff7ce27f1b7711c1f1e437f5038cec17773772a4bded28"),
]


class Blkhash(unittest.TestCase):

    def test_the_published_vectors(self) -> None:
        for content, digest in VECTORS:
            with self.subTest(length=len(content)):
                self.assertEqual(blkhash.of_bytes(content), digest)


if __name__ == "__main__":
    unittest.main()
