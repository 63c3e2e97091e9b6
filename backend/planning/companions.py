"""The models that work beside one that generates: detectors, upscalers, a face restorer, a prompt upsampler. Pure,
without torch.

Each function adds one of them to a :class:`ModelSpec`. Counts are parameters.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from backend.checkpoints.config import Config, read_config
from backend.checkpoints.folder_files import shard_files
from backend.checkpoints.header import read_headers
from backend.core.errors import WeightsError
from backend.planning.checkpoint_sizes import component
from backend.planning.model_specs import BYTES_PER_PARAMETER, Component, Cost, Curve, ModelSpec

YOLO_PARAMETERS, ESRGAN_PARAMETERS = 1_600_000, 16_697_987
YOLO = Cost(Curve(linear=0.1e9), Curve(linear=8.7e9))
"""Of one picture at 640 x 640, in float32."""
SMALL_YOLO = Cost(Curve(linear=2.36e6), Curve(linear=0.3e9))
"""Of the embedded detectors: measured on the emulated device (``python -m bench.memory.activations``)."""
ESRGAN_BYTES, ESRGAN_WORK = 6.75e3, 35.9e6
"""For a pixel: bytes in 16 bits, operations."""
SMALL_UPSCALER_VECTORS = 36.4
"""How many vectors of its width the embedded upscaler holds for a pixel: measured likewise."""
GFPGAN = Cost(Curve(linear=0.58e9), Curve(linear=0.396e12))
"""Of one face of 512 x 512 in float32: measured on the emulated device, and counted on the real class."""


def with_detectors(spec: ModelSpec, count: int = YOLO_PARAMETERS, small: bool = False) -> ModelSpec:
    """All detectors together, in float32; ``small`` ones cost what the embedded ones do, others what YOLO does."""
    return _with(spec, "detectors", Component(count, "fp32"), "detect", SMALL_YOLO if small else YOLO)


def with_upscaler(
    spec: ModelSpec, count: int = ESRGAN_PARAMETERS, dtype: str = "fp16", small: Path | None = None
) -> ModelSpec:
    """All upscalers together, computing in ``dtype``. One costs what ESRGAN does, but for ``small``: the file of the
    embedded one, or of another of its architecture."""
    item = BYTES_PER_PARAMETER[dtype]
    cost = Cost(Curve(linear=ESRGAN_BYTES * item / 2), Curve(linear=ESRGAN_WORK))
    if small:
        first = (shape for shape in read_headers([small]).shapes.values() if len(shape) == 4 and shape[1] == 3)
        width = next(first, (0,))[0]
        cost = Cost(Curve(linear=SMALL_UPSCALER_VECTORS * width * item), Curve(linear=2 * count))
    return _with(spec, "upscaler", Component(count, dtype), "upscale", cost)


def with_embedded_companions(spec: ModelSpec, folder: Path, dtype: str) -> ModelSpec:
    """The detectors and the upscaler of a folder of embedded models. Raises WeightsError when they are missing or
    damaged."""
    detectors, upscaler = sorted(folder.glob("*_detector.safetensors")), folder / "upscaler.safetensors"
    for name, there in (("detectors", bool(detectors)), ("upscaler", upscaler.is_file())):
        if not there:
            raise WeightsError(f"{name}: no .safetensors file of it is in {folder.name}; restore the model folder")
    found = sum(component(read_headers([file]).shapes, "fp32").parameters for file in detectors)
    count = component(read_headers([upscaler]).shapes, dtype).parameters
    return with_upscaler(with_detectors(spec, found, small=True), count, dtype, upscaler)


def with_face_restorer(spec: ModelSpec, count: int) -> ModelSpec:
    """A network that restores faces, in float32, at GFPGAN's cost. It is neither rounded nor streamed."""
    return _with(spec, "face_restorer", Component(count, "fp32", rounds=False), "restore", GFPGAN)


def with_safety_checker(spec: ModelSpec, count: int) -> ModelSpec:
    """A checker of finished pictures, in float32, at a YOLO's cost; ``count`` is 0 where it computes on the CPU."""
    return _with(
        spec,
        "safety_checker",
        Component(count, "fp32", rounds=False),
        "check",
        YOLO if count else Cost(Curve(), YOLO.work),
    )


def with_prompt_upsampler(spec: ModelSpec, folder: Path, dtype: str) -> ModelSpec:
    """A language model that works first, whose folder is in transformers' layout; it computes in ``dtype``.

    Its cost "write" is that of one token (x: tokens of prompt and answer, whose keys and values are kept). It stays
    whole and exact: it may be loaded for its step alone, but is neither rounded nor streamed. Raises
    :class:`WeightsError` that names what is missing or damaged.
    """
    config = read_config(folder / "config.json")
    if isinstance(config.get("text_config"), dict):
        config = Config(config.name, config["text_config"])
    advice = "restore it, or change 'prompt_upsampler' in config_optimized.json"
    header = read_headers(shard_files(folder, advice), as_stored=True)  # libraries of their own read quantized ones
    count, item = component(header.shapes, dtype).parameters, BYTES_PER_PARAMETER[dtype]
    width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    kept = 2 * int(config["num_hidden_layers"]) * width * int(config.get("num_key_value_heads") or heads) / heads
    # beside keys and values: a few vectors of the widest layer for a token, and a row of logits in float32,
    # from which the next token is drawn
    memory = Curve(
        fixed=2 * 4 * int(config["vocab_size"]), linear=(kept + 4 * width + 2 * int(config["intermediate_size"])) * item
    )
    components = {"prompt_upsampler": Component(count, dtype, on_disk=header.precision), **spec.components}
    costs = {**spec.costs, "write": Cost(memory, Curve(fixed=2 * count))}
    return replace(spec, components=components, costs=costs)


def _with(spec: ModelSpec, name: str, added: Component, step: str, cost: Cost) -> ModelSpec:
    return replace(spec, components={**spec.components, name: added}, costs={**spec.costs, step: cost})
