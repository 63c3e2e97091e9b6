"""How LoRA files for Z-Image name its layers: the names of its first code."""

from __future__ import annotations

from collections.abc import Iterator

from modules.lora.names import Layers, LoraNames, Target

RENAMED = {"all_final_layer.2-1.": "final_layer.", "all_x_embedder.2-1": "x_embedder"}
QKV = (".attention.to_q", ".attention.to_k", ".attention.to_v")


def aliases(component: str, layers: Layers) -> Iterator[tuple[str, Target]]:
    """Further names of the transformer's layers."""
    if component != "transformer":
        return
    for path, shape in layers.items():
        theirs = path.replace(".attention.to_out.0", ".attention.out")
        for ours, name in RENAMED.items():
            theirs = theirs.replace(ours, name)
        if theirs != path:
            yield theirs, Target(component, path)
        for place, end in enumerate(QKV):  # which the file may have in one matrix
            if path.endswith(end):
                rows = (place * shape[0], (place + 1) * shape[0])
                yield path.replace(end, ".attention.qkv"), Target(component, path, (rows,))


LORA_NAMES = LoraNames({"text_encoder": ("text_encoder_",)}, aliases)
