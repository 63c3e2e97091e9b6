#!/usr/bin/env python3
"""Runs a language model on all GPUs, filled to a given share of what is free: ``examples/inference_cuda_optimized.py -m
MODEL_DIR``.

Without a CUDA device the same command runs on the CPU, with transformers. docs/language_model.md tells more.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backend.core.errors import UserError
from modules.cli.command import BAD_INPUT, CommandParser

WARM_UP_TOKENS = 8


def utilization(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be over 0 and at most 1, not {text}")
    return value


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    parser = CommandParser("inference_cuda_optimized.py", description=__doc__.split("\n")[0].partition(":")[0] + ".")
    parser.add_argument("-m", "--model_dir", type=Path, required=True, metavar="DIR", help="folder of the model")
    parser.add_argument(
        "-u",
        "--gpu_utilization",
        type=utilization,
        default=0.9,
        metavar="0.90",
        help="share of the free memory that may be used",
    )
    parser.add_argument("-p", "--prompt", default="Once upon a time,", help="the text to go on with")
    parser.add_argument("-t", "--tokens", type=positive, default=200, metavar="200", help="most tokens to write")
    parser.add_argument(
        "--engine",
        choices=("exllamav2", "exllamav3", "transformers"),
        help="default: exllamav2 on CUDA, else transformers",
    )
    parser.add_argument(
        "--max-seq-len",
        type=positive,
        metavar="N",
        help="longest sequence in tokens, which the cache must hold (default: the model's)",
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser


def memory_report() -> str:
    """Allocated, reserved and share of every GPU; without one, of this process."""
    import torch

    from backend.devices.probe import host_memory, process_memory

    if not torch.cuda.is_available():
        held, total = process_memory(), host_memory()[0]
        return (
            f"CPU: {held / 2**30:.2f} GiB held by this process of {total / 2**30:.2f} GiB, {held / total:.1%} utilized"
        )
    lines = []
    for index in range(torch.cuda.device_count()):
        total = torch.cuda.get_device_properties(index).total_memory
        allocated, reserved = torch.cuda.memory_allocated(index), torch.cuda.memory_reserved(index)
        parts = f"{allocated / 2**30:.2f} GiB allocated, {reserved / 2**30:.2f} GiB reserved of {total / 2**30:.2f} GiB"
        lines.append(f"GPU {index}: {parts}, {reserved / total:.1%} utilized")
    return "\n".join(lines)


def run(options: argparse.Namespace) -> None:
    import torch

    from backend.devices.torchvision_ops import ensure_torchvision_operators
    from backend.llm.language_model import ENGINES, Budget, TooLarge, flash_attention
    from backend.offload.oom_fallback import is_out_of_memory

    ensure_torchvision_operators()  # transformers asks torchvision for them when it is imported
    engine = options.engine or ("exllamav2" if torch.cuda.is_available() else "transformers")
    print(f"FlashAttention: {flash_attention()}")
    try:
        begin = time.perf_counter()
        model = ENGINES[engine](options.model_dir, Budget(options.gpu_utilization, options.max_seq_len))
        print(
            f"{options.model_dir.resolve().name}: loaded with {engine} in {time.perf_counter() - begin:.1f} s, "
            f"nothing offloaded, {model.cache_dtype} cache"
        )
        model.complete(options.prompt, WARM_UP_TOKENS, options.seed)
        written = model.complete(options.prompt, options.tokens, options.seed)
    except RuntimeError as error:
        if not (
            is_out_of_memory(error) or "Insufficient VRAM" in str(error)
        ):  # the second is how the exllama engines say it
            raise
        raise TooLarge(str(error).partition("\n")[0]) from None
    print(f"\n{options.prompt}{written.text}\n")
    print(
        f"{written.tokens} tokens in {written.seconds:.2f} s: {written.tokens / written.seconds:.1f} tokens/s, after "
        "a warm-up"
    )
    print(memory_report())


def main() -> int:
    options = parser().parse_args()
    try:
        run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
