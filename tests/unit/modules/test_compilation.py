"""Compiled code is used where it works; where it does not, the model runs as it is and says so once."""

from __future__ import annotations

import logging
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from backend.core.errors import UserError
from modules.compilation import Compilation, why_no_compiler


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing and its guards are real; no code is generated, which would take most of the time."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda run, dynamic, mode: compiled(run, dynamic=dynamic, backend="eager"))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(24, 24)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (x + torch.nn.functional.gelu(self.layer(x)),)


class JointBlock(Block):
    def forward(self, text: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        (joint,) = super().forward(torch.cat([text, image], 1))
        return joint[:, : text.shape[1]], joint[:, text.shape[1] :]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.is_cache_enabled = False

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        for block in self.blocks:
            (x,) = block(x)
        return (x,)


def reasons_of(model: Model, whole: bool = False) -> list[str]:
    """Compiles the model's blocks; the list gets what is said."""
    said: list[str] = []
    compilation = Compilation(said.append)
    for block in model.blocks:
        compilation.compile(block)
    if whole:
        compilation.compile(model, graphs=True)
    return said


def inputs(batch: int = 2, tokens: int = 5) -> torch.Tensor:
    return torch.randn(batch, tokens, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.usefixtures("traced_only")
class TestSizes:
    @torch.inference_mode()
    def test_one_graph_serves_all_numbers_of_pictures_and_tokens(self) -> None:
        model, plain = Model(), Model()
        reasons_of(model)
        for batch, tokens in ((2, 5), (3, 7), (8, 100)):
            assert torch.equal(model(inputs(batch, tokens))[0], plain(inputs(batch, tokens))[0])
        assert counters["stats"]["unique_graphs"] == 1

    @torch.inference_mode()
    def test_blocks_that_return_slices_of_one_picture_need_one_graph(self) -> None:
        """As Flux's single blocks: the first one gets whole tensors, the others slices."""
        blocks = [JointBlock() for _ in range(3)]
        text, image = plain = inputs(1, 3), inputs(1, 5)
        for block in blocks:
            plain = block(*plain)
        compilation = Compilation(print)
        for block in blocks:
            compilation.compile(block)
            text, image = block(text, image)
        assert torch.equal(text, plain[0]) and torch.equal(image, plain[1])
        assert counters["stats"]["unique_graphs"] == 1

    @torch.inference_mode()
    def test_the_whole_model_is_one_graph_whose_results_stay_valid(self) -> None:
        model, plain = Model(), Model()
        reasons_of(model, whole=True)
        first, second = model(inputs(2, 5))[0], model(inputs(3, 7))[0]
        assert torch.equal(first, plain(inputs(2, 5))[0]) and torch.equal(second, plain(inputs(3, 7))[0])
        assert counters["stats"]["unique_graphs"] == 1

    @torch.inference_mode()
    def test_where_blocks_are_skipped_they_are_compiled_one_by_one(self) -> None:
        model = Model()
        reasons_of(model, whole=True)
        model.is_cache_enabled = True
        seen: list[int] = []
        model.blocks[1].register_forward_hook(lambda module, args, output: seen.append(1))
        model(inputs())
        assert seen == [1] and counters["stats"]["unique_graphs"] == 1


def without_compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)


class TestFailure:
    @torch.inference_mode()
    def test_without_a_compiler_all_blocks_run_as_they_are_and_one_line_says_so(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        model, plain = Model(), Model()
        said = reasons_of(model)
        without_compilers(monkeypatch, tmp_path)
        for tokens in (5, 6):
            assert torch.equal(model(inputs(tokens=tokens))[0], plain(inputs(tokens=tokens))[0])
        assert len(said) == 1 and "compiling failed, so it runs as it is" in said[0] and "\n" not in said[0]

    @pytest.mark.usefixtures("traced_only")
    def test_an_error_of_the_model_is_raised(self) -> None:
        model = Model()
        reasons_of(model)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            model(torch.ones(1, 2, 7))

    @pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), UserError("canceled")])
    def test_full_memory_and_errors_of_ours_go_on_to_who_handles_them(
        self, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise error

        monkeypatch.setattr(torch, "compile", lambda run, dynamic, mode: fail)
        model = Model()
        said = reasons_of(model)
        with pytest.raises(type(error)):
            model(inputs())
        assert not said


class TestCompilers:
    def test_this_machine_can_compile_or_says_what_to_install(self) -> None:
        assert ("install" in why_no_compiler(False)) == (not shutil.which("g++") and not shutil.which("clang++"))

    @pytest.mark.parametrize(("for_cuda", "package"), [(True, "gcc"), (False, "g++")])
    def test_a_missing_compiler_is_named(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, for_cuda: bool, package: str
    ) -> None:
        without_compilers(monkeypatch, tmp_path)
        assert f"install {package}" in why_no_compiler(for_cuda)

    def test_missing_headers_are_named(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        compilers: Callable[[str], str] = lambda name: f"/usr/bin/{name}"  # noqa: E731
        monkeypatch.setattr(shutil, "which", compilers)
        monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
        assert "Python.h" in why_no_compiler(True) and "-dev" in why_no_compiler(True)


def test_the_compilers_own_words_are_kept_for_a_debug_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise ImportError("first line\nsecond line")

    monkeypatch.setattr(torch, "compile", lambda run, dynamic, mode: broken)
    with caplog.at_level(logging.DEBUG):
        model = Model()
        said = reasons_of(model)
        model(inputs())
    assert said == ["compiling failed, so it runs as it is: ImportError: first line"]
    assert "second line" in caplog.text
