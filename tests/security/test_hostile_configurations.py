"""Configurations that are no configurations, or claim what no model has: one line with the file's name, at once, and
without the memory that they ask for."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from support.damaged_files import DAMAGES, linked_copy
from support.refusals import refusal

from backend.checkpoints.config import check_model_folder, read_config
from backend.core.settings import ROOT
from backend.llm.language_model import load_causal_network
from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback
from backend.planning.companions import with_prompt_upsampler
from modules.families.flux1.spec import FLUX_DEV
from modules.families.registry import FAMILIES, identify
from modules.families.source import Source
from modules.prompting.prompt_upsampler import PromptUpsampler

EMBEDDED = ROOT / "weights" / "embedded"
SECONDS, MEGABYTES = 5, 600

Read = Callable[[Path], object]


def component(name: str) -> Read:
    return lambda folder: FAMILIES[0].load(Source(folder), name, torch.float32)


def recognize(folder: Path) -> object:
    return identify(Source(folder)).spec("fp32")


def service(folder: Path) -> object:
    return FAMILIES[0].service(Source(folder), ModelCache(torch.device("cpu")), torch.float32, OomFallback(), 1)


def upsampler(folder: Path) -> object:
    with_prompt_upsampler(FLUX_DEV, folder, "fp32")
    PromptUpsampler(ModelCache(torch.device("cpu")), folder, 40, OomFallback())
    return load_causal_network(folder, torch.float32)


FLUX: Mapping[str, Read] = {
    "family.json": recognize,
    "model_index.json": recognize,
    "vae/config.json": recognize,
    "transformer/config.json": recognize,
    "text_encoder/config.json": component("text_encoder"),
    "text_encoder_2/config.json": component("text_encoder_2"),
    "tokenizer/tokenizer_config.json": service,
    "tokenizer/tokenizer.json": service,
    "tokenizer_2/tokenizer_config.json": service,
    "tokenizer_2/tokenizer.json": service,
    "scheduler/scheduler_config.json": service,
}
UPSAMPLER = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@contextmanager
def bounded() -> Iterator[None]:
    """The block takes at most so many seconds of this process, and little more memory than was taken before."""
    begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.process_time() - begin < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """The libraries take their time to import once."""
    for read in (*FLUX.values(), component("transformer"), component("vae")):
        read(EMBEDDED / "flux")
    upsampler(EMBEDDED / "prompt_upsampler")


@pytest.fixture
def flux(tmp_path: Path) -> Path:
    return linked_copy(EMBEDDED / "flux", tmp_path / "flux")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_configuration_of_a_model_is_named(flux: Path, damage: str) -> None:
    for name, read in FLUX.items():
        before = (flux / name).read_bytes()
        DAMAGES[damage](flux / name)
        with bounded():
            assert name.rpartition("/")[2] in refusal(lambda read=read: read(flux)), name  # type: ignore[misc]
        if (flux / name).is_dir():
            (flux / name).rmdir()
        else:
            (flux / name).unlink()
        (flux / name).write_bytes(before)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_a_language_model_is_named(tmp_path: Path, damage: str) -> None:
    for name in UPSAMPLER:
        folder = linked_copy(EMBEDDED / "prompt_upsampler", tmp_path / name)
        DAMAGES[damage](folder / name)
        with bounded():
            assert name in refusal(lambda folder=folder: upsampler(folder)), name  # type: ignore[misc]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_of_weights_is_named(flux: Path, damage: str) -> None:
    for name in ("text_encoder/model.safetensors.index.json", "vae/diffusion_pytorch_model.safetensors.index.json"):
        (flux / name).write_text("{}")
        DAMAGES[damage](flux / name)
        with bounded():
            read = component(name.partition("/")[0])
            assert name in refusal(lambda read=read: read(flux))  # type: ignore[misc]


@pytest.mark.parametrize("outside", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""])
def test_an_index_names_only_files_beside_it(flux: Path, outside: str) -> None:
    index = {"metadata": {}, "weight_map": {"a": outside}}
    (flux / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert "names a file outside of its folder" in refusal(lambda: component("vae")(flux))


SIZES = (10**12, 10**8, -1, "128", 2.5, [1] * 5000, {"a": 1}, [[[10**9]]], float("nan"), float("inf"), True)
CLAIMS: Mapping[str, tuple[str, ...]] = {
    "vae/config.json": ("block_out_channels", "latent_channels", "layers_per_block", "norm_num_groups", "scaling_factor"),
    "transformer/config.json": ("num_layers", "num_single_layers", "attention_head_dim", "in_channels", "axes_dims_rope"),
    "text_encoder/config.json": ("hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings", "num_labels"),
    "text_encoder_2/config.json": ("d_model", "d_ff", "num_layers", "vocab_size", "relative_attention_num_buckets"),
    "tokenizer/tokenizer_config.json": ("model_max_length",),
    "scheduler/scheduler_config.json": ("num_train_timesteps", "shift", "max_image_seq_len"),
    "family.json": ("native", "tokens"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "key"), [(file, key) for file, keys in CLAIMS.items() for key in keys])
def test_what_no_model_has_is_refused_or_means_nothing(flux: Path, file: str, key: str) -> None:
    """Where the value is one that a library takes for something harmless, the model is read as before."""
    given, part = json.loads((flux / file).read_text()), file.partition("/")[0]
    read = component(part) if part in ("vae", "transformer", "text_encoder", "text_encoder_2") else service
    for value in SIZES:
        (flux / file).write_text(json.dumps({**given, key: value}))

        def everything(read: Read = read) -> None:
            recognize(flux)
            read(flux)

        with bounded():
            try:
                everything()
            except Exception:
                message = refusal(everything)
                assert part in message or file in message, (value, message)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**8),
        ("num_hidden_layers", 900),
        ("hidden_size", 10**12),
        ("hidden_size", 10**7),
        ("vocab_size", 10**12),
        ("intermediate_size", 10**7),
        ("num_key_value_heads", 0),
        ("num_attention_heads", "6"),
        ("head_dim", -24),
        ("num_labels", 10**9),
        ("max_position_embeddings", 10**15),
        ("rope_parameters", {"rope_type": "evil"}),
        ("hidden_act", "evil"),
        ("dtype", "float1000"),
        ("quantization_config", {"quant_method": "evil"}),
        ("text_config", 5),
        ("architectures", [["LlamaForCausalLM"]]),
    ],
)
def test_what_no_language_model_has_is_refused(tmp_path: Path, key: str, value: object) -> None:
    folder = linked_copy(EMBEDDED / "prompt_upsampler", tmp_path / "model")
    given = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**given, key: value}))
    with bounded():
        try:
            upsampler(folder)
        except Exception:
            assert "model/" in refusal(lambda: upsampler(folder))


def test_files_that_no_library_reads_are_left_alone(tmp_path: Path) -> None:
    folder = linked_copy(EMBEDDED / "prompt_upsampler", tmp_path / "model")
    (folder / "trainer_state.json").write_text(json.dumps({"total_flos": 10**18, "log_history": [[1]] * 10**6}))
    (folder / "notes.json").write_text("none")
    assert upsampler(folder)


def test_configurations_of_published_models_pass(tmp_path: Path) -> None:
    """Values at the edge that large models have."""
    folder = linked_copy(EMBEDDED / "prompt_upsampler", tmp_path / "model")
    given = json.loads((folder / "config.json").read_text())
    usual = {
        "max_position_embeddings": 10_485_760,
        "rope_theta": 500_000_000,
        "num_labels": 2,
        "head_dim": None,
        "layer_types": ["full_attention"] * 4,
        "intermediate_size": [384] * 35,
        "attn_implementation": "sdpa",
        "time_step_limit": [0.0, float("inf")],
        "sliding_window": None,
        "vision_config": {"image_size": {"height": 896, "width": 896}, "patch_size": [2, 14, 14], "num_layers": 27},
        "quantization_config": {"bits": 4, "group_size": -1, "quant_method": "gptq"},
    }
    (folder / "config.json").write_text(json.dumps({**given, **usual}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**json.loads((folder / "tokenizer_config.json").read_text()), "model_max_length": 10**30})
    )
    assert read_config(folder / "config.json")["rope_theta"] == 500_000_000
    check_model_folder(folder)
