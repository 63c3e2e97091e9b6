"""Graphics cards by name: memory, speed, and what they are to the memory planner. Pure, without torch.

The makers' figures, and how much of them FLUX.1 reaches. ``docs/cards.md`` compares what is predicted from them with
what others have published.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from backend.core.errors import InputError, nearest
from backend.core.units import GIB
from backend.planning.costs import DeviceMemory

REPORTED_SHARE = 0.98
"""What of its GiB a card reports as its memory: an RTX 4090 of 24 GiB reports 23.51."""
DESKTOP_BYTES = 3 * GIB // 2
"""What a desktop with a browser holds of a consumer card's memory."""
LAPTOP_SHARE = 0.6
"""Speed of a laptop's card against the desktop's of the same name. Assumed: they have fewer cores and half of the
power."""
MIG_SLICES = 7
"""Into how many slices of its speed an A100 or H100 can be divided."""
# fmt: off
SAID_BESIDE = frozenset(
    (
        "nvidia", "geforce", "tesla", "gpu", "generation", "edition", "workstation", "server", "blackwell",
        "laptop", "mobile", "max", "q", "hbm2", "hbm2e", "hbm3", "hbm3e",
    )
)
# fmt: on
"""Words of a driver's name that do not tell one card from another."""
BUSES = frozenset(("sxm", "pcie", "nvl"))
HOPPER, H200, ADA_SMALL, ADA, AMPERE, AMPERE_SMALL, BLACKWELL, OLD = 0.48, 0.57, 0.74, 0.54, 0.55, 0.66, 0.52, 0.5
"""The share of the maker's dense 16-bit rate that compiled FLUX.1 sustains.

Hopper: 4.30 to 4.5 s on an H100, as published; 3.71 s on an H200, measured by this project with torch 2.11
(``bench/results/gpu.md``). Ada: 25.8 s with nf4 on an RTX 4090, and 23.4 s on an L20, which has a third of the
rate of an L40S at the same power. The others are assumed: half on the fast cards, two thirds on the slow ones.
"""
PCIE3, PCIE4_X8, PCIE4, PCIE5_X8, PCIE5 = 12, 13, 25, 25, 50
"""GB/s of a copy from pinned host memory."""


@dataclass(frozen=True)
class Card:
    """A card as it is sold.

    Attributes:
        name: Without its maker, as the driver says it.
        gib: GiB of memory.
        capability: CUDA compute capability.
        tflops: The maker's dense TFLOP/s in bf16, or fp16 before Ampere; where it multiplies in fp8, that is twice
            as fast.
        efficiency: The share of them that FLUX.1 sustains.
        bandwidth: GB/s of a copy from pinned host memory.
        desktop: Whether it is a consumer card, which usually shows a desktop too.
    """

    name: str
    gib: int
    capability: tuple[int, int]
    tflops: float
    efficiency: float
    bandwidth: float
    desktop: bool = False

    @property
    def title(self) -> str:
        return f"{self.name} {self.gib} GB"

    @property
    def reported_bytes(self) -> int:
        return int(REPORTED_SHARE * self.gib * GIB)

    @property
    def held_bytes(self) -> int:
        """What a desktop usually holds of its memory."""
        return DESKTOP_BYTES if self.desktop else 0

    def device(
        self,
        total_bytes: int | None = None,
        host_bytes: int = 64 * 10**9,
        bandwidth: float | None = None,
        held_bytes: int = 0,
    ) -> DeviceMemory:
        """A device of this card's speed, with its own memory or another amount, of which others hold
        ``held_bytes``."""
        total = self.reported_bytes if total_bytes is None else total_bytes
        return DeviceMemory(
            "cuda",
            total,
            total - held_bytes if held_bytes else None,
            host_bytes,
            bandwidth or self.bandwidth * 1e9,
            self.tflops * 1e12 * self.efficiency,
            self.capability,
        )


def _geforce(
    capability: tuple[int, int], efficiency: float, bandwidth: float, cards: Iterable[tuple[str, int, float]]
) -> tuple[Card, ...]:
    return tuple(
        Card(f"RTX {name}", gib, capability, tflops, efficiency, bandwidth, True) for name, gib, tflops in cards
    )


# name, GiB, compute capability, TFLOP/s, efficiency, GB/s; of a GeForce what a generation shares comes first, then for
# each card name, GiB, TFLOP/s
CARDS = (
    *_geforce((7, 5), OLD, PCIE3, (("2060", 6, 26), ("2070", 8, 30), ("2080", 8, 40), ("2080 Ti", 11, 54))),
    Card("T4", 16, (7, 5), 65, 0.35, PCIE3),
    Card("Quadro RTX 6000", 24, (7, 5), 65, OLD, PCIE3),
    Card("TITAN RTX", 24, (7, 5), 65, OLD, PCIE3, desktop=True),
    *_geforce(
        (8, 6), AMPERE_SMALL, PCIE4, (("3060", 12, 25.5), ("3060 Ti", 8, 32), ("3070", 8, 41), ("3070 Ti", 8, 44))
    ),
    *_geforce((8, 6), AMPERE_SMALL, PCIE4, (("3080", 10, 60), ("3080", 12, 61), ("3080 Ti", 12, 68))),
    *_geforce((8, 6), AMPERE_SMALL, PCIE4, (("3090", 24, 71), ("3090 Ti", 24, 80))),
    Card("RTX A4000", 16, (8, 6), 77, AMPERE_SMALL, PCIE4),
    Card("RTX A5000", 24, (8, 6), 111, AMPERE, PCIE4),
    Card("RTX A6000", 48, (8, 6), 155, AMPERE, PCIE4),
    Card("A10", 24, (8, 6), 125, 0.45, PCIE4),
    Card("A10G", 24, (8, 6), 70, AMPERE_SMALL, PCIE4),
    Card("A30", 24, (8, 0), 165, AMPERE, PCIE4),
    Card("A40", 48, (8, 6), 150, AMPERE, PCIE4),
    Card("A100 PCIe", 40, (8, 0), 312, 0.5, PCIE4),
    Card("A100 SXM", 40, (8, 0), 312, AMPERE, PCIE4),
    Card("A100 PCIe", 80, (8, 0), 312, 0.5, PCIE4),
    Card("A100 SXM", 80, (8, 0), 312, AMPERE, PCIE4),
    *_geforce((8, 9), ADA, PCIE4_X8, (("4060", 8, 30), ("4060 Ti", 8, 44), ("4060 Ti", 16, 44))),
    *_geforce((8, 9), ADA, PCIE4, (("4070", 12, 58), ("4070 SUPER", 12, 71), ("4070 Ti", 12, 80))),
    *_geforce((8, 9), ADA, PCIE4, (("4070 Ti SUPER", 16, 88), ("4080", 16, 97), ("4080 SUPER", 16, 104))),
    *_geforce((8, 9), ADA, PCIE4, (("4090", 24, 165),)),
    Card("RTX 4000 Ada", 20, (8, 9), 107, ADA, PCIE4),
    Card("RTX 5000 Ada", 32, (8, 9), 261, ADA, PCIE4),
    Card("RTX 6000 Ada", 48, (8, 9), 364, ADA, PCIE4),
    Card("L4", 24, (8, 9), 121, 0.35, PCIE4),
    Card("L20", 48, (8, 9), 119.5, ADA_SMALL, PCIE4),
    Card("L40", 48, (8, 9), 181, ADA_SMALL, PCIE4),
    Card("L40S", 48, (8, 9), 362, 0.46, PCIE4),
    *_geforce((12, 0), BLACKWELL, PCIE5_X8, (("5060", 8, 38), ("5060 Ti", 8, 47), ("5060 Ti", 16, 47))),
    *_geforce((12, 0), BLACKWELL, PCIE5, (("5070", 12, 62), ("5070 Ti", 16, 88), ("5080", 16, 113), ("5090", 32, 209))),
    Card("RTX PRO 6000", 96, (12, 0), 503, BLACKWELL, PCIE5),
    Card("H20", 96, (9, 0), 148, ADA_SMALL, PCIE5),
    Card("H100 PCIe", 80, (9, 0), 756, 0.42, PCIE5),
    Card("H100 SXM", 80, (9, 0), 989, HOPPER, PCIE5),
    Card("H100 NVL", 94, (9, 0), 835, HOPPER, PCIE5),
    Card("GH200", 96, (9, 0), 989, HOPPER, PCIE5),
    Card("H200", 141, (9, 0), 989, H200, PCIE5),
    Card("B200", 180, (10, 0), 2250, HOPPER, PCIE5),
)
USUAL = (
    "RTX 4060",
    "RTX 3060",
    "RTX 4070",
    "RTX 4080",
    "RTX 3090",
    "RTX 4090",
    "RTX 5090",
    "A100 SXM",
    "L40S",
    "H100 SXM",
    "RTX PRO 6000",
    "H200",
)
"""The cards of the tables in the documents, each with its least memory."""


def usual_cards() -> list[Card]:
    """The cards of the tables, by memory."""
    return sorted((next(card for card in CARDS if card.name == name) for name in USUAL), key=lambda card: card.gib)


def emulated_memory(total_bytes: int, host_bytes: int, bandwidth: float | None = None) -> DeviceMemory:
    """An emulated device: host memory with a budget, and about the speed that two CPU cores sustain."""
    return DeviceMemory("emulated", total_bytes, None, host_bytes, bandwidth or 25e9, 1e11)


def card_named(name: str) -> Card:
    """The card that someone means by "RTX 4090", "nvidia geforce rtx4090", "A100-80" or "L40S 48GB". Raises
    :class:`InputError`."""
    found = recognized_card(name)
    if found:
        return found
    names = list(dict.fromkeys(card.name for card in CARDS))
    raise InputError(
        "--card", f"'{name[:40]}' is not known{nearest(name, names)}; use {', '.join(names)}, or give --vram 24GB"
    )


def recognized_card(name: str, total_bytes: int | None = None) -> Card | None:
    """The card that a name stands for, as the driver says it or as people write it; None for one that is not known.

    Of several with this name it is the one whose memory is nearest to what the name says or to ``total_bytes``, else
    the one with the least. A laptop's card is slower, and so is a slice (MIG) of a card.
    """
    text = name.lower()
    slices = re.search(r"\bmig (\d)g\.", text)
    text = text[: slices.start()] if slices else text
    said = re.search(r"(?<![a-z\d])(\d+) ?gi?b\b", text)
    words = re.findall(r"[a-z\d.]+", text.replace(said[0], " ") if said else text)
    laptop = bool({"laptop", "mobile"}.intersection(words))
    wanted = int(said[1]) if said else total_bytes / GIB if total_bytes and not slices else 0
    alike = _named(words)
    if not alike and len(words) > 1 and words[-1].isdigit():  # "A100-80"
        wanted, alike = int(words[-1]), _named(words[:-1])
    if not alike:
        return None
    card = min(alike, key=lambda card: (abs(card.gib - wanted), -card.tflops))
    share = min(1.0, int(slices[1]) / MIG_SLICES) if slices else LAPTOP_SHARE if laptop else 1
    return replace(card, tflops=card.tflops * share) if share < 1 else card


def _named(words: Sequence[str]) -> list[Card]:
    """The cards of this name, and of this bus where a bus is named too."""
    kept = [word for word in words if word not in SAID_BESIDE]
    bus = {re.sub(r"\d", "", word) for word in kept} & BUSES
    plain = "".join(word for word in kept if re.sub(r"\d", "", word) not in BUSES)
    alike = [card for card in CARDS if _without_bus(card) in (plain, f"rtx{plain}")]
    return [card for card in alike if bus and bus <= set(card.name.lower().split())] or alike


def _without_bus(card: Card) -> str:
    return "".join(word for word in card.name.lower().split() if word not in BUSES)


def nearest_card(total_bytes: int, capability: tuple[int, int] | None = None) -> Card:
    """For a card that is not known by name: the largest usual one that is not larger (by name) nor of a newer
    generation, else the smallest."""
    usual = usual_cards()
    candidates = [card for card in usual if not capability or card.capability <= capability] or usual
    smaller = (card for card in candidates if card.gib * 10**9 <= total_bytes)
    return max(smaller, key=lambda card: (card.gib, card.tflops), default=candidates[0])
