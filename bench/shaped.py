"""A line as slow and as long as one across a continent, where the kernel shapes none: every byte to and from a server
goes through this proxy, a process of its own.

`python -m bench.shaped PORT MEGABITS MILLISECONDS` listens on a free port of 127.0.0.1, prints it, and ends with its
stdin; for each line of that it prints what it has carried, as JSON. Both directions have the rate, each for all
connections together; half of the round trip's time is added to each. What is under way is bounded by what such a line
holds, so that whoever sends feels how fast it drains.

A line does not wait for a processor, and this one shares its processors with what is measured. So it is a token
bucket (tc-tbf(8)): what it did not carry in the last `_BURST` seconds, because it came late to it, it may carry at
once. In any time t no more than rate * (t + _BURST) goes through.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

Carried = Mapping[int, int]  # bytes, by tenths of seconds since the epoch

_PIECE = 64 << 10  # bytes read at a time: small, so that connections share the line
_BURST = 0.05  # seconds
_NICE = -10  # where it may: a line is no program of this machine


@dataclass
class Line:
    """One direction."""

    rate: float  # bytes a second
    delay: float  # seconds
    free_at: float = 0.0  # when the last byte that was let in has left the sender's end
    carried: Counter[int] = field(default_factory=Counter)  # bytes, by tenths of seconds since the epoch

    def arrival(self, size: int, now: float) -> float:
        """When these bytes, let in now, are at the other end."""
        self.carried[int(time.time() * 10)] += size
        self.free_at = max(self.free_at, now - _BURST) + size / self.rate
        return max(self.free_at, now) + self.delay

    @property
    def holds(self) -> int:
        """Pieces under way on one connection, at most."""
        return max(4, int(self.rate * (self.delay + 0.1) / _PIECE))


async def _carry(line: Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    loop = asyncio.get_running_loop()
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(line.holds)

    async def deliver() -> None:
        while True:
            at, data = await under_way.get()
            await asyncio.sleep(max(0.0, at - loop.time()))
            if not data:
                return
            writer.write(data)
            await writer.drain()

    delivery = asyncio.create_task(deliver())
    try:
        with suppress(ConnectionError):
            while data := await reader.read(_PIECE):
                await under_way.put((line.arrival(len(data), loop.time()), data))
                # No sooner than the line takes it in: else one connection would fill it ahead of all others.
                await asyncio.sleep(max(0.0, line.free_at - loop.time() - 0.01))
        await under_way.put((loop.time() + line.delay, b""))
        with suppress(ConnectionError):
            await delivery
    finally:
        delivery.cancel()
        with suppress(ConnectionError, OSError):
            writer.close()


async def _serve(port: int, megabits: float, milliseconds: float) -> None:
    there, back = (Line(megabits * 1e6 / 8, milliseconds / 2000) for _ in range(2))

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(milliseconds / 1000)  # the handshake
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_carry(there, reader, server_writer), _carry(back, server_reader, writer))

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        while await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
            print(json.dumps([there.carried, back.carried]), flush=True)


@dataclass(frozen=True)
class Shaped:
    """The proxy that runs: at `port` of 127.0.0.1 the server is far away."""

    port: int
    process: subprocess.Popen[str]

    def carried(self) -> tuple[Carried, Carried]:
        """To the server and back, so far."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        there, back = (
            {int(key): size for key, size in each.items()} for each in json.loads(self.process.stdout.readline())
        )
        return there, back


@contextmanager
def shaped(port: int, *, megabits: float, milliseconds: float) -> Iterator[Shaped]:
    """A line to the server on `port` of 127.0.0.1."""
    command = [sys.executable, "-m", "bench.shaped", str(port), str(megabits), str(milliseconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout is not None
        try:
            yield Shaped(int(proxy.stdout.readline()), proxy)
        finally:
            proxy.kill()


if __name__ == "__main__":
    with suppress(PermissionError):
        os.nice(_NICE)
    with suppress(asyncio.CancelledError):
        asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))
