"""The content digest, computed without qchain: blkhash with blocks of 64 KiB.

H( H(B0) || H(B1) || ... || LE64(length) ), the last block hashed at its real length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

BLOCK = 64 << 10


def of_file(path: Path, algorithm: str = "sha256") -> str:
    """The digest of a file's bytes, in hex."""
    with path.open("rb") as file:
        return of_blocks(iter(lambda: file.read(BLOCK), b""), algorithm)


def of_bytes(content: bytes, algorithm: str = "sha256") -> str:
    return of_blocks((content[at:at + BLOCK] for at in range(0, len(content), BLOCK)), algorithm)


def of_blocks(blocks: Iterable[bytes], algorithm: str) -> str:
    zeros = bytes(BLOCK)
    digest_of_zeros = hashlib.new(algorithm, zeros).digest()
    outer = hashlib.new(algorithm)
    length = 0
    for block in blocks:
        length += len(block)
        outer.update(digest_of_zeros if block == zeros else hashlib.new(algorithm, block).digest())
    outer.update(length.to_bytes(8, "little"))
    return outer.hexdigest()
