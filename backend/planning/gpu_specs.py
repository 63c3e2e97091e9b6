"""Usual graphics cards: memory, speed, and what they are to the memory planner. Pure, without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from backend.core.errors import InputError, nearest
from backend.planning.costs import DeviceMemory

REPORTED_SHARE = 0.98
"""What of its GiB a card reports as its memory: an RTX 4090 of 24 GiB reports 23.51."""
SUSTAINED_SHARE = 0.46
"""Share of the maker's dense bf16 rate that compiled Flux reaches: 463 of 989 TFLOP/s on an H100, 81 of 165 on an
RTX 4090."""


@dataclass(frozen=True)
class Card:
    """A usual card: GiB as it is sold, the maker's dense bf16 TFLOP/s, and a usual copy bandwidth of its bus in
    GB/s."""

    name: str
    gib: int
    capability: tuple[int, int]
    tflops: float
    bandwidth: float

    @property
    def reported_bytes(self) -> int:
        return int(REPORTED_SHARE * self.gib * 2**30)

    def device(
        self, total_bytes: int | None = None, host_bytes: int = 64 * 10**9, bandwidth: float | None = None
    ) -> DeviceMemory:
        """A device of this card's speed, with its own memory or another amount."""
        total = self.reported_bytes if total_bytes is None else total_bytes
        return DeviceMemory(
            "cuda",
            total,
            None,
            host_bytes,
            bandwidth or self.bandwidth * 1e9,
            self.tflops * 1e12 * SUSTAINED_SHARE,
            self.capability,
        )


CARDS = (
    Card("RTX 4060", 8, (8, 9), 30, 13),
    Card("RTX 4070", 12, (8, 9), 58, 25),
    Card("RTX 4080", 16, (8, 9), 97, 25),
    Card("RTX 4090", 24, (8, 9), 165, 25),
    Card("RTX 5090", 32, (12, 0), 209, 50),
    Card("A100 PCIe", 40, (8, 0), 312, 25),
    Card("L40S", 48, (8, 9), 362, 25),
    Card("H100 SXM", 80, (9, 0), 989, 50),
    Card("RTX PRO 6000", 96, (12, 0), 503, 50),
    Card("H200", 141, (9, 0), 989, 50),
)


def emulated_memory(total_bytes: int, host_bytes: int, bandwidth: float | None = None) -> DeviceMemory:
    """An emulated device: host memory with a budget, and about the speed that two CPU cores sustain."""
    return DeviceMemory("emulated", total_bytes, None, host_bytes, bandwidth or 25e9, 1e11)


def card_named(name: str) -> Card:
    """The usual card of this name, without regard to case, spaces and the maker. Raises :class:`InputError`."""
    wanted = _plain(name)
    for card in CARDS:
        if wanted in (_plain(card.name), f"{_plain(card.name)}{card.gib}gb"):
            return card
    names = [card.name for card in CARDS]
    raise InputError(
        "--card", f"'{name[:40]}' is not known{nearest(name, names)}; use {', '.join(names)}, or give --vram 24GB"
    )


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|[\s_-]", "", name.lower())


def nearest_card(total_bytes: int) -> Card:
    """The largest usual card that is not larger (by name), else the smallest."""
    return max((card for card in CARDS if card.gib * 10**9 <= total_bytes), key=lambda card: card.gib, default=CARDS[0])
