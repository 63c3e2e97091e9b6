"""Cards by name: what the driver says, what people write, and how fast each is."""

from __future__ import annotations

import pytest

from backend.core.errors import InputError
from backend.core.units import GIB
from backend.planning.gpu_specs import CARDS, card_named, nearest_card, recognized_card, usual_cards


@pytest.mark.parametrize(
    ("driver", "gib", "title", "teraflops"),
    [
        ("NVIDIA GeForce RTX 4090", 24, "RTX 4090 24 GB", 165),
        ("NVIDIA GeForce RTX 3090", 24, "RTX 3090 24 GB", 71),
        ("NVIDIA GeForce RTX 3080", 10, "RTX 3080 10 GB", 60),
        ("NVIDIA GeForce RTX 3080", 12, "RTX 3080 12 GB", 61),
        ("NVIDIA GeForce RTX 4060 Ti", 16, "RTX 4060 Ti 16 GB", 44),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 16, "RTX 4070 Ti SUPER 16 GB", 88),
        ("NVIDIA A100-SXM4-80GB", 80, "A100 SXM 80 GB", 312),
        ("NVIDIA A100-PCIE-40GB", 40, "A100 PCIe 40 GB", 312),
        ("NVIDIA A100 80GB PCIe", 80, "A100 PCIe 80 GB", 312),
        ("NVIDIA H100 80GB HBM3", 80, "H100 SXM 80 GB", 989),
        ("NVIDIA H100 PCIe", 80, "H100 PCIe 80 GB", 756),
        ("NVIDIA H100 NVL", 94, "H100 NVL 94 GB", 835),
        ("NVIDIA GH200 480GB", 96, "GH200 96 GB", 989),
        ("NVIDIA RTX 6000 Ada Generation", 48, "RTX 6000 Ada 48 GB", 364),
        ("NVIDIA RTX A6000", 48, "RTX A6000 48 GB", 155),
        ("Quadro RTX 6000", 24, "Quadro RTX 6000 24 GB", 65),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 96, "RTX PRO 6000 96 GB", 503),
        ("Tesla T4", 15, "T4 16 GB", 65),
        # slower than the card of that name
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16, "RTX 4090 24 GB", 99),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", 40, "A100 SXM 80 GB", 312 * 3 / 7),
    ],
)
def test_the_drivers_names(driver: str, gib: int, title: str, teraflops: float) -> None:
    card = recognized_card(driver, gib * GIB)
    assert card and (card.title, card.tflops) == (title, pytest.approx(teraflops))


@pytest.mark.parametrize(
    ("written", "title"),
    [
        ("4090", "RTX 4090 24 GB"),
        ("rtx4090", "RTX 4090 24 GB"),
        ("RTX 4090 24GB", "RTX 4090 24 GB"),
        ("GeForce RTX-3080 12 GB", "RTX 3080 12 GB"),
        ("a100", "A100 PCIe 40 GB"),
        ("A100-80", "A100 PCIe 80 GB"),
        ("A100 SXM 80GB", "A100 SXM 80 GB"),
        ("H100", "H100 SXM 80 GB"),
    ],
)
def test_what_people_write(written: str, title: str) -> None:
    assert card_named(written).title == title


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.title)
def test_every_card_is_found_by_its_title(card: object) -> None:
    assert card_named(card.title) == card  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("written", "meant"), [("RTX 409", "RTX 4090"), ("L40X", "L40"), ("RTX 6000", "RTX A6000"), ("GTX 1080", "RTX")]
)
def test_a_card_that_is_not_known_is_no_other_card(written: str, meant: str) -> None:
    assert recognized_card(written) is None
    with pytest.raises(InputError, match=rf"^--card: '{written}' is not known.*{meant}.*or give --vram 24GB$"):
        card_named(written)


def test_an_unknown_card_is_planned_as_one_of_its_size_that_is_not_newer() -> None:
    assert nearest_card(24 * 10**9).name == "RTX 4090"
    assert nearest_card(24 * 10**9, (8, 6)).name == "RTX 3090"
    assert nearest_card(10**9) == usual_cards()[0]


def test_two_cards_of_one_size_differ_in_speed() -> None:
    fast, slow = card_named("RTX 4090").device(), card_named("RTX 3090").device()
    assert fast.total_bytes == slow.total_bytes and fast.flops > 1.5 * slow.flops
    assert card_named("H100").device().flops > 2 * card_named("A100-80").device().flops
