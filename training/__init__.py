"""Draws the pictures and trains ``weights/embedded``; ``python -m training.all`` rebuilds everything."""

import logging

from backend.torchvision_operators import ensure_torchvision_operators

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
ensure_torchvision_operators()
