"""No call in the source lets a model's files run code: every loader of transformers and diffusers is told so, and
nothing unpickles what somebody else wrote."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from backend.core.settings import ROOT

LOADERS = ("from_pretrained", "from_single_file", "from_config", "for_model", "load_lora_weights")
"""Methods that must be called with ``trust_remote_code=False``; ``pipeline`` of transformers is not used at all."""
WITHOUT: Mapping[str, str] = {
    "EulerDiscreteScheduler.from_config": "diffusers calls the class itself with the entries that it knows",
    "SOLVERS[sampler].from_config": "as above",
    "DPMSolverMultistepScheduler.from_config": "as above",
    "FluxTransformer2DModel.from_config": "as above",
    "kind.from_config": "as above; kind is a class of diffusers that a family names",
    "module_class.from_config": "as above",
    "AutoencoderKL.from_config": "as above",
    "AutoencoderKLFlux2.from_config": "as above",
    "peer.load_lora_weights": "diffusers reads one safetensors file, which the test has written",
    "Model.from_config": "exllamav3's, from a configuration that it has read; it has no such argument",
    "Tokenizer.from_config": "as above",
}
"""Calls that take no such argument, and why they run nothing of the files."""
FORBIDDEN = ("get_kernel", "load_kernel", "get_class_from_dynamic_module", "torch.hub.load", "hub.load", "joblib.load")
"""Calls that exist to run code of a repository."""
UNPICKLING = ("pickle.load", "pickle.loads", "torch.load", "np.load", "numpy.load", "dill.load")
EXEMPT: Mapping[str, str] = {
    "tests/security/test_planted_code.py: AutoTokenizer.from_pretrained": "the control: with trust the code runs",
    "backend/nodes/ray_data.py: pickle.loads": "rows that this process has pickled itself, on their way through Ray",
    "training/models/batches.py: torch.load": "latents that the training has written itself",
}
"""Calls that run what they read, and why they may."""


def python_files() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", "*.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [Path(name) for name in listed if (ROOT / name).is_file()]


def problems(source: str, file: str) -> Iterator[str]:
    """The calls in a file's source that may run code of a model, as "line: call"."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if may_run_code(called, given, file):
                yield f"{node.lineno}: {called}"
        if isinstance(node, ast.ImportFrom) and node.module == "transformers":
            yield from (f"{node.lineno}: {one.name}" for one in node.names if one.name == "pipeline")
        # programs for other processes lie in texts
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and file != str(THIS):
            text = node.value
            if ".from_pretrained(" in text and "\n" in text and "trust_remote_code=False" not in text:
                yield f"{node.lineno}: a text with from_pretrained"


def may_run_code(called: str, given: Mapping[str | None, str], file: str) -> bool:
    method = called.rpartition(".")[2]
    if f"{file}: {called}" in EXEMPT:
        return False
    if given.get("trust_remote_code") == "True" or called.endswith(FORBIDDEN):
        return True
    if called in UNPICKLING:
        return given.get("weights_only") != "True"
    return method in LOADERS and "." in called and called not in WITHOUT and given.get("trust_remote_code") != "False"


THIS = Path(__file__).relative_to(ROOT)


@pytest.mark.parametrize("folder", ["backend", "modules", "training", "bench", "tests", "examples", "."])
def test_no_call_lets_a_model_run_code(folder: str) -> None:
    files = [path for path in python_files() if (path.parts[0] == folder or (folder == "." and len(path.parts) == 1))]
    assert files
    found = {str(path): list(problems((ROOT / path).read_text(), str(path))) for path in files}
    assert {path: calls for path, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "source",
    [
        "AutoTokenizer.from_pretrained(folder)",
        "AutoTokenizer.from_pretrained(folder, trust_remote_code=True)",
        "AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)",
        "CLIPTokenizer.from_pretrained(folder, local_files_only=True)",
        "kind.from_pretrained(folder)",
        "transformers.AutoConfig.for_model('llama')",
        "AutoModel.from_config(config)",
        "DiffusionPipeline.from_pretrained(folder, custom_pipeline='x')",
        "StableDiffusionPipeline.from_single_file(file)",
        "from transformers import pipeline",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "pickle.loads(content)",
        "np.load(file, allow_pickle=True)",
        "kernels.get_kernel('owner/name')",
        "torch.hub.load('owner/name', 'model')",
        "PROGRAM = '''\nFluxPipeline.from_pretrained(folder)\n'''",
    ],
)
def test_a_call_that_does_is_found(source: str) -> None:
    assert len(list(problems(source, "modules/example.py"))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "AutoTokenizer.from_pretrained(folder, trust_remote_code=False)",
        "torch.load(file, map_location='cpu', weights_only=True)",
        "self._pipeline(prompt)",
    ],
)
def test_a_call_that_does_not_passes(source: str) -> None:
    assert list(problems(source, "modules/example.py")) == []


def test_every_exception_is_still_needed() -> None:
    calls = {
        (str(path), ast.unparse(node.func))
        for path in python_files()
        if path != THIS
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.Call)
    }
    assert WITHOUT.keys() <= {called for _, called in calls}
    assert EXEMPT.keys() <= {f"{path}: {called}" for path, called in calls}
