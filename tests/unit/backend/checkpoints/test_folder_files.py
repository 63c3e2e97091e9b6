"""Of a component's folder one set of weights is taken, whole, whatever else lies there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.refusals import refusal

from backend.checkpoints.folder_files import shard_files
from backend.planning.checkpoint_sizes import folder_header

MAIN = "diffusion_pytorch_model"


def folder(path: Path, *names: str, indexes: dict[str, Sequence[str]] | None = None) -> Path:
    path.mkdir(exist_ok=True)
    for name in names:
        save_file({f"{name.replace('.', '_')}": torch.zeros(2)}, path / name)
    for name, files in (indexes or {}).items():
        table = {f"tensor_{number}": file for number, file in enumerate(files)}
        (path / name).write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return path


SHARDS = [f"{MAIN}-0000{number}-of-00002.safetensors" for number in (1, 2)]
FP16_SHARDS = [f"{MAIN}.fp16-0000{number}-of-00002.safetensors" for number in (1, 2)]
OLD_FP16_SHARDS = [f"{MAIN}-0000{number}-of-00002.fp16.safetensors" for number in (1, 2)]
INDEX, FP16_INDEX = f"{MAIN}.safetensors.index.json", f"{MAIN}.safetensors.index.fp16.json"


@pytest.mark.parametrize(
    ("there", "indexes", "taken"),
    [
        ([f"{MAIN}.safetensors"], {}, [f"{MAIN}.safetensors"]),
        ([f"{MAIN}.fp16.safetensors", f"{MAIN}.safetensors"], {}, [f"{MAIN}.safetensors"]),
        ([f"{MAIN}.non_ema.safetensors", f"{MAIN}.safetensors"], {}, [f"{MAIN}.safetensors"]),
        ([f"{MAIN}.non_ema.safetensors", f"{MAIN}.fp16.safetensors"], {}, [f"{MAIN}.fp16.safetensors"]),
        ([f"{MAIN}.bf16.safetensors", f"{MAIN}.fp16.safetensors"], {}, [f"{MAIN}.fp16.safetensors"]),
        ([f"{MAIN}.anything.safetensors"], {}, [f"{MAIN}.anything.safetensors"]),
        (["adapter_model.safetensors", "model.safetensors"], {}, ["model.safetensors"]),
        (["MODEL.SAFETENSORS"], {}, ["MODEL.SAFETENSORS"]),
        (["model.sft"], {}, ["model.sft"]),
        (SHARDS, {INDEX: SHARDS}, SHARDS),
        (FP16_SHARDS, {FP16_INDEX: FP16_SHARDS}, FP16_SHARDS),
        (FP16_SHARDS, {INDEX: SHARDS, FP16_INDEX: FP16_SHARDS}, FP16_SHARDS),
        (OLD_FP16_SHARDS, {FP16_INDEX: OLD_FP16_SHARDS}, OLD_FP16_SHARDS),
        ([*SHARDS, *FP16_SHARDS], {INDEX: SHARDS, FP16_INDEX: FP16_SHARDS}, SHARDS),
        (SHARDS, {}, SHARDS),
        (OLD_FP16_SHARDS, {}, OLD_FP16_SHARDS),
        ([*SHARDS, f"{MAIN}.fp16.safetensors"], {INDEX: SHARDS}, SHARDS),
        ([SHARDS[0], f"{MAIN}.safetensors"], {INDEX: SHARDS}, [f"{MAIN}.safetensors"]),
    ],
)
def test_one_variant_is_taken(
    tmp_path: Path, there: Sequence[str], indexes: dict[str, Sequence[str]], taken: Sequence[str]
) -> None:
    component = folder(tmp_path / "transformer", *there, indexes=indexes)
    assert [file.name for file in shard_files(component)] == list(taken)
    assert len(folder_header(component).shapes) == len(taken)  # each file holds one tensor


@pytest.mark.parametrize(
    ("there", "indexes"),
    [
        (SHARDS[:1], {INDEX: SHARDS}),
        (SHARDS[:1], {}),
        ([], {INDEX: SHARDS}),
        ([*SHARDS[:1], *FP16_SHARDS], {INDEX: SHARDS, FP16_INDEX: FP16_SHARDS}),
    ],
)
def test_a_missing_shard_is_named(tmp_path: Path, there: Sequence[str], indexes: dict[str, Sequence[str]]) -> None:
    component = folder(tmp_path / "transformer", *there, indexes=indexes)
    told = refusal(lambda: shard_files(component))
    missing = next(name for name in SHARDS if name not in there)
    assert f"transformer/{missing} is missing" in told


def test_a_cut_shard_is_named(tmp_path: Path) -> None:
    component = folder(tmp_path / "transformer", *SHARDS, indexes={INDEX: SHARDS})
    (component / SHARDS[1]).write_bytes((component / SHARDS[1]).read_bytes()[:20])
    assert SHARDS[1] in refusal(lambda: folder_header(component))


def test_a_claim_of_endless_shards_is_one_line(tmp_path: Path) -> None:
    component = folder(tmp_path / "transformer", f"{MAIN}-00001-of-99999.safetensors")
    assert "-00002-of-99999.safetensors is missing" in refusal(lambda: shard_files(component))


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    assert "transformer holds no .safetensors file" in refusal(lambda: shard_files(tmp_path / "transformer"))
