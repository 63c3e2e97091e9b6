"""Every family on every card in every placement and precision, without a card: ``python -m
bench.memory.fake_card_matrix RESULTS.jsonl [--seconds 360] [--table]``; see ``tests/support/fake_card_matrix.py``."""

from __future__ import annotations

import sys
from importlib import import_module

from backend.core.settings import ROOT
from backend.devices.torchvision_ops import ensure_torchvision_operators


def main() -> None:
    ensure_torchvision_operators()  # before anything imports diffusers
    sys.path.insert(0, str(ROOT / "tests"))
    import_module("support.fake_card_matrix").main()


if __name__ == "__main__":
    main()
