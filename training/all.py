"""Rebuilds ``weights/embedded`` from nothing: ``python -m training.all [--work build/training] [--scale 1.0]``.

Every step is a command of its own and leaves its result in the work folder; a step whose result is there is not run
again, so an interrupted run goes on where it was. ``--scale`` lengthens or shortens the steps whose length is a time.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from backend.core.settings import ROOT
from training.data.detector_samples import KINDS
from training.models.precision import best_device

logger = logging.getLogger(__name__)

EMBEDDED = ROOT / "weights" / "embedded"
LATENTS = {"portraits": 13_000, "figures": 6_500, "faces": 2_500, "hands": 2_000, "things": 5_000}
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


@dataclass(frozen=True)
class Course:
    """Runs the steps of a training; ``scale`` lengthens or shortens those whose length is a time."""

    work: Path
    scale: float

    def step(self, name: str, module: str, *options: str | Path) -> None:
        run_step(name, self.work, module, *map(str, options))

    def minutes(self, amount: float) -> tuple[str, str]:
        return "--minutes", str(amount * self.scale)

    def batch(self, on_cpu: int, option: str = "--batch") -> tuple[str, str]:
        """A GPU takes sixteen times as much at once."""
        return option, str(on_cpu if best_device().type == "cpu" else 16 * on_cpu)

    def steps(self, count: int) -> tuple[str, str]:
        return "--steps", str(round(count * self.scale))


def train_flux(course: Course) -> None:
    step, parts = course.step, course.work / "parts"
    worded = course.work / "worded"  # text encoders that read every wording
    flux, redrawn = EMBEDDED / "flux", course.work / "redrawn.safetensors"
    vae, undistilled, transformer = parts / "vae", course.work / "undistilled", parts / "transformer"
    step("autoencoder", "models.autoencoder", "--out", vae, *course.minutes(60), *course.batch(8))
    step("encoder", "models.autoencoder", "--out", vae, "--only", "encoder", *course.minutes(30), *course.batch(8))
    step("text encoders", "models.text_encoders", "--out", parts, *course.steps(900))
    for subject, count in LATENTS.items():
        options = ("--out", course.work / f"{subject}.pt", "--subject", subject, "--count", str(count))
        step(f"latents of {subject}", "models.latents", "--autoencoder", vae, *options)
    latents = [course.work / f"{name}.pt" for name in (*LATENTS, "figures", "things")]  # these count twice
    step("rewording", "models.rewording", "--models", parts, "--out", worded, *course.steps(500))
    inputs: tuple[str | Path, ...] = ("--latents", *latents, "--other-words", "0.45", *course.batch(64))
    learning = ("--models", worded, "--out", undistilled, "--encoders-rate", "0.001", *course.minutes(310))
    step("transformer", "models.transformer", *inputs, *learning)
    guidance = ("--models", undistilled, "--undistilled", undistilled, "--out", transformer, *course.minutes(40))
    step("guidance", "models.guidance", *inputs, *guidance)
    package = ("--parts", parts, "--encoders", undistilled, "--out", flux)
    step("package", "package", *package)
    together = course.batch(6, "--together")
    step("redrawn latents", "models.redrawn_latents", "--flux", flux, "--out", redrawn, *together)
    decoder = ("--start", vae, "--redrawn", redrawn, "--out", vae, *course.batch(2))
    step("decoder", "models.decoder", *decoder, "--encoder", *course.minutes(100))
    step("package with that decoder", "package", *package)
    generated = course.work / "generated.safetensors"
    high = ("--count", "240", "--strengths", "0.7", "1.0")
    step("generated latents", "models.redrawn_latents", "--flux", flux, "--out", generated, *high, *together)
    crisp = ("--generated", generated, "--rate", "0.002", "--share", "0.6", *course.minutes(12))
    step("crisp decoder", "models.decoder", *decoder, *crisp)
    step("package with the crisp decoder", "package", *package)


def train_detectors_on_drawings(course: Course) -> None:
    for kind in KINDS:
        course.step(f"{kind} detector", "models.detector", "--kind", kind, "--out", course.work / "detector")
    for name in (f"{kind.name}{suffix}" for kind in KINDS.values() for suffix in (".safetensors", ".yaml")):
        shutil.copy(course.work / "detector" / name, EMBEDDED)


def train_detectors_on_generated_images(course: Course) -> None:
    """After the generator: they learn its look."""
    for name, (pictures, epochs) in REDRAWN.items():
        options = ("--kind", name, "--weights", EMBEDDED.parent, "--out", course.work / "redrawn")
        length = ("--pictures", str(pictures), "--epochs", str(epochs))
        course.step(f"{name} detector, redrawn", "models.redrawn", *options, *length)
        shutil.copy(course.work / "redrawn" / f"{name}_detector.safetensors", EMBEDDED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "training")
    parser.add_argument("--scale", type=float, default=1.0)
    arguments = parser.parse_args()
    course = Course(arguments.work.resolve(), arguments.scale)
    (course.work / "parts").mkdir(parents=True, exist_ok=True)
    train_detectors_on_drawings(course)
    course.step("upscaler", "models.upscaler", "--out", course.work / "upscaler", *course.minutes(8.5))
    shutil.copy(course.work / "upscaler" / "upscaler.safetensors", EMBEDDED)
    train_flux(course)
    train_detectors_on_generated_images(course)
    upsampler = ("--out", EMBEDDED / "prompt_upsampler", *course.steps(2400), "--batch", "32")
    course.step("prompt upsampler", "models.prompt_upsampler", *upsampler)
    course.step("adherence", "evaluation.adherence", "--sheet", EMBEDDED / "held_out.webp")
    wordings = ("--subject", "wordings", "--sheet", ROOT / "docs" / "images" / "wordings.webp")
    course.step("adherence in other wordings", "evaluation.adherence", *wordings)
    for subject in ("figures", "things"):
        sheet = ("--subject", subject, "--sheet", ROOT / "docs" / "images" / f"{subject}.webp")
        course.step(f"adherence of {subject}", "evaluation.adherence", *sheet)


if __name__ == "__main__":
    main()
