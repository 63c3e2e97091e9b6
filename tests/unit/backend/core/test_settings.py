"""Settings: typed, and a mistake is named with the nearest right word."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from backend.core.errors import SettingsError
from backend.core.settings import CONFIG_FILE, DEFAULTS, RENAMED, ROOT, Settings, load_settings


def written(folder: Path, text: str) -> Path:
    path = folder / "config.json"
    path.write_text(text)
    return path


def test_the_file_of_the_package_names_every_setting_with_its_default() -> None:
    assert json.loads(CONFIG_FILE.read_text()) == {
        name: list(value) if isinstance(value, tuple) else value for name, value in DEFAULTS.items()
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
        written(tmp_path, '{"upscale_tile_size": 64}'),
        {"FLUX_UPSCALE_TILE_SIZE": "96", "FLUX_WARM_UP": "false", "PATH": "/bin"},
    )
    assert settings.upscale_tile_size == 96 and settings.warm_up is False
    assert load_settings(environment={"FLUX_DISABLED_EXTENSIONS": "hires, upscale"}).disabled_extensions == (
        "hires",
        "upscale",
    )


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("quality", "weight_precision", "fp8"),
        ("tile_size", "upscale_tile_size", 64),
        ("model_parts", "base_model", "embedded"),
    ],
)
def test_a_renamed_setting_is_read_by_its_old_name_with_a_notice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, old: str, new: str, value: object
) -> None:
    path = written(tmp_path, json.dumps({old: value}))
    assert getattr(load_settings(path, {}), new) == value
    assert getattr(load_settings(tmp_path / "none.json", {f"FLUX_{old.upper()}": str(value)}), new) == value
    notice = f"'{old}' is now called '{new}'; the old name is read for one more release"
    assert [record.getMessage() for record in caplog.records] == [f"config.json: {notice}", f"environment: {notice}"]
    assert old in RENAMED and new not in RENAMED


def test_every_new_name_is_a_setting() -> None:
    assert set(RENAMED.values()) <= set(DEFAULTS) and not set(RENAMED) & set(DEFAULTS)


def test_settings_cannot_be_changed_and_a_changed_copy_is_checked() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().device = "cpu"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="upscale_tile_size"):
        replace(Settings(), upscale_tile_size=31)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON in line 1"),
        ("[]", "does not hold a JSON object"),
        ('{"modell": "auto"}', "config.json: modell is not known (did you mean 'model'?)"),
        ('{"upscale_tile_size": "big"}', "config.json: upscale_tile_size must be a whole number, not 'big'"),
        ('{"upscale_tile_size": true}', "upscale_tile_size must be a whole number, not true"),
        ('{"upscale_tile_size": 1}', "upscale_tile_size must be at least 32, not 1"),
        ('{"tile_size": 1}', "config.json: tile_size must be at least 32"),
        ('{"warm_up": 1}', "warm_up must be true or false, not 1"),
        (
            '{"dtype": "float8"}',
            "dtype must be one of auto, float32, bfloat16, float16, not 'float8' (did you mean 'float32'?)",
        ),
        ('{"model": 3}', "model must be text"),
        ('{"disabled_extensions": "upscale"}', "disabled_extensions must be a list of names, not 'upscale'"),
        ('{"disabled_scripts": [1]}', "disabled_scripts must be a list of names, not [1]"),
        ('{"quality": "fp8", "weight_precision": "nf4"}', "'quality' and 'weight_precision' are one setting"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(written(tmp_path, text), {})
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FLUX_TILESIZE", "64", "FLUX_TILESIZE is not known (did you mean 'upscale_tile_size'?)"),
        ("FLUX_UPSCALE_TILE_SIZE", "x", "FLUX_UPSCALE_TILE_SIZE must be a whole number, not 'x'"),
        ("FLUX_TILE_SIZE", "3", "FLUX_TILE_SIZE must be at least 32, not 3"),
        ("FLUX_WARM_UP", "maybe", "must be true or false, not 'maybe'"),
        ("FLUX_DEVICE", "gpu", "must be one of auto, cpu, cuda, not 'gpu'"),
    ],
)
def test_a_mistake_in_the_environment_is_named(tmp_path: Path, variable: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError, match="environment variable") as caught:
        load_settings(tmp_path / "none.json", {variable: value})
    assert message in str(caught.value)


def test_an_old_value_is_read_with_a_notice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_settings(written(tmp_path, '{"weight_precision": "exact"}'), {}).weight_precision == "bf16"
    assert "config.json: weight_precision: 'exact' is now called 'bf16'" in caplog.text
    assert load_settings(environment={"FLUX_WEIGHT_PRECISION": "exact"}).weight_precision == "bf16"
    with pytest.raises(SettingsError, match="must be one of auto, bf16, fp8, nf4, gguf, not .exactly."):
        load_settings(environment={"FLUX_WEIGHT_PRECISION": "exactly"})
