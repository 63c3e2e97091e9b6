"""Why a CUDA card cannot be used, in one line: the build of torch, the driver, the card's architecture."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch

OLDEST_CAPABILITY = (7, 5)
"""Turing: the oldest architecture that CUDA 13 compiles for."""
FIRST_DRIVERS: Mapping[int, str] = MappingProxyType({12: "525", 13: "580"})
"""The first Linux driver for every major version of CUDA."""
Version = tuple[int, int]


def driver_cuda_version() -> Version | None:
    """The CUDA version (major, minor) that the NVIDIA driver supports, None without a driver. Initializes nothing."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    found = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(found)) != 0:
        return None
    return found.value // 1000, found.value % 1000 // 10


def old_driver(built_for: str | None, driver: Version | None) -> str:
    """What is wrong with a driver that is too old for a torch ``built_for`` that CUDA version, "" if nothing is.

    Within a major version of CUDA older drivers work too.
    """
    if built_for is None or driver is None or driver[0] >= (major := int(built_for.partition(".")[0])):
        return ""
    least = f" to {FIRST_DRIVERS[major]} or newer" if major in FIRST_DRIVERS else ""
    return (
        f"the NVIDIA driver supports CUDA {driver[0]}.{driver[1]} and this torch is built for {built_for}; update the "
        f"driver{least}"
    )


def missing_card(built_for: str | None, driver: Version | None) -> str:
    """Why a torch ``built_for`` that CUDA version finds no card, whose driver is not too old."""
    if built_for is None:
        return "this torch is built for the CPU; install the CUDA build of torch"
    if driver is None:
        return "there is no NVIDIA driver (libcuda.so.1); install it, or start the container with --gpus all"
    return "the NVIDIA driver shows no card; look at nvidia-smi and CUDA_VISIBLE_DEVICES"


def old_card(name: str, capability: Version, architectures: Sequence[str]) -> str:
    """What is wrong with a card of that compute capability that is older than all ``architectures`` that torch is
    compiled for ("sm_75"), "" if nothing is."""
    compiled = [int(found[1]) for one in architectures if (found := re.fullmatch(r"sm_(\d+)[a-z]?", one))]
    oldest = max(OLDEST_CAPABILITY, divmod(min(compiled), 10)) if compiled else OLDEST_CAPABILITY
    if capability >= oldest:
        return ""
    return (
        f"{name} has compute capability {capability[0]}.{capability[1]} and this torch needs {oldest[0]}.{oldest[1]} "
        "or newer; use another card"
    )


def why_no_cuda() -> str:
    """Why no card can be used for computing, "" if one can."""
    driver = driver_cuda_version()
    # an old driver is found here first: torch would print a warning of several lines
    if reason := old_driver(torch.version.cuda, driver):
        return reason
    if not torch.cuda.is_available():
        return missing_card(torch.version.cuda, driver)
    return old_card(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), torch.cuda.get_arch_list())
