"""Draws the pictures and trains ``weights/embedded``; ``python -m training.all`` rebuilds everything."""

import logging

from backend.devices.torchvision_ops import ensure_torchvision_operators

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
ensure_torchvision_operators()
