"""``scripts/doctor``: what a user pastes into an issue: versions, device, plan, allocators, weights, stages, network
and optional packages.

It reads no model, uses no network, and shows neither paths of the machine nor values of secrets.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from backend.core.errors import UserError
from backend.core.settings import Settings, load_settings
from backend.core.version import version
from backend.devices.cuda_allocator import OLD_VARIABLE, VARIABLE, apply_allocator_conf
from backend.devices.optional_packages import acceleration_rows, acceleration_table, installed_version
from modules.cli.command import BAD_INPUT, CommandParser, exit_with

VERSIONS = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "ultralytics-opencv-headless",
    "spandrel",
    "pillow",
    "cog",
    "coglet",
)
ALLOCATORS = re.compile(r"lib(tcmalloc[a-z_]*|jemalloc|mimalloc)[^/]*\.so")
NETWORK_VARIABLES = ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN", "HTTPS_PROXY", "HTTP_PROXY")
SHOWN = ("HF_HUB_OFFLINE",)
"""Of the others the report says only that they are set."""


def versions() -> dict[str, str]:
    system = f"{platform.system()} {platform.release()} {platform.machine()}, {'.'.join(platform.libc_ver())}"
    return {
        "cog-flux-adetailer": version(),
        "python": platform.python_version(),
        "system": system,
        **{name: installed_version(name) or "absent" for name in VERSIONS},
    }


def malloc_library(maps: Path = Path("/proc/self/maps")) -> str:
    """The allocator of host memory in this process, found by its mapped library."""
    found = ALLOCATORS.search(maps.read_text())
    return found[0] if found else "the C library's own"


def allocators(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    conf = apply_allocator_conf(settings.allocator_conf, dict(environment))
    variables = {
        name: environment[name]
        for name in (VARIABLE, OLD_VARIABLE, "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "OMP_NUM_THREADS")
        if name in environment
    }
    return {"host": malloc_library(), "cuda": conf or "torch's defaults", **variables}


def network(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: environment[name] if name in SHOWN else "set" for name in NETWORK_VARIABLES if name in environment
    } or {"variables": "none set"}


def service_sections(settings: Settings) -> dict[str, Callable[[], str]]:
    """The sections that need torch and the model folders: device, weights, plan, stages."""
    import torch

    from backend.core.units import format_bytes, parse_bytes
    from backend.devices.cuda_checks import driver_cuda_version
    from backend.devices.probe import probe_device, usable_threads
    from backend.devices.runtime import plan_device
    from backend.devices.torchvision_ops import ensure_torchvision_operators
    from backend.planning.report import plan_as_text

    ensure_torchvision_operators()
    from modules.app.model_files import find_files

    def device() -> str:
        found = probe_device(settings.device, settings.dtype)
        built = f"torch built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch built for the CPU"
        if driver := driver_cuda_version():
            built += f", driver for CUDA {driver[0]}.{driver[1]}"
        memory = f"{format_bytes(found.free_bytes)} of {format_bytes(found.total_bytes)} free"
        return f"{found.name}, {found.dtype}, {memory}, {usable_threads()} threads, {built}"

    found_files = cache(partial(find_files, settings))

    def weights() -> str:
        files = found_files()
        profile, components = files.profile, files.model.spec("bf16").components
        on_disk = components[profile.denoiser].on_disk
        parts = sum(file.stat().st_size for file in files.model.files)
        name = "embedded" if files.is_embedded else profile.name
        told = f"{name}, {format_bytes(parts)}, {profile.denoiser} in {on_disk}, native size {profile.native}"
        return "\n".join((told, *(f"left out: {reason}" for reason in files.left_out.values())))

    def plan() -> str:
        files = found_files()
        emulated = parse_bytes(settings.emulate_vram) if settings.emulate_vram else None
        found = probe_device(settings.device, settings.dtype)
        spec = files.spec(found.dtype, found.upscaler_dtype)
        return plan_as_text(
            plan_device(found, spec, files.workload(settings), emulated, settings.weight_precision).plan, spec
        )

    return {
        "device": device,
        "compilation": partial(_compilation, settings),
        "weights": weights,
        "stages": partial(_stages, settings),
        "plan": plan,
    }


def _stages(settings: Settings) -> str:
    from modules.extension_optimizer import select

    selection = select(settings)
    off = "".join(f", {name} off" for name in selection.disabled)
    return ", ".join(("generate", *selection.enabled)) + off


def _compilation(settings: Settings) -> str:
    from backend.devices.probe import probe_device
    from modules.compilation import why_no_compiler

    on_card = probe_device(settings.device, settings.dtype).kind == "cuda"
    wanted = "wanted" if settings.compile in ("on", "whole") or on_card and settings.compile == "auto" else "off"
    missing = why_no_compiler(on_card)
    return f"{wanted}: {missing}" if missing else f"{wanted}, a compiler and Python's headers are there"


def examine(settings: Settings, environment: Mapping[str, str]) -> dict[str, object]:
    """The report by section. A section that fails holds the error with which a prediction would end."""
    report: dict[str, object] = {
        "versions": versions(),
        "allocators": allocators(settings, environment),
        "network": network(environment),
    }
    for name, tell in service_sections(settings).items():
        try:
            report[name] = tell()
        except UserError as error:
            report[name] = f"error: {error}"
    report["packages"] = {name: f"{found}: {use}" for name, found, use in acceleration_rows()}
    return report


def as_text(report: Mapping[str, object]) -> str:
    lines = []
    for name, section in report.items():
        if name == "packages":
            lines += ["", "optional packages", acceleration_table()]
        elif isinstance(section, Mapping):
            lines += ["", name, *(f"  {key:<28} {value}" for key, value in section.items())]
        else:
            lines += ["", name, *(f"  {line}".rstrip() for line in str(section).splitlines())]
    return "\n".join(lines).lstrip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report; gives 1 when a section holds an error."""
    parser = CommandParser("scripts/doctor", "What this installation is and can do. Paste it into an issue.")
    parser.add_argument("--json", action="store_true", help="the same as one JSON object")
    options = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        report = examine(load_settings(), os.environ)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    print(json.dumps(report, indent=2) if options.json else as_text(report))
    return int(any(str(section).startswith("error: ") for section in report.values()))


if __name__ == "__main__":
    exit_with(main)
