"""Nothing real gets in: clocks and chance come from the simulation; sockets, threads and sleep are leaks."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from dispatcher.clock import SystemClock
from tests.simulation.loop import Leak

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_Random = random.Random


@contextlib.contextmanager
def sealed(
    *, wall: Callable[[], float], monotonic: Callable[[], float], rng: random.Random
) -> Iterator[list[str]]:
    """Put the simulation's clocks and chance in place; yield the list of leaks, empty unless code is bad.

    A leak raises `Leak` where it happens, and is listed as well, since the code may swallow what it raises.
    """
    leaks: list[str] = []

    def refuse(what: str) -> Callable[..., Any]:
        def refused(*_args: Any, **_options: Any) -> Any:
            leaks.append(what)
            raise Leak(f"{what} in a simulation")

        return refused

    def seeded(seed: Any = None) -> random.Random:
        return _Random(rng.getrandbits(64) if seed is None else seed)

    patches: list[tuple[Any, str, Any]] = [
        (time, "time", wall),
        (time, "time_ns", lambda: int(wall() * 1e9)),
        (time, "monotonic", monotonic),
        (time, "monotonic_ns", lambda: int(monotonic() * 1e9)),
        (time, "perf_counter", monotonic),
        (SystemClock, "monotonic", staticmethod(monotonic)),  # it keeps the system's own
        (SystemClock, "wall", staticmethod(wall)),
        (time, "sleep", refuse("time.sleep")),
        (os, "urandom", rng.randbytes),
        (os, "getpid", lambda: 4_321),  # some errors name it
        (random, "Random", seeded),
        (socket, "create_connection", refuse("socket.create_connection")),
        (socket, "getaddrinfo", refuse("socket.getaddrinfo")),
        (socket.socket, "__init__", refuse("socket.socket")),
        (threading.Thread, "start", refuse("threading.Thread.start")),
    ]
    state = random.getstate()
    random.seed(rng.getrandbits(64))
    before = [(where, name, getattr(where, name)) for where, name, _ in patches]
    for where, name, stand_in in patches:
        setattr(where, name, stand_in)
    try:
        yield leaks
    finally:
        for where, name, real in before:
            setattr(where, name, real)
        random.setstate(state)
