"""Runs a command without a network and writes down every name that it, or any process of its, asks to be looked up.

    unshare --net --mount python tests/support/name_lookups.py LOG COMMAND ...

In the namespaces made by ``unshare`` there is only the loopback interface, and ``/etc/resolv.conf`` names a resolver
there: this one, which answers that no such name exists. It sees what Python, Rust and the C library ask alike.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1
NO_SUCH_NAME = 0x8183


def bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def asked_name(question: bytes) -> str:
    """The name in a DNS request: labels, each after its length, from byte 12 on."""
    labels, at = [], 12
    while question[at]:
        labels.append(question[at + 1 : at + 1 + question[at]].decode(errors="replace"))
        at += 1 + question[at]
    return ".".join(labels)


def answer_requests(resolver: socket.socket, log: Path) -> None:
    while True:
        question, client = resolver.recvfrom(4096)
        with log.open("a") as file:
            file.write(asked_name(question) + "\n")
        resolver.sendto(question[:2] + struct.pack(">HHHHH", NO_SUCH_NAME, 1, 0, 0, 0) + question[12:], client)


def main(log: Path, command: list[str]) -> int:
    bring_up_loopback()
    with (
        tempfile.NamedTemporaryFile("w") as configuration,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver,
    ):
        configuration.write("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        configuration.flush()
        Path(configuration.name).chmod(0o644)
        subprocess.run(["mount", "--bind", configuration.name, "/etc/resolv.conf"], check=True)
        resolver.bind(("127.0.0.1", 53))
        log.touch()
        threading.Thread(target=answer_requests, args=(resolver, log), daemon=True).start()
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
