"""What is fuzzed: a way to feed bytes, a judge of what came out, seeds; and one input's examination.

Only ``RemoteProtocolError`` may come out of a target, in bounded time, and no memory beyond what ``limits.py`` speaks of:

- *what comes out*: ``feed`` lets every other exception pass, and ``judge`` compares what was seen with a reference that
  shares no code with the project (msgpack alone, or ten lines that split a stream of frames);
- *time*: a timer of the process's own CPU time, so that a busy machine finds no hang, raises ``InputHung`` in the middle of
  the input. What hangs in C is left to whoever started the process (``__main__``);
- *memory*: ``tracemalloc``'s peak over ``feed``, which the judge's references are no part of, and what is left of it
  afterwards. That takes some five times as long, so it is done for one input in ``MEASURED_EACH``, and in the end for every
  input that reached new code.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

from attrs import frozen

from protocol import limits

MEASURED_EACH: Final = 256
CPU_SECONDS_MAX: Final = 2.0
"""Of one input; the worst seen take a fortieth of that."""

VALUE_BYTES_MAX: Final = 256
"""What one plain value costs Python: its object, its place in a map, and the pair that it comes in."""

TEXT_GROWTH_MAX: Final = 4
"""A string with one astral character in it takes four bytes for each of the others."""

PACKING_BYTES: Final = limits.MESSAGE_BYTES_MAX
"""msgpack's packer begins with a buffer of 256 KiB, whatever the message."""

SLACK_BYTES: Final = 96 * limits.KIB
"""Connection, tables' places, tracebacks, sentences, and the harness's own book-keeping."""

HELD_BYTES_MAX: Final = 64 * limits.KIB
"""What may be left of an input: caches of the interpreter, regular expressions' and exceptions' lists."""

MEASUREMENTS_MAX: Final = 3


class InputHung(BaseException):
    """An input took more than ``CPU_SECONDS_MAX``. Not an ``Exception``: nothing may take it for one of its own."""


class MemoryExceeded(AssertionError):
    """An input made the code under test hold more memory than ``limits.py`` lets it."""


@frozen(kw_only=True)
class Target:
    name: str
    share: int
    """Of all inputs, as a part of the sum over all targets."""
    input_bytes_max: int
    feed: Callable[[bytes], Any]
    """The code under test, and nothing that costs memory besides. What it gives is the judge's."""
    judge: Callable[[bytes, Any], None]
    """Raises AssertionError."""
    allow_bytes: Callable[[bytes, Any], int]
    """How much memory ``feed`` may have held at a time."""
    seeds: Callable[[], list[bytes]]
    words: Callable[[], list[bytes]] = list
    """What a mutation may put in."""


@frozen
class Examination:
    cpu_seconds: float
    peak_bytes: int | None
    """None where it was not measured."""


def message_bytes(body_bytes: int) -> int:
    """Memory that decoding one message of so many bytes may take."""
    size_bytes = min(body_bytes, limits.MESSAGE_BYTES_MAX)
    values = min(size_bytes, limits.MESSAGE_VALUES_MAX)
    return TEXT_GROWTH_MAX * size_bytes + VALUE_BYTES_MAX * values


def _hang(_signal: int, _frame: FrameType | None) -> None:
    raise InputHung(f"more than {CPU_SECONDS_MAX} s of CPU time")


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """Inputs can be examined inside; in the main thread, and only there."""
    before = signal.signal(signal.SIGPROF, _hang)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def examine(target: Target, data: bytes, *, measured: bool) -> Examination:
    """Feed one input and judge what comes out. Raises whatever is wrong with it."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS_MAX)
    try:
        if measured:
            return _examine_traced(target, data)
        started = time.thread_time()
        seen = target.feed(data)
        cpu_seconds = time.thread_time() - started
        target.judge(data, seen)
        return Examination(cpu_seconds, None)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _examine_traced(target: Target, data: bytes) -> Examination:
    """Raises MemoryExceeded for what is too much each time: the interpreter's own tables, that of all interned strings above
    all, double now and then, and whose input that happens to is chance.
    """
    for _ in range(MEASUREMENTS_MAX):
        peak_bytes, held_bytes, allowed_bytes, cpu_seconds = _feed_traced(target, data)
        if peak_bytes <= allowed_bytes and held_bytes <= HELD_BYTES_MAX:
            return Examination(cpu_seconds, peak_bytes)
    raise MemoryExceeded(
        f"{peak_bytes} bytes at most, {allowed_bytes} allowed; {held_bytes} bytes after it"
    )


def _feed_traced(target: Target, data: bytes) -> tuple[int, int, int, float]:
    """(peak, what is still held when the connection is gone, what the peak may be) in bytes, and seconds.

    The collector of cycles is off meanwhile: memory that waits for it is memory that a peer can pile up.
    """
    gc.disable()
    tracemalloc.start()
    try:
        before_bytes, _ = tracemalloc.get_traced_memory()
        started = time.thread_time()
        seen = target.feed(data)
        cpu_seconds = time.thread_time() - started
        _, peak_bytes = tracemalloc.get_traced_memory()
        target.judge(data, seen)
        allowed_bytes = target.allow_bytes(data, seen)
        del seen
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    return peak_bytes - before_bytes, held_bytes - before_bytes, allowed_bytes, cpu_seconds
