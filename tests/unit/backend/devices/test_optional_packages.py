"""The table of optional packages in ``scripts/doctor``."""

from __future__ import annotations

from importlib.metadata import version

from backend.core.settings import ROOT
from backend.devices.optional_packages import PACKAGES, acceleration_rows, acceleration_table, installed_version
from modules.flux_memory_optimizer import ATTENTION_BACKENDS


def test_every_package_has_a_use_or_what_is_used_instead() -> None:
    assert all(bool(package.used_for) != bool(package.replaced_by) for package in PACKAGES)
    for package in PACKAGES:
        for word in (package.used_for + package.replaced_by).replace(",", " ").split():
            assert not word.endswith(".py") or (ROOT / word).is_file(), f"{package.name}: there is no {word}"


def test_what_is_used_for_attention_is_among_the_kernels_that_are_tried() -> None:
    used = {package.name for package in PACKAGES if package.used_for.startswith("attention")}
    assert used == {"flash-attn-3", "xformers"}
    assert {"_flash_3", "xformers"} <= set(ATTENTION_BACKENDS)


def test_a_package_that_is_installed_is_shown_with_its_version() -> None:
    rows = acceleration_rows(lambda name: "1.2" if name == "xformers" else "")
    assert {name: found for name, found, _ in rows} == {
        package.name: "1.2" if package.name == "xformers" else "absent" for package in PACKAGES
    }
    assert installed_version("torch") == version("torch") and installed_version("no-such-package") == ""
    assert len(acceleration_table().splitlines()) == len(PACKAGES)
