"""Sends hostile requests and looks at the memory of the server: ``python -m bench.robustness.hostile [--requests 200]
[--seed 0]``.

Each must be refused within 10 seconds, the next right request must give the same picture as before, the memory of the
server's processes must be back within 100 MB of before, and its temporary files must be gone. Some requests break off,
send more than they may, or trickle in. Exit code 1 if something of it does not hold.
"""

from __future__ import annotations

import argparse
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from bench.robustness.fuzz import Fuzzer, own_server
from bench.robustness.hostile_bodies import heavy_bodies, light_bodies

MEMORY_ALLOWED = 100_000_000
SECONDS_ALLOWED = 10.0
HEAVY_SHARE = 0.3
REST_SECONDS = 5.0
CONTENT = "Content-Type: application/json"


@dataclass
class Report:
    answers: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0
    memory: tuple[int, int] = (0, 0)
    """Bytes before and after."""

    def lines(self) -> list[str]:
        before, after = (amount / 1e6 for amount in self.memory)
        answers = ", ".join(f"{count} x {code}" for code, count in sorted(self.answers.items()))
        return [
            f"{self.answers.total()} requests, the slowest after {self.slowest:.1f} s: {answers}",
            f"memory of the server's processes: {before:.0f} MB before, {after:.0f} MB after",
            *(f"fault: {fault}" for fault in self.faults),
        ]


class Attacker:
    """Sends one request a connection, as bytes."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)

    def post(self, body: bytes, header: str = CONTENT) -> str:
        """The status of the answer, "closed" where there is none."""
        head = f"POST /predictions HTTP/1.1\r\nHost: x\r\n{header}\r\nContent-Length: {len(body)}\r\n\r\n"
        return self._send([head.encode(), body])

    def other(self, kind: str) -> str:
        """What is no whole request."""
        start = f"POST /predictions HTTP/1.1\r\nHost: x\r\n{CONTENT}\r\n".encode()
        chunk = b"100000\r\n" + bytes(0x100000) + b"\r\n"
        parts: Mapping[str, list[bytes]] = {
            "too large": [start, b"Content-Length: 99999999999\r\n\r\n"],
            "chunks without end": [start, b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 100],
            "wrong chunks": [start, b"Transfer-Encoding: chunked\r\n\r\n", b"zz\r\nx\r\n"],
            "two lengths": [start, b"Content-Length: 5\r\nContent-Length: 9\r\n\r\n{}"],
            "long header": [start, b"X: " + b"x" * 100_000 + b"\r\n\r\n"],
            "no HTTP": [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20],
            "trickle": [start, b"Content-Length: 100\r\n\r\n{"],
        }
        return self._send(parts[kind])

    def cut_off(self, body: bytes) -> str:
        """Half of a body, and the connection is closed."""
        head = f"POST /predictions HTTP/1.1\r\nHost: x\r\n{CONTENT}\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(self._address, timeout=60) as connection:
            connection.sendall(head.encode() + body[: len(body) // 2])
        return "cut off"

    def _send(self, parts: Sequence[bytes]) -> str:
        with socket.create_connection(self._address, timeout=60) as connection:
            try:
                for part in parts:
                    connection.sendall(part)
            except OSError:
                pass  # it has been answered already
            try:
                answer = connection.recv(4096)
            except OSError:
                return "closed"
        return answer.split(b" ")[1].decode() if answer.startswith(b"HTTP/1.") else "closed"


OTHERS = ("too large", "chunks without end", "wrong chunks", "two lengths", "long header", "no HTTP")


def requests_for(attacker: Attacker, count: int, seed: int) -> list[tuple[str, Callable[[], str]]]:
    """``count`` hostile requests, by name: one that trickles in, the others drawn."""
    draw = random.Random(seed)
    light, heavy = light_bodies(), heavy_bodies()
    found: list[tuple[str, Callable[[], str]]] = [("trickle", lambda: attacker.other("trickle"))]
    while len(found) < count:
        kind = draw.random()
        if kind < 0.15:
            name = draw.choice(OTHERS)
            found.append((name, lambda name=name: attacker.other(name)))  # type: ignore[misc]
            continue
        bodies = heavy if kind < 0.15 + HEAVY_SHARE else light
        name = draw.choice(sorted(bodies))
        act = attacker.cut_off if draw.random() < 0.1 else attacker.post
        found.append((name, lambda act=act, body=bodies[name]: act(body)))  # type: ignore[misc]
    return found


def memory_of(process: int) -> int:
    """Bytes of a process and its descendants, shared pages counted once."""
    total = 0
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            total = int(line.split()[1]) * 1024
    children = [task.read_text() for task in Path(f"/proc/{process}/task").glob("*/children")]
    return total + sum(memory_of(int(child)) for child in " ".join(children).split())


def attack(url: str, server: subprocess.Popen[bytes], count: int, seed: int) -> Report:
    report, fuzzer = Report(), Fuzzer(url)
    before = fuzzer.plain_picture()
    attacks = requests_for(Attacker(url), count, seed)
    report.memory = (memory_of(server.pid), 0)
    for name, act in attacks:
        begin = time.monotonic()
        status = act()
        seconds = time.monotonic() - begin
        report.slowest = max(report.slowest, seconds)
        report.answers[status] += 1
        if seconds > SECONDS_ALLOWED or status.startswith(("2", "5")):
            report.faults.append(f"{name}: {status} after {seconds:.1f} s")
    time.sleep(REST_SECONDS)
    report.memory = (report.memory[0], memory_of(server.pid))
    if report.memory[1] - report.memory[0] > MEMORY_ALLOWED:
        report.faults.append("the memory is not back")
    if fuzzer.plain_picture() != before:
        report.faults.append("the picture after all requests is not the one before them")
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with own_server() as (url, server):
        report = attack(url, server, options.requests, options.seed)
    print(*report.lines(), sep="\n")
    return int(bool(report.faults))


if __name__ == "__main__":
    sys.exit(main())
