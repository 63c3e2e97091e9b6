"""Settings: typed, and a mistake is named with the nearest right word."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from backend.core.errors import SettingsError
from backend.core.settings import CONFIG_FILE, ROOT, Settings, load_settings


def written(folder: Path, text: str) -> Path:
    path = folder / "config.json"
    path.write_text(text)
    return path


def test_the_file_of_the_package_names_every_setting_with_its_default() -> None:
    defaults = {field.name: field.default for field in fields(Settings)}
    assert json.loads(CONFIG_FILE.read_text()) == {
        name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()
    }
    assert load_settings(environment={}) == Settings()


def test_every_setting_is_read_somewhere() -> None:
    code = "\n".join(
        path.read_text()
        for folder in ("backend", "modules")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "settings.py"
    )
    assert [
        field.name for field in fields(Settings) if f"settings.{field.name}" not in code and field.name != "weights_dir"
    ] == []
    assert "settings.weights_path" in code


def test_the_configuration_page_explains_every_setting() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert [field.name for field in fields(Settings) if f"`{field.name}`" not in page] == []


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    settings = load_settings(
        written(tmp_path, '{"tile_size": 64}'), {"FLUX_TILE_SIZE": "96", "FLUX_WARM_UP": "false", "PATH": "/bin"}
    )
    assert settings.upscale_tile_size == 96 and settings.warm_up is False
    assert load_settings(environment={"FLUX_DISABLED_EXTENSIONS": "hires, upscale"}).disabled_extensions == (
        "hires",
        "upscale",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON in line 1"),
        ("[]", "must hold one JSON object"),
        ('{"modell": "auto"}', "unknown key 'modell' (did you mean 'model'?)"),
        ('{"tile_size": "big"}', "tile_size must be a whole number, not 'big'"),
        ('{"tile_size": true}', "tile_size must be a whole number"),
        ('{"tile_size": 1}', "tile_size must be at least 32"),
        ('{"warm_up": 1}', "warm_up must be true or false"),
        ('{"dtype": "float8"}', "dtype must be one of auto, float32"),
        ('{"model": 3}', "model must be text"),
        ('{"disabled_extensions": "upscale"}', "disabled_extensions must be a list of names, not 'upscale'"),
        ('{"disabled_scripts": [1]}', "disabled_scripts must be a list of names"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(written(tmp_path, text), {})
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FLUX_TILESIZE", "64", "unknown setting (did you mean 'tile_size'?)"),
        ("FLUX_TILE_SIZE", "x", "must be a whole number"),
        ("FLUX_WARM_UP", "maybe", "must be true or false"),
    ],
)
def test_a_mistake_in_the_environment_is_named(tmp_path: Path, variable: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError, match="environment variable") as caught:
        load_settings(tmp_path / "none.json", {variable: value})
    assert message in str(caught.value)
