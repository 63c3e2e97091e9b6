"""The files beside an ONNX file are found in its bytes, and must lie beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.refusals import refusal

from backend.core.data_files import DataError
from modules.detection.external_data import check_external_data
from modules.detection.yolo import load_detector_network, offline_ultralytics

onnx = pytest.importorskip("onnx", reason="onnx writes the files")


def external(location: str, offset: int = 0, length: int | None = None) -> object:
    tensor = onnx.TensorProto(name="weights", dims=[4], data_type=onnx.TensorProto.FLOAT, data_location=1)
    given = {"location": location, "offset": str(offset)} | ({"length": str(length)} if length is not None else {})
    for key, value in given.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(place: str, tensor: object) -> bytes:
    """A model with the tensor in one of the places where the format has tensors."""
    made = onnx.ModelProto(ir_version=8)
    made.graph.name = "graph"
    attribute = onnx.AttributeProto(name="value")
    if place == "initializer":
        made.graph.initializer.append(tensor)
    elif place == "sparse":
        made.graph.sparse_initializer.add().values.CopyFrom(tensor)
    elif place == "training":
        made.training_info.add().algorithm.initializer.append(tensor)
    elif place == "subgraph":
        attribute.g.initializer.append(tensor)
        made.graph.node.add(op_type="If").attribute.append(attribute)
    elif place == "function":
        attribute.t.CopyFrom(tensor)
        made.functions.add(name="f").node.add(op_type="Constant").attribute.append(attribute)
    else:
        attribute.tensors.append(tensor)
        made.graph.node.add(op_type="Constant").attribute.append(attribute)
    return bytes(made.SerializeToString())


@pytest.mark.parametrize("place", ["initializer", "sparse", "training", "subgraph", "function", "attribute"])
def test_weights_outside_of_the_folder_are_refused_wherever_they_are_named(tmp_path: Path, place: str) -> None:
    file = tmp_path / "face.onnx"
    file.write_bytes(model(place, external("../outside.bin")))
    with pytest.raises(DataError, match="^takes weights from a file outside of its folder"):
        check_external_data(file)


@pytest.mark.parametrize(
    ("location", "offset", "length", "message"),
    [
        ("/etc/passwd", 0, None, "outside of its folder"),
        ("a/../../x", 0, None, "outside of its folder"),
        ("..", 0, None, "outside of its folder"),
        ("", 0, None, "outside of its folder"),
        ("..\\x", 0, None, "outside of its folder"),
        ("*/_ORT_MEM_ADDR_/*", 4096, 16, "no such file beside it"),
        ("missing.bin", 0, None, "no such file beside it"),
        (".", 0, None, "no such file beside it"),
        ("link.bin", 0, None, "a link to a file outside of its folder"),
        ("links/passwd", 0, None, "a link to a file outside of its folder"),
        ("weights.bin", 0, 17, "cut off"),
        ("weights.bin", 12, 8, "cut off"),
        ("weights.bin", 17, None, "cut off"),
        ("weights.bin", -1, 4, "cut off"),
        ("pipe", 0, None, "no such file beside it"),
    ],
)
def test_what_is_not_whole_and_beside_the_file_is_refused(
    tmp_path: Path, location: str, offset: int, length: int | None, message: str
) -> None:
    import os

    (tmp_path / "weights.bin").write_bytes(bytes(16))
    (tmp_path / "link.bin").symlink_to("/etc/passwd")
    (tmp_path / "links").symlink_to("/etc")
    os.mkfifo(tmp_path / "pipe")
    file = tmp_path / "face.onnx"
    file.write_bytes(model("initializer", external(location, offset, length)))
    with pytest.raises(DataError, match=message):
        check_external_data(file)


def test_whole_weights_beside_the_file_are_taken(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    file = tmp_path / "face.onnx"
    for tensor in (external("weights.bin"), external("weights.bin", 4, 12)):
        file.write_bytes(model("initializer", tensor))
        check_external_data(file)


@pytest.mark.parametrize(
    "content", [b"", b"\x08\x07nonsense", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x0b"]
)
def test_bytes_that_are_no_onnx_file_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "face.onnx").write_bytes(content)
    with pytest.raises(DataError):
        check_external_data(tmp_path / "face.onnx")


def test_graphs_without_end_are_refused(tmp_path: Path) -> None:
    graph = b""
    for _ in range(200):
        attribute = field(6, graph)
        graph = field(1, field(5, attribute))
    (tmp_path / "face.onnx").write_bytes(field(7, graph))
    with pytest.raises(DataError, match="nested"):
        check_external_data(tmp_path / "face.onnx")


def field(number: int, content: bytes) -> bytes:
    length, text = len(content), bytearray([number << 3 | 2])
    while length > 127:
        text.append(length & 127 | 128)
        length >>= 7
    return bytes([*text, length]) + content


def test_a_detector_that_takes_weights_from_elsewhere_is_refused_by_name(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is optional")
    offline_ultralytics(tmp_path / "ultralytics")
    (tmp_path / "face.onnx").write_bytes(model("initializer", external("/etc/passwd")))
    text = refusal(lambda: load_detector_network(tmp_path / "face.onnx"))
    assert text.startswith("face.onnx: takes weights from a file outside of its folder, '/etc/passwd'")
