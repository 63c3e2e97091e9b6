"""A text encoder that is the beginning of a language model writes with the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_flux2 import write_klein
from support.small_z_image import write_z_image
from support.sparse_checkpoints import write_klein as write_published
from support.sparse_checkpoints import write_z_image as write_published_z_image
from transformers import Qwen2TokenizerFast, Qwen3ForCausalLM

from backend.core.errors import WeightsError
from backend.core.settings import Settings
from backend.devices.emulated import EmulatedDevice
from backend.memory_management import predicted_peak
from backend.model_cache_optimizer import ModelCache
from backend.offload.oom_fallback import OomFallback
from backend.planning.activations import prediction_steps
from backend.planning.costs import Kind, Placement
from backend.planning.gpu_specs import emulated_memory
from modules.app.model_files import Files, find_files
from modules.families.registry import identify
from modules.families.source import Source
from modules.prompting.prompt_upsampler import MODEL, PromptUpsampler, find_prompt_upsampler

FLOAT = torch.float32
ENCODER = "text_encoder"


@pytest.fixture(scope="module", params=[write_klein, write_z_image], ids=["flux2-klein", "z-image"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Of a small random model, in which one layer lies behind the text encoder."""
    folder = request.param(tmp_path_factory.mktemp("model"))
    return find_files(replace(Settings(), model=str(folder), prompt_upsampler="text_encoder"))


def upsampler_of(files: Files, models: ModelCache, tokens: int = 10) -> PromptUpsampler:
    writer = files.prompt_upsampler
    assert writer is not None
    for name, loader in files.loaders(FLOAT, FLOAT, 0).items():
        models.register(name, loader)
    return PromptUpsampler(models, writer, tokens, OomFallback(models))


def test_it_writes_what_the_whole_language_model_writes(files: Files) -> None:
    """By the generation of transformers, word by word with a cache of keys."""
    writer = files.prompt_upsampler
    assert writer is not None and not isinstance(writer, Path)
    folder = files.model.source.path
    whole = Qwen3ForCausalLM.from_pretrained(
        folder / ENCODER, local_files_only=True, trust_remote_code=False, dtype=FLOAT
    ).eval()
    encoder, behind = files.load(ENCODER, FLOAT), writer.load(FLOAT)
    ours = writer.network(encoder, behind)
    tokenizer = Qwen2TokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True, trust_remote_code=False)
    given = tokenizer("a red fox", return_tensors="pt")
    wanted = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        assert torch.equal(ours.generate(**given, **wanted), whole.generate(**given, **wanted))
    lent = {tensor.data_ptr() for module in (encoder, behind) for tensor in module.parameters()}
    assert {tensor.data_ptr() for tensor in ours.parameters()} == lent, "it has no weights of its own"


def test_it_is_planned_as_no_more_than_what_lies_behind(files: Files) -> None:
    spec = files.spec()
    whole = Qwen3ForCausalLM.from_pretrained(
        files.model.source.path / ENCODER, local_files_only=True, trust_remote_code=False
    )
    behind = spec.components[MODEL].parameters
    assert behind + spec.components[ENCODER].parameters == sum(one.numel() for one in whole.parameters())
    (step,) = (one for one in prediction_steps(files.workload(Settings()), spec) if one.stage == "prompt")
    assert step.components == (ENCODER, MODEL) and step.forwards == 1, "few requests ask for it"


@pytest.fixture(scope="module")
def resident(files: Files) -> str:
    return upsampler_of(files, ModelCache(torch.device("cpu"))).rewrite("a red fox", 3)


@pytest.mark.parametrize("kind", ["partial", "layer offload"])
def test_placements_write_the_same(files: Files, resident: str, kind: Kind) -> None:
    """Those that differ most."""
    device = EmulatedDevice(10**9)
    kinds: dict[str, Kind] = {ENCODER: kind, MODEL: "model offload"}
    models = ModelCache(torch.device("cpu"), device, kinds, kept_blocks={ENCODER: 5 * (kind == "partial")})
    upsampler = upsampler_of(files, models)
    with device:
        assert upsampler.rewrite("a red fox", 3) == resident and len(resident) > 5
    models.release()


def test_the_memory_of_writing_is_in_the_plan(files: Files) -> None:
    """At most: the plan counts as many tokens as the text encoder takes."""
    device, spec = EmulatedDevice(10**9), files.spec()
    models = ModelCache(torch.device("cpu"), device, {ENCODER: "model offload", MODEL: "model offload"})
    upsampler = upsampler_of(files, models, files.profile.tokens)
    with device:
        upsampler.rewrite("a red fox", 3)
        device.reset_peak()
        upsampler.rewrite("a red fox", 3)
    placements = {name: Placement("model offload", "fp32") for name in spec.components}
    workload = files.workload(Settings())
    assert device.peak_bytes <= predicted_peak(emulated_memory(10**9, 10**10), spec, workload, placements)


def test_a_file_without_the_last_layers_lends_nothing(tmp_path: Path) -> None:
    folder = write_klein(tmp_path / "klein")
    (weights,) = (folder / ENCODER).glob("*.safetensors")
    save_file({name: one for name, one in load_file(weights).items() if ".layers.27." not in name}, weights)
    found = identify(Source(folder))
    assert found.text_writer is None and find_prompt_upsampler(Settings(), embedded=False, writer=None) is None
    with pytest.raises(WeightsError, match="^prompt_upsampler: the text encoder of this model writes nothing, or its"):
        find_prompt_upsampler(Settings(prompt_upsampler="text_encoder"), embedded=False, writer=None)


def test_what_costs_much_is_lent_only_where_the_setting_says_so(tmp_path: Path) -> None:
    """Of 36 layers klein leaves nine to those who write, and Z-Image one."""
    writer = identify(Source(write_published(tmp_path / "klein"))).text_writer
    assert writer is not None and writer.share == pytest.approx(9 / 27)
    assert find_prompt_upsampler(Settings(), embedded=False, writer=writer) is None
    asked = replace(Settings(), prompt_upsampler="text_encoder")
    assert find_prompt_upsampler(asked, embedded=False, writer=writer) is writer
    assert find_prompt_upsampler(replace(asked, prompt_upsampler=""), embedded=False, writer=writer) is None
    cheap = identify(Source(write_published_z_image(tmp_path / "z-image"))).text_writer
    assert cheap is not None and cheap.share == pytest.approx(1 / 35)
    assert find_prompt_upsampler(Settings(), embedded=False, writer=cheap) is cheap
