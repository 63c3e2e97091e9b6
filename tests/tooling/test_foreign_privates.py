"""Private names of other libraries are used in ``backend/compat.py`` and ``modules/compat.py`` only, where each has a
contract test."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.core.settings import ROOT

COMPAT = {ROOT / "backend" / "compat.py", ROOT / "modules" / "compat.py"}
FILES = sorted({*(ROOT / "backend").rglob("*.py"), *(ROOT / "modules").rglob("*.py")} - COMPAT)
DOCUMENTED = {"torch.utils._python_dispatch"}
"""Private by name, but the way that PyTorch's own documentation shows."""
PUBLIC = {"os._exit"}
"""Not private at all: Python's documentation has it."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_uses(code: str) -> Iterator[str]:
    """Attributes of other objects than ``self`` and ``cls``, and imports, that begin with an underscore."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not own and ast.unparse(node) not in PUBLIC:
                yield f"line {node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            names = [module, *(alias.name for alias in node.names)]
            if module not in DOCUMENTED and any(is_private(part) for name in names for part in name.split(".")):
                yield f"line {node.lineno}: {ast.unparse(node)}"


def test_there_are_none_outside_of_compat() -> None:
    found = {str(path.relative_to(ROOT)): uses for path in FILES if (uses := list(private_uses(path.read_text())))}
    assert not found, f"move these to compat.py, with a contract test each: {found}"


@pytest.mark.parametrize(
    "code",
    [
        "from diffusers import FluxPipeline\nFluxPipeline._pack_latents(latents)",
        "model = load()\nmodel._call_fn(pixels)",
        "from torch.utils._pytree import tree_leaves",
        "import torch._dynamo",
        "from library import _helper",
    ],
)
def test_they_are_noticed(code: str) -> None:
    assert len(list(private_uses(code))) == 1


@pytest.mark.parametrize("path", sorted(COMPAT), ids=lambda path: path.parent.name)
def test_every_entry_of_compat_has_a_contract_test(path: Path) -> None:
    tests = (ROOT / "tests" / "unit" / path.parent.name / "test_compat.py").read_text()
    entries = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    for entry in entries:
        assert f"compat.{entry.name}(" in tests, f"{entry.name} has no contract test"
        assert any(character.isdigit() for character in ast.get_docstring(entry) or ""), f"{entry.name}: which version?"
