"""Language models behind one small interface, :class:`LanguageModel`, opened from a folder by one of three engines.

transformers runs everywhere, and the model cache can manage its network like any other. ExLlamaV2 and ExLlamaV3 run on
CUDA only and manage their own weights; they are here because the set-up that this package replaces uses ExLlamaV2.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn

from backend.checkpoints.config import check_model_folder, read_config
from backend.checkpoints.folder_files import RESTORE, shard_files
from backend.checkpoints.loader import load_pretrained, load_tokenizer
from backend.core.cancellation import Check, never_canceled
from backend.core.errors import SettingsError, UserError, WeightsError
from backend.core.units import format_bytes
from backend.devices.probe import host_memory

TEMPERATURE = 0.7
REMEDIES = "lower the utilization (-u 0.85), give a smaller --max-seq-len, or use a quantized model (EXL2, GPTQ)"


class TooLarge(UserError):
    """A language model does not fit in the memory that it may use."""

    def __init__(self, what: str) -> None:
        super().__init__(f"out of memory: {what}; {REMEDIES}")


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt, without the prompt. ``ended`` is false when the token limit cut it off."""

    text: str
    tokens: int
    seconds: float
    ended: bool


class LanguageModel(Protocol):
    """A model that is ready to generate text. ``cache_dtype`` is the type of its KV cache."""

    cache_dtype: str

    def complete(self, prompt: str, max_new_tokens: int, seed: int) -> Completion:
        """Continues a text. The same seed gives the same words on the same machine."""


@dataclass(frozen=True)
class Budget:
    """What a model may use: a share ``utilization`` (over 0, at most 1) of the memory that is free now, and the longest
    sequence in tokens."""

    utilization: float = 0.9
    max_seq_len: int | None = None

    def reserved_bytes(self) -> list[int]:
        """The bytes to leave free on each GPU, of those that are free now."""
        return [
            int(torch.cuda.mem_get_info(index)[0] * (1 - self.utilization))
            for index in range(torch.cuda.device_count())
        ]


class TransformersModel:
    """A causal language model of transformers with its tokenizer. It uses a KV cache, so a token costs one short
    forward. ``device`` is where it computes, if its weights may wait elsewhere."""

    def __init__(
        self, network: Any, tokenizer: Any, max_seq_len: int | None = None, device: torch.device | None = None
    ) -> None:
        self.network, self.device = network, device or network.device
        self.tokenizer = tokenizer
        self.max_seq_len: int = max_seq_len or self.network.config.max_position_embeddings
        self.cache_dtype = str(network.dtype).removeprefix("torch.")
        own = self.network.generation_config.eos_token_id
        self._ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}

    @torch.inference_mode()
    def complete(self, prompt: str, max_new_tokens: int, seed: int, check: Check = never_canceled) -> Completion:
        """:meth:`LanguageModel.complete`; ``check`` is called before every token."""
        begin = time.perf_counter()
        started = bool(self.tokenizer.bos_token) and prompt.startswith(self.tokenizer.bos_token)
        given = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=not started).input_ids[
            :, -self.max_seq_len + 1 :
        ]
        limit = min(max_new_tokens, self.max_seq_len - given.shape[1])
        # sampled on the CPU, so that a seed means the same everywhere; generate() would use the global generator
        generator = torch.Generator("cpu").manual_seed(seed)
        cache, written = None, list[int]()
        while len(written) < limit:
            check()
            output = self.network(
                input_ids=given.to(self.device), past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            cache = output.past_key_values
            chances = torch.softmax(output.logits[0, -1].float().cpu() / TEMPERATURE, dim=0)
            token = int(torch.multinomial(chances, 1, generator=generator))
            if token in self._ends:
                break
            written.append(token)
            given = torch.tensor([[token]])
        text = self.tokenizer.decode(written, skip_special_tokens=True)
        return Completion(text, len(written), time.perf_counter() - begin, len(written) < limit)


class ExLlamaModel:
    """A generator of ExLlamaV2 or ExLlamaV3, which are called alike, with its tokenizer."""

    cache_dtype = "float16"

    def __init__(
        self, generator: Any, encode: Callable[[str], Any], stops: Sequence[int], sampling: Mapping[str, Any]
    ) -> None:
        self.generator, self.encode, self.stops, self.sampling = generator, encode, list(stops), dict(sampling)

    def complete(self, prompt: str, max_new_tokens: int, seed: int) -> Completion:
        begin = time.perf_counter()
        text: str = self.generator.generate(
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            seed=seed,
            stop_conditions=self.stops,
            completion_only=True,
            add_bos=True,
            **self.sampling,
        )
        tokens = int(self.encode(text).shape[-1])
        return Completion(text, tokens, time.perf_counter() - begin, tokens < max_new_tokens)


def load_causal_network(folder: Path, dtype: torch.dtype, device_map: Mapping[str, Any] | None = None) -> nn.Module:
    """A causal language model from a folder in transformers' layout, on the CPU unless ``device_map`` says
    otherwise. Raises :class:`WeightsError` when the files do not fit each other."""
    from transformers import AutoModelForCausalLM

    files = shard_files(folder)
    network, info = load_pretrained(AutoModelForCausalLM, folder, files, dtype, **(device_map or {}))
    if info["missing_keys"] or info["mismatched_keys"]:
        raise WeightsError(
            f"{folder.name} does not fit its config.json ({len(info['missing_keys'])} tensors are missing); {RESTORE}"
        )
    return network.eval()  # type: ignore[no-any-return]


def open_with_transformers(folder: Path, budget: Budget) -> LanguageModel:
    """In half precision, split over all GPUs; without a GPU on the CPU in float32. Nothing is offloaded."""
    from transformers import AutoTokenizer

    check_folder(folder)
    files = sum(file.stat().st_size for file in shard_files(folder))
    tokenizer = load_tokenizer(AutoTokenizer, folder)
    if not torch.cuda.is_available():
        free = host_memory()[1]
        if files > budget.utilization * free:
            raise TooLarge(
                f"the weights take {format_bytes(files)} of the {format_bytes(int(budget.utilization * free))} that "
                "may be used"
            )
        return TransformersModel(load_causal_network(folder, torch.float32), tokenizer, budget.max_seq_len)
    allowed = {
        index: int(torch.cuda.mem_get_info(index)[0]) - reserved
        for index, reserved in enumerate(budget.reserved_bytes())
    }
    if files > sum(allowed.values()):  # accelerate would put the rest on the CPU
        raise TooLarge(
            f"the weights take {format_bytes(files)} of the {format_bytes(sum(allowed.values()))} that may be used"
        )
    network = load_causal_network(folder, torch.float16, {"device_map": "auto", "max_memory": allowed})
    return TransformersModel(network, tokenizer, budget.max_seq_len)


def open_with_exllamav2(folder: Path, budget: Budget) -> LanguageModel:
    """Split over all GPUs, with an FP16 cache that is allocated while the layers load, so that both share the free
    memory."""
    check_cuda("exllamav2")
    check_folder(folder)
    from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Tokenizer
    from exllamav2.generator import ExLlamaV2DynamicGenerator, ExLlamaV2Sampler

    config = ExLlamaV2Config(str(folder))
    config.prepare()
    config.max_seq_len = budget.max_seq_len or config.max_seq_len
    model = ExLlamaV2(config)
    cache = ExLlamaV2Cache(model, lazy=True)
    model.load_autosplit(cache, reserve_vram=budget.reserved_bytes(), progress=True)
    tokenizer = ExLlamaV2Tokenizer(config)
    generator = ExLlamaV2DynamicGenerator(model, cache, tokenizer)
    generator.warmup()
    settings = ExLlamaV2Sampler.Settings(temperature=TEMPERATURE)
    return ExLlamaModel(generator, tokenizer.encode, [tokenizer.eos_token_id], {"gen_settings": settings})


def open_with_exllamav3(folder: Path, budget: Budget) -> LanguageModel:
    """Split over all GPUs, with an FP16 cache of ``max_seq_len`` tokens (8192 without one)."""
    check_cuda("exllamav3")
    check_folder(folder)
    from exllamav3 import Cache, Config, Generator, Model, Tokenizer, TopPSampler

    config = Config.from_directory(str(folder))
    model = Model.from_config(config)
    cache = Cache(model, max_num_tokens=-(-(budget.max_seq_len or 8192) // 256) * 256)  # whole pages
    model.load(reserve_per_device=[reserved / 2**30 for reserved in budget.reserved_bytes()], progressbar=True)
    tokenizer = Tokenizer.from_config(config)
    generator = Generator(model=model, cache=cache, tokenizer=tokenizer)
    sampler = TopPSampler(temperature=TEMPERATURE, top_p=1.0)
    return ExLlamaModel(generator, tokenizer.encode, config.eos_token_id_list, {"sampler": sampler})


ENGINES: Mapping[str, Callable[[Path, Budget], LanguageModel]] = MappingProxyType(
    {"exllamav2": open_with_exllamav2, "exllamav3": open_with_exllamav3, "transformers": open_with_transformers}
)


def check_folder(folder: Path) -> None:
    """Raises :class:`WeightsError` for a folder that is not a language model."""
    if not (folder / "config.json").is_file():
        raise WeightsError(
            f"'{folder}' is not a model: it has no config.json; give a folder with config.json, tokenizer and weights"
        )
    check_model_folder(folder)
    config = read_config(folder / "config.json")
    text = config.get("text_config")
    if "vocab_size" not in (text if isinstance(text, dict) else config):
        raise WeightsError(f"'{folder}' is not a language model: its config.json has no vocab_size")
    shard_files(folder)


def check_cuda(engine: str) -> None:
    """Raises :class:`SettingsError` when an engine cannot run here."""
    if not torch.cuda.is_available():
        raise SettingsError(
            f"--engine {engine} needs a CUDA device, and there is none; use --engine transformers, which also runs on "
            "the CPU"
        )
    if find_spec(engine) is None:
        raise SettingsError(
            f"--engine {engine}: the package {engine} is not installed; install it, or use --engine transformers"
        )


def flash_attention() -> str:
    """Whether the ExLlama engines can use FlashAttention here, in words."""
    if not torch.cuda.is_available():
        return "not used: there is no CUDA device"
    if find_spec("flash_attn") is None:
        return "not available: the package flash-attn is not installed (pip install flash-attn)"
    old = [index for index in range(torch.cuda.device_count()) if torch.cuda.get_device_capability(index) < (8, 0)]
    return f"not available: GPU {old[0]} is older than Ampere" if old else "available"
