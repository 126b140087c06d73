"""A proxy between an NBD client and its server, which stops at a given number of bytes: tests wait for a state, not for time."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from harness import Server

from qemu_tools import nbd_uri

_numbers = itertools.count()


class Gate:
    """Connections to `uri` are passed on to the server, and what it sends is counted.

    Once it has sent `after` bytes on all connections together, `held` is set and no more of it comes, until `open`.
    """

    def __init__(self, folder: Path, server_uri: str, after: int) -> None:
        parts = urlsplit(server_uri)
        self._target = parse_qs(parts.query)["socket"][0]
        path = folder / "servers" / f"gate{next(_numbers)}.sock"
        self.uri = nbd_uri(parts.path.lstrip("/"), path)
        self.held = threading.Event()
        self._lock = threading.Lock()
        self._opened = threading.Event()
        self._left = after
        self._sockets: list[socket.socket] = []
        self._sent: dict[socket.socket, int] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def open(self) -> None:
        """Lets everything through from now on."""
        self._opened.set()

    def divert(self, server_uri: str) -> None:
        """New connections go to another server; those that have carried a MiB of data or more are cut."""
        self._target = parse_qs(urlsplit(server_uri).query)["socket"][0]
        with self._lock:
            busy = [client for client, sent in self._sent.items() if sent >= 1 << 20]
        for client in busy:
            _shut(client)

    def close(self) -> None:
        self.open()
        self._listener.close()
        with self._lock:
            for each in self._sockets:
                _shut(each)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._target)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._sockets += [client, server]
                self._sent[client] = 0
            threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if counted:
                    self._count(sink, len(data))
                sink.sendall(data)
        _shut(sink)
        _shut(source)

    def _count(self, client: socket.socket, length: int) -> None:
        with self._lock:
            self._sent[client] += length
            self._left -= length
            through = self._left >= 0
        if not through and not self._opened.is_set():
            self.held.set()
            self._opened.wait()


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def gate(folder: Path, server: Server, after: int) -> Iterator[Gate]:
    made = Gate(folder, server.uri, after)
    try:
        yield made
    finally:
        made.close()
