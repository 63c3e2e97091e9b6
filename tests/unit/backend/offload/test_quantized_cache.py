"""Quantized models on disk: the same bits without rounding, and made again where anything is different."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.small_flux import small_transformer
from torch import nn
from transformers import T5Config, T5EncoderModel

from backend.offload.placements import all_tensors
from backend.offload.quantized_cache import QuantizedCache, content_key
from backend.offload.quantized_linear import FORMATS, QuantizedLinear, quantize

DTYPE = torch.bfloat16
KEY = "0" * 32


def transformer() -> nn.Module:
    return small_transformer().to(DTYPE)


def text_encoder() -> nn.Module:
    torch.manual_seed(0)
    config = T5Config(vocab_size=32, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    return T5EncoderModel(config).to(DTYPE).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {"transformer": transformer, "text_encoder_2": text_encoder}


class Maker:
    """Makes a quantized model, and counts how often."""

    def __init__(self, model: Callable[[], nn.Module] = transformer, name: str = "fp8") -> None:
        self.model, self.name, self.times = model, name, 0

    def __call__(self) -> nn.Module:
        self.times += 1
        return quantize(self.model(), self.name, DTYPE)


def cache(*folders: Path, max_bytes: int = 10**9) -> QuantizedCache:
    return QuantizedCache(folders, max_bytes, smallest=0, reserved=0)


def entry(folder: Path) -> Path:
    return folder / f"{KEY}.safetensors"


def bits(module: nn.Module) -> dict[str, bytes]:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("model", MODELS)
def test_the_second_start_rounds_nothing_and_has_the_same_bits(tmp_path: Path, model: str, name: str) -> None:
    make = Maker(MODELS[model], name)
    first, second = (cache(tmp_path).module(KEY, make) for _ in range(2))
    made = make()
    assert make.times == 2
    for module in (first, second):
        assert bits(module) == bits(made) and type(module) is type(made)
        kinds = {path: type(part) for path, part in module.named_modules()}
        assert kinds == {path: type(part) for path, part in made.named_modules()}
        quantized = [part for part in module.modules() if isinstance(part, QuantizedLinear)]
        assert quantized and all(part.dtype == DTYPE for part in quantized)
        assert not module.training


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip,
    "cut off": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: file.write_bytes(b""),
    "something else": lambda file: file.write_bytes(b"x" * 1000),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_entry_is_made_again_and_told_once(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    make = Maker()
    cache(tmp_path).module(KEY, make)
    DAMAGE[how](entry(tmp_path))
    modules = [cache(tmp_path).module(KEY, make) for _ in range(2)]
    assert make.times == 2 and bits(modules[0]) == bits(modules[1]) == bits(make())
    assert [record.levelname for record in caplog.records if "damaged" in record.message] == ["WARNING"]


def test_of_several_starts_at_once_one_rounds_and_the_others_wait(tmp_path: Path) -> None:
    make, begin = Maker(), threading.Barrier(3)

    def start() -> None:
        begin.wait()
        cache(tmp_path).module(KEY, make)

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert make.times == 1


def test_the_entries_that_were_not_used_for_longest_make_room(tmp_path: Path) -> None:
    keys = [str(number) * 32 for number in range(3)]
    size = sum(tensor.nbytes for tensor in all_tensors(Maker()()))
    limited = cache(tmp_path, max_bytes=int(2.5 * size))
    for seconds, key in enumerate(keys[:2]):
        limited.module(key, Maker())
        os.utime(tmp_path / f"{key}.safetensors", (seconds, seconds))
    limited.module(keys[0], Maker())  # now the last used
    limited.module(keys[2], Maker())
    assert {file.stem for file in tmp_path.glob("*.safetensors")} == {keys[0], keys[2]}


def test_where_a_folder_cannot_be_written_the_next_one_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    impossible, possible, make = tmp_path / "file" / "inside", tmp_path / "possible", Maker()
    for _ in range(2):
        cache(impossible, possible).module(KEY, make)
    assert make.times == 1 and entry(possible).is_file()


def test_where_none_can_be_written_every_start_rounds(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    make = Maker()
    modules = [cache(tmp_path / "file" / "inside").module(KEY, make) for _ in range(2)]
    assert make.times == 2 and bits(modules[0]) == bits(modules[1])


@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"max_bytes": 1000}, {"smallest": 10**9}, {"reserved": 2**60}])
def test_nothing_is_kept_beyond_the_limits(tmp_path: Path, limits: dict[str, int]) -> None:
    make = Maker()
    for _ in range(2):
        replace(cache(tmp_path), **limits).module(KEY, make)
    assert make.times == 2 and not list(tmp_path.glob("*.safetensors"))


def test_another_file_date_or_content_gives_another_key(tmp_path: Path) -> None:
    folder = tmp_path / "model" / "transformer"
    folder.mkdir(parents=True)
    file = folder / "model.safetensors"

    def key(content: bytes, seconds: int, *details: str) -> str:
        file.write_bytes(content)
        os.utime(file, (seconds, seconds))
        return content_key([tmp_path / "model"], *details)

    size = 10**6
    same = [key(b"a" * size, 1, "fp8") for _ in range(2)]
    others = [key(b"b" * size, 1, "fp8"), key(b"a" * size, 2, "fp8"), key(b"a" * (size + 1), 1, "fp8")]
    others.append(key(b"a" * size, 1, "nf4"))
    assert same[0] == same[1] and len({same[0], *others}) == 1 + len(others)
