"""Rebuilds ``weights/embedded`` from nothing: ``python -m training.all [--work build/training] [--scale 1.0]``.

Every step is a command of its own and leaves its result in the work folder; a step whose result is there is not run again,
so an interrupted run goes on where it was. ``--scale`` lengthens or shortens the steps whose length is a time.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import subprocess
import sys
import time
from pathlib import Path

from backend.settings import ROOT
from training.detector_samples import KINDS

logger = logging.getLogger(__name__)

EMBEDDED = ROOT / "weights" / "embedded"
LATENTS = {"portraits": 13_000, "figures": 6_500, "hands": 2_000}
"""Pictures of every subject that the transformer learns from."""
REDRAWN = {"face": (500, 5), "person": (400, 4), "hand": (1200, 9)}
"""Pictures and epochs with which every kind of detector learns the generator's look."""


def run_step(name: str, work: Path, module: str, *arguments: str) -> None:
    """Runs ``python -m training.<module>`` unless a mark in the work folder says that it was finished before."""
    mark = work / f".{name}.done"
    if mark.exists():
        logger.info("%s: done before", name)
        return
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", f"training.{module}", *arguments], cwd=ROOT, check=True)
    mark.touch()
    logger.info("%s: %.0f s", name, time.monotonic() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "training")
    parser.add_argument("--scale", type=float, default=1.0)
    arguments = parser.parse_args()
    work, parts = arguments.work.resolve(), arguments.work.resolve() / "parts"
    parts.mkdir(parents=True, exist_ok=True)

    def minutes(amount: float) -> tuple[str, str]:
        return "--minutes", str(amount * arguments.scale)

    vae, transformer = parts / "vae", parts / "transformer"
    worded = work / "worded"  # what reads every wording

    def step(name: str, module: str, *options: str | Path) -> None:
        run_step(name, work, module, *map(str, options))

    for kind in KINDS:
        step(f"{kind} detector", "detector", "--kind", kind, "--out", work / "detector")
    step("upscaler", "upscaler", "--out", work / "upscaler", *minutes(8.5))
    step("autoencoder", "autoencoder", "--out", vae, *minutes(60))
    step("text encoders", "text_encoders", "--out", parts, "--steps", str(round(500 * arguments.scale)))
    for subject, count in LATENTS.items():
        step(f"latents of {subject}", "latents", "--autoencoder", vae, "--out", work / f"{subject}.pt", "--subject", subject, "--count", str(count))
    latents = [work / f"{name}.pt" for name in (*LATENTS, "figures")]  # figures count twice
    step("transformer", "transformer", "--models", parts, "--latents", *latents, "--out", transformer, *minutes(350))
    step("rewording", "rewording", "--models", parts, "--out", worded, "--steps", str(round(500 * arguments.scale)))
    if not (worded / "transformer").exists():
        shutil.copytree(transformer, worded / "transformer", ignore=shutil.ignore_patterns("undistilled", "optimizer.*"))
    going_on = ("--other-words", "0.4", "--rate", "0.01", "--distill-share", "0.2", *minutes(75))
    step("transformer, every wording", "transformer", "--models", worded, "--latents", *latents, "--out", worded / "transformer", *going_on)
    step("decoder", "autoencoder", "--out", vae, "--decoder-only", *minutes(20))
    shutil.copytree(vae, worded / "vae", dirs_exist_ok=True)
    step("package", "package", "--parts", worded, "--out", EMBEDDED / "flux")
    detectors = [f"detector/{kind.name}{suffix}" for kind in KINDS.values() for suffix in (".safetensors", ".yaml")]
    for name in (*detectors, "upscaler/upscaler.safetensors"):
        shutil.copy(work / name, EMBEDDED)
    for name, (pictures, epochs) in REDRAWN.items():
        course = ("--pictures", str(pictures), "--epochs", str(epochs))
        step(f"{name} detector, redrawn", "redrawn", "--kind", name, "--weights", EMBEDDED.parent, "--out", work / "redrawn", *course)
        shutil.copy(work / "redrawn" / f"{name}_detector.safetensors", EMBEDDED)
    step("prompt upsampler", "prompt_upsampler", "--out", EMBEDDED / "prompt_upsampler", "--steps", str(round(2400 * arguments.scale)), "--batch", "32")
    step("adherence", "adherence", "--sheet", EMBEDDED / "held_out.webp")
    step("adherence in other wordings", "adherence", "--subject", "wordings", "--sheet", ROOT / "docs" / "images" / "wordings.webp")
    step("adherence of figures", "adherence", "--subject", "figures", "--sheet", ROOT / "docs" / "images" / "figures.webp")


if __name__ == "__main__":
    main()
