"""A load generator in a process of its own: kept-alive clients that each wait for their answer.

    python -m benchmarks.load URL --body FILE --clients 16 --requests 4000

Prints one line of JSON: milliseconds of every request, and how long all of it took. It speaks just
enough HTTP to be no burden on a machine that serves at the same time.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one run of the generator saw."""

    milliseconds: Sequence[float]  # of each request
    seconds: float  # of all of them

    @property
    def per_second(self) -> float:
        return len(self.milliseconds) / self.seconds

    @property
    def p50(self) -> float:
        return statistics.median(self.milliseconds)

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.milliseconds, n=100)[98]


def generate(
    url: str,
    bodies: Sequence[bytes],
    *,
    clients: int,
    requests: int,
    headers: Sequence[tuple[str, str]] = (),
) -> Load:
    """Run the generator as a process: these bodies by turns, so many requests by all clients."""
    with NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.write("\n".join(json.dumps(body.decode()) for body in bodies))
        file.flush()
        done = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.load", url, "--bodies", file.name),
                *("--clients", str(clients), "--requests", str(requests)),
                *(f"--header={name}:{value}" for name, value in headers),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).resolve().parents[1],
        )
    if done.returncode:
        raise RuntimeError(f"the load generator failed: {done.stderr[-1000:]}")
    return Load(**json.loads(done.stdout))


class _Client:
    """One connection that is kept alive."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)

    async def ask(self, request: bytes) -> None:
        """Send it and read the whole answer. Raises unless its status is 200."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"the server answered {head[:200]!r}")
        lowered = head.lower()
        if b"transfer-encoding: chunked" in lowered:
            await self._skip_chunks()
            return
        at = lowered.index(b"content-length:") + len(b"content-length:")
        await self._reader.readexactly(int(lowered[at : lowered.index(b"\r\n", at)]))

    async def _skip_chunks(self) -> None:
        while size := int(await self._reader.readline(), 16):
            await self._reader.readexactly(size + 2)
        await self._reader.readline()

    def close(self) -> None:
        self._writer.close()


async def _run(
    url: str, bodies: Sequence[bytes], clients: int, requests: int, headers: Sequence[str]
) -> Load:
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    head = "".join(
        [
            f"POST {parts.path} HTTP/1.1\r\nhost: {host}:{port}\r\n",
            "content-type: application/json\r\n",
            *(line.replace(":", ": ", 1) + "\r\n" for line in headers),
        ]
    )
    whole = [f"{head}content-length: {len(body)}\r\n\r\n".encode() + body for body in bodies]
    milliseconds: list[float] = []
    left = iter(range(requests))

    async def work(client: _Client) -> None:
        for number in left:
            started = time.perf_counter()
            await client.ask(whole[number % len(whole)])
            milliseconds.append((time.perf_counter() - started) * 1000)

    connected = [_Client(host, port) for _ in range(clients)]
    for client in connected:
        await client.open()
    started = time.perf_counter()
    await asyncio.gather(*map(work, connected))
    seconds = time.perf_counter() - started
    for client in connected:
        client.close()
    return Load(milliseconds=milliseconds, seconds=seconds)


def main() -> None:
    """Generate one load and print what it saw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("url")
    parser.add_argument("--bodies", type=Path, required=True, help="a JSON text a line")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--header", action="append", default=[], help="NAME:VALUE")
    chosen = parser.parse_args()
    bodies = [json.loads(line).encode() for line in chosen.bodies.read_text().splitlines()]
    load = asyncio.run(_run(chosen.url, bodies, chosen.clients, chosen.requests, chosen.header))
    rounded = [round(one, 4) for one in load.milliseconds]
    print(json.dumps({"milliseconds": rounded, "seconds": load.seconds}))


if __name__ == "__main__":
    main()
