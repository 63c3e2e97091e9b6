"""How well does the autoencoder keep drawings? ``python -m training.evaluation.reconstruction [--weights DIR]``.

Prints the mean PSNR in dB of squares of 256 x 256 pixels that training never saw, for every subject and for all
together as they are drawn in training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from diffusers import AutoencoderKL

from backend.core.settings import ROOT
from backend.weights.resolver import EMBEDDED
from training.data.subjects import SUBJECTS
from training.models.autoencoder import draw_pool, reconstruction_psnr

SEED = 10_001


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=ROOT / "weights")
    parser.add_argument("--pictures", type=int, default=24, help="of every subject (%(default)s)")
    given = parser.parse_args()
    model = AutoencoderKL.from_pretrained(given.weights / EMBEDDED / "flux" / "vae", trust_remote_code=False).eval()
    pools = {subject: draw_pool(SEED, given.pictures, subject) for subject in SUBJECTS}
    pools["all"] = draw_pool(SEED, len(SUBJECTS) * given.pictures)
    print(json.dumps({subject: round(reconstruction_psnr(model, pool), 2) for subject, pool in pools.items()}))


if __name__ == "__main__":
    main()
