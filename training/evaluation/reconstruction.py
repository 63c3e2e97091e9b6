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
from training.models.autoencoder import HELD_OUT, draw_pool, held_out_pools, reconstruction_psnr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=ROOT / "weights")
    parser.add_argument("--pictures", type=int, default=24, help="of every subject (%(default)s)")
    given = parser.parse_args()
    model = AutoencoderKL.from_pretrained(given.weights / EMBEDDED / "flux" / "vae", trust_remote_code=False).eval()
    pools = held_out_pools(0, given.pictures)
    pools["all"] = draw_pool(HELD_OUT, len(pools) * given.pictures)
    print(json.dumps({subject: round(reconstruction_psnr(model, pool), 2) for subject, pool in pools.items()}))


if __name__ == "__main__":
    main()
