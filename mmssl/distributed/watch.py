"""Ends a process of a run in bounded time after another one has ended, whatever it waits for.

A collective call fails when a process that it exchanges data with ends. It does not fail when it
waits for a third process, which itself waits, writes or computes; and while it waits, Python runs
no signal handler. So a thread of every process watches a connection to every other one, which the
operating system closes however a process ends.
"""

from __future__ import annotations

import os
import secrets
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from mmssl.errors import LostProcess
from mmssl.signals import one_request

_GRACE_SECONDS = 10.0  # to end in the usual way, with the line that says why
_ALARM_SECONDS = 15  # the operating system ends the process, also if the thread can't
_CONNECT_SECONDS = 60.0
_KEEPALIVE_SECONDS = 5  # three of them without an answer mean that a machine is gone
_LEFT = b"."  # sent before a connection is closed in good order
_STOP, _FAIL = 0, 255  # commands to the thread; the other numbers are signals
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _End(NamedTuple):
    """What ends the process unless it ends earlier."""

    deadline: float
    code: int
    line: str
    once: bool  # whether only the first process that reports prints the line


class Watch:
    """Watches signals and, once connected, the other processes.

    A lost process, a signal before the processes are connected and a repeated signal give this one
    ten seconds to end in the usual way. Used in the main thread only.
    """

    def __init__(self) -> None:
        self._peers: list[socket.socket] = []
        self._is_first: Callable[[], bool] = lambda: True
        self._connected = False
        self._signaled = 0.0
        self._end: _End | None = None
        self._selector = selectors.DefaultSelector()
        self._inbox, self._outbox = socket.socketpair()
        for end in (self._inbox, self._outbox):
            end.setblocking(False)
        self._selector.register(self._inbox, selectors.EVENT_READ)
        self._before = signal.set_wakeup_fd(self._outbox.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._run, name="mmssl-watch", daemon=True)
        self._thread.start()

    def connect(
        self, store: Any, rank: int, size: int, master: str, is_first: Callable[[], bool]
    ) -> None:
        """Connect the processes; all of them call it.

        Args:
            store: What the processes share.
            rank: Number of this process.
            size: Number of processes.
            master: The machine that torchrun names as such.
            is_first: Whether this process is the first that reports an error.

        Raises:
            OSError: They can't be connected.
        """
        self._peers, self._is_first = _connections(store, rank, size, master), is_first
        for peer in self._peers:
            _keep_alive(peer)
            peer.setblocking(False)
            self._selector.register(peer, selectors.EVENT_READ)
        self._connected = True

    def fail(self, code: int, line: str) -> None:
        """Begin the end of this process because of an error.

        Args:
            code: Exit code of a process that does not end in time.
            line: What it prints then.
        """
        self._prepare(code, line, once=False)
        self._outbox.send(bytes([_FAIL]))

    def leave(self) -> None:
        """Tell the other processes that the end of this one is no loss."""
        for peer in self._peers:
            with suppress(OSError):
                peer.send(_LEFT)

    def drop(self) -> None:
        """Have the other processes lose this one."""
        for peer in self._peers:
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connections and stop watching."""
        signal.set_wakeup_fd(self._before)
        with suppress(OSError):
            self._outbox.send(bytes([_STOP]))
        self._thread.join()
        signal.alarm(0)
        self._selector.close()
        for each in (*self._peers, self._inbox, self._outbox):
            each.close()

    def _prepare(self, code: int, line: str, *, once: bool) -> None:
        if self._end is None:
            signal.alarm(_ALARM_SECONDS)
            self._end = _End(time.monotonic() + _GRACE_SECONDS, code, line, once)

    def _run(self) -> None:
        while True:
            end = self._end
            wait = None if end is None else max(0.0, end.deadline - time.monotonic())
            ready = self._selector.select(wait)
            for key, _ in ready:
                if key.fileobj is self._inbox:
                    received = self._inbox.recv(64)
                    if _STOP in received:
                        return
                    for number in received:
                        self._notice(number)
                else:
                    self._hear(key.fileobj)
            if end is not None and time.monotonic() >= end.deadline:
                if not end.once or self._is_first():
                    os.write(2, f"{end.line}\n".encode(errors="backslashreplace"))
                os._exit(end.code)

    def _notice(self, number: int) -> None:
        """Handle a signal."""
        if number not in _SIGNALS:
            return
        now, before = time.monotonic(), self._signaled
        self._signaled = before or now
        if not self._connected or (before and not one_request(before, now)):
            self._prepare(128 + number, "interrupted", once=False)

    def _hear(self, peer: Any) -> None:
        """Handle the end of a connection."""
        try:
            data = peer.recv(64)
        except OSError:
            data = b""
        self._selector.unregister(peer)
        if data:
            return
        error = LostProcess(f"noticed {_GRACE_SECONDS:.0f} s ago while this one worked or waited")
        self._prepare(1, f"error: {error}", once=True)


def _connections(store: Any, rank: int, size: int, master: str) -> list[socket.socket]:
    """Return connections to all other processes: accepted from higher ranks, made to lower ones."""
    token = secrets.token_hex(16)
    ipv6 = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    with socket.create_server(("", 0), family=family, backlog=size, dualstack_ipv6=ipv6) as server:
        port = server.getsockname()[1]
        store.set(f"mmssl/watch/{rank}", f"{_own_address(master)} {port} {token}")
        peers = []
        for other in range(rank):
            address, port, expected = store.get(f"mmssl/watch/{other}").decode().split()
            peers.append(socket.create_connection((address, int(port)), _CONNECT_SECONDS))
            peers[-1].sendall(expected.encode())
        server.settimeout(_CONNECT_SECONDS)
        while len(peers) < size - 1:
            peer, _ = server.accept()
            peer.settimeout(_CONNECT_SECONDS)
            if peer.recv(len(token), socket.MSG_WAITALL).decode(errors="replace") == token:
                peers.append(peer)
            else:
                peer.close()
    return peers


def _own_address(master: str) -> str:
    """Return the address of this machine as the others see it."""
    family, kind, *_, target = socket.getaddrinfo(master, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)  # sends nothing
        own: str = probe.getsockname()[0]
    # On its own machine, the name of the master may be a local address, which others can't use.
    return master if own.startswith("127.") or own == "::1" else own


def _keep_alive(peer: socket.socket) -> None:
    """Have the system ask for a sign of life, which a machine without power does not give."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
        if hasattr(socket, option):  # not on every system
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), _KEEPALIVE_SECONDS)
    if hasattr(socket, "TCP_KEEPCNT"):
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
