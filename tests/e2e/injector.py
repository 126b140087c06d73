"""Failing system calls: tests/inject's library in front of a release build, and the record of what was called.

QCHAIN_RELEASE is the program, and QCHAIN_INJECT the library; a sanitizer and a preloaded library do not go together.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]
RELEASE = Path(os.environ.get("QCHAIN_RELEASE") or _REPOSITORY / "build/release/cli/qchain").resolve()
LIBRARY = Path(os.environ.get("QCHAIN_INJECT") or _REPOSITORY / "build/dev/tests/inject/libqchain_inject.so").resolve()

KILL, SHORT = "kill", "short"


def require_programs() -> None:
    for path in (RELEASE, LIBRARY):
        if not path.exists():
            raise FileNotFoundError(f"{path}: not there; build it, or name another one in QCHAIN_RELEASE and QCHAIN_INJECT")


@dataclass(frozen=True)
class Injection:
    """What is done to the n-th call of some functions (comma-separated): KILL, SHORT, a signal by its
    name, or an error by its name."""

    functions: str
    number: int
    effect: str
    repeat: bool = False  # to every call after it, too

    def __str__(self) -> str:
        return f"{self.functions} {self.number}{' and on' if self.repeat else ''}: {self.effect}"


def environment(folder: Path, log: Path, injection: Injection | None = None,
                always: Mapping[str, str] | None = None) -> dict[str, str]:
    """For a run of which the calls on files in `folder` count; without an injection they are only recorded. The functions
    in `always` always fail, with an error by its name: what the file system does not have."""
    found = {"LD_PRELOAD": str(LIBRARY), "INJECT_PATH": str(folder.resolve()), "INJECT_LOG": str(log),
             "SOURCE_DATE_EPOCH": "1795000000"}
    if always:
        found["INJECT_ALWAYS"] = ",".join(f"{name}:{getattr(errno, error)}" for name, error in always.items())
    if injection:
        effect = injection.effect
        if effect.startswith("SIG"):
            effect = f"signal:{signal.Signals[effect].value}"
        elif effect not in (KILL, SHORT):
            effect = str(getattr(errno, effect))
        found |= {"INJECT_FUNCTIONS": injection.functions, "INJECT_NUMBER": str(injection.number), "INJECT_EFFECT": effect}
        if injection.repeat:
            found["INJECT_REPEAT"] = "1"
    return found


@dataclass(frozen=True)
class Call:
    """One call; `begin` and `end` order it among all others."""

    begin: int
    end: int
    done: str  # pass, fail, short, kill, signal
    function: str
    path: str
    detail: str
    result: str

    @property
    def is_hit(self) -> bool:
        return self.done != "pass"

    @property
    def is_data(self) -> bool:
        """Whether it has written bytes of a file."""
        return self.function in ("pwrite", "write", "aio_result") and self.path.startswith("/")

    @property
    def offset(self) -> int:
        return int(self.detail.partition("+")[0])

    def __str__(self) -> str:
        return f"{self.function}({self.path}, {self.detail}) = {self.result}"


def read_log(log: Path) -> list[Call]:
    """The calls in the order of their begin. A run that was killed can leave half a line at the end."""
    if not log.exists():
        return []
    lines = (line.split("\t") for line in log.read_text(errors="surrogateescape").splitlines())
    return sorted((Call(int(words[0]), int(words[1]), *words[2:]) for words in lines if len(words) == 7),
                  key=lambda call: call.begin)
