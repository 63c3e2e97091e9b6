"""The header of a GGUF file is read as it is written, and refused in one line where it claims what the file does not
have."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from support.gguf_files import random_blocks, write_gguf
from support.refusals import refusal

from backend.checkpoints.file_type import check_content
from backend.checkpoints.header import read_header
from backend.core.errors import WeightsError


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def number(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", 4, value)


def tensor(name: str = "a.weight", shape: tuple[int, ...] = (32, 2), code: int = 8, start: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, code, start)


def gguf(
    path: Path,
    *tensors: bytes,
    remarks: tuple[bytes, ...] = (),
    version: int = 3,
    counts: tuple[int, int] | None = None,
    data: int = 4096,
) -> Path:
    tensors_said, remarks_said = counts or (len(tensors), len(remarks))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors_said, remarks_said)
    path.write_bytes(head + b"".join(remarks) + b"".join(tensors) + bytes(data))
    return path


def test_names_shapes_formats_and_remarks_are_read(tmp_path: Path) -> None:
    file = write_gguf(
        tmp_path / "model.gguf",
        {"a.weight": (random_blocks(3, 2, "Q5_K"), "Q5_K"), "a.bias": (torch.zeros(3), "F32")},
    )
    header = read_header(file)
    assert header.shapes == {"a.weight": (3, 512), "a.bias": (3,)}
    assert header.formats == {"a.weight": "Q5_K", "a.bias": "F32"} and header.precision == "Q5_K"
    assert header.metadata["general.architecture"] == "flux"


def test_the_name_of_the_file_does_not_matter(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.safetensors", {"a.weight": (torch.zeros(3, 32), "Q8_0")})
    assert read_header(file).precision == "Q8_0"
    check_content(file, file.name)


def test_a_tensor_has_the_shape_that_it_had_before_it_was_stored(tmp_path: Path) -> None:
    kept = text("comfy.gguf.orig_shape.a.weight") + struct.pack("<IIQ4i", 9, 5, 4, 2, 8, 2, 2)
    assert read_header(gguf(tmp_path / "a.gguf", tensor(), remarks=(kept,))).shapes == {"a.weight": (2, 8, 2, 2)}
    wrong = text("comfy.gguf.orig_shape.a.weight") + struct.pack("<IIQ2i", 9, 5, 2, 3, 3)
    assert "original shape" in refusal(lambda: read_header(gguf(tmp_path / "b.gguf", tensor(), remarks=(wrong,))))


def test_the_encoder_of_a_t5_has_the_names_of_transformers(tmp_path: Path) -> None:
    inner = ("attn_q", "attn_k", "attn_v", "attn_o", "attn_rel_b", "attn_norm", "ffn_gate", "ffn_up", "ffn_down")
    names = [f"enc.blk.0.{name}.weight" for name in (*inner, "ffn_norm")]
    names += ["token_embd.weight", "enc.output_norm.weight", "dec.blk.0.attn_q.weight"]
    file = write_gguf(tmp_path / "t5.gguf", {name: (torch.zeros(2, 32), "F16") for name in names}, "t5")
    from transformers import T5Config, T5EncoderModel

    config = T5Config(num_layers=1, d_model=32, d_kv=8, d_ff=64, num_heads=4, feed_forward_proj="gated-gelu")
    assert read_header(file).shapes.keys() == T5EncoderModel(config).state_dict().keys() - {
        "encoder.embed_tokens.weight"  # the same as "shared"
    }


DAMAGED = {
    "no tensors": {},
    "more tensors than bytes": {"counts": (90_000, 0)},
    "an endless count": {"counts": (2**63, 2**63)},
    "an endless name": {"tensors": [struct.pack("<Q", 2**62)]},
    "an endless text": {"tensors": [tensor()], "remarks": (text("a") + struct.pack("<IQ", 8, 2**60),)},
    "an endless list": {"tensors": [tensor()], "remarks": (text("a") + struct.pack("<IIQ", 9, 4, 2**60),)},
    "an endless list of texts": {"tensors": [tensor()], "remarks": (text("a") + struct.pack("<IIQ", 9, 8, 2**60),)},
    "a list of lists": {"tensors": [tensor()], "remarks": (text("a") + struct.pack("<IIQ", 9, 9, 1),)},
    "an unknown kind of value": {"tensors": [tensor()], "remarks": (text("a") + struct.pack("<I", 77),)},
    "an alignment of nothing": {"tensors": [tensor()], "remarks": (number("general.alignment", 0),)},
    "an odd alignment": {"tensors": [tensor()], "remarks": (number("general.alignment", 7),)},
    "a tensor beyond the end": {"tensors": [tensor(start=2**40)]},
    "a tensor that is not aligned": {"tensors": [tensor(start=3)]},
    "a tensor larger than the file": {"tensors": [tensor(shape=(2**20, 2**12))]},
    "a side that nothing has": {"tensors": [tensor(shape=(2**60, 2**60))]},
    "too many dimensions": {"tensors": [tensor(shape=(1,) * 900)]},
    "rows of half a block": {"tensors": [tensor(shape=(33, 2))]},
    "two tensors of one name": {"tensors": [tensor(), tensor()]},
    "a block number out of reach": {"tensors": [tensor("blocks.100000000.weight")]},
    "a name that is not UTF-8": {"tensors": [struct.pack("<Q", 2) + b"\xff\xfe" + bytes(100)]},
    "one of several parts": {"tensors": [tensor()], "remarks": (number("split.count", 3),)},
    "version 1": {"tensors": [tensor()], "version": 1},
    "big-endian": {"tensors": [tensor()], "version": 3 << 24},
    "a format that is not read": {"tensors": [tensor(shape=(256, 2), code=16)]},
    "an unknown format": {"tensors": [tensor(code=250)]},
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_header_that_claims_what_is_not_there_is_one_line(tmp_path: Path, damage: str) -> None:
    options = dict(DAMAGED[damage])
    tensors = options.pop("tensors", [])
    file = gguf(tmp_path / "bad.gguf", *tensors, **options)  # type: ignore[misc, arg-type]
    assert "bad.gguf" in refusal(lambda: read_header(file))
    with pytest.raises(WeightsError, match=r"bad\.gguf"):
        check_content(file, file.name)


def test_a_file_that_is_cut_anywhere_is_one_line(tmp_path: Path) -> None:
    whole = gguf(tmp_path / "a.gguf", tensor(), remarks=(number("general.alignment", 32),), data=0).read_bytes()
    for length in range(4, len(whole), 5):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        assert "cut.gguf" in refusal(lambda: read_header(tmp_path / "cut.gguf"))


def test_a_format_that_is_not_read_is_named_with_those_that_are(tmp_path: Path) -> None:
    told = refusal(lambda: read_header(gguf(tmp_path / "a.gguf", tensor(shape=(256, 2), code=16))))
    assert "IQ2_XXS" in told and "GGUF from Q2_K to Q8_0" in told
