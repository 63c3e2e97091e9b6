"""Z-Image's weights in the names of its first code, as single files have them: the way back of what diffusers does."""

from __future__ import annotations

import torch

Tensors = dict[str, torch.Tensor]
RENAMED = {
    "all_final_layer.2-1.": "final_layer.",
    "all_x_embedder.2-1.": "x_embedder.",
    ".attention.to_out.0.": ".attention.out.",
    ".attention.norm_k.": ".attention.k_norm.",
    ".attention.norm_q.": ".attention.q_norm.",
}


def original_names(tensors: Tensors) -> Tensors:
    written: Tensors = {}
    for name, tensor in tensors.items():
        if ".to_q." in name:
            parts = [tensors[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            written[name.replace("to_q", "qkv")] = torch.cat(parts)
        elif ".to_k." not in name and ".to_v." not in name:
            for ours, theirs in RENAMED.items():
                name = name.replace(ours, theirs)
            written[name] = tensor
    return written
