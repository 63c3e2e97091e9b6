"""Runs in a process of its own: basicsr's RRDBNet, made and run from its source folder; nothing of ours is
imported but the operators that torchvision lacks beside a CPU build of torch.

    python peer_basicsr.py SOURCE_FOLDER OUT_FOLDER

basicsr's ``__init__`` imports everything, and fails beside a current torchvision; the network needs four of its files.
Writes ``weights.safetensors`` (random), ``pixels.safetensors`` (an input) and ``result.safetensors``.
"""

import logging
import sys
import types
from pathlib import Path


def main(source: Path, out: Path) -> None:
    for name in ("basicsr", "basicsr.utils", "basicsr.archs", "basicsr.ops"):
        package = types.ModuleType(name)
        package.__path__ = [str(source / name.replace(".", "/"))]
        sys.modules[name] = package
    sys.modules["basicsr.utils"].get_root_logger = logging.getLogger  # type: ignore[attr-defined]

    import torch
    from safetensors.torch import save_file

    sys.path.append(str(Path(__file__).resolve().parents[2]))
    from backend.devices.torchvision_ops import ensure_torchvision_operators

    ensure_torchvision_operators()  # beside a CPU build of torch; the CUDA build has torchvision's own

    from basicsr.archs.rrdbnet_arch import RRDBNet

    torch.manual_seed(0)
    network = RRDBNet(3, 3, scale=4, num_feat=64, num_block=2, num_grow_ch=32).eval()
    pixels = torch.rand(1, 3, 24, 20)
    with torch.inference_mode():
        result = network(pixels)
    save_file(network.state_dict(), out / "weights.safetensors")
    save_file({"pixels": pixels}, out / "pixels.safetensors")
    save_file({"result": result.contiguous()}, out / "result.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
