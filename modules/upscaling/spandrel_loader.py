"""Reads an image-to-image network of any architecture that spandrel knows from a file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from backend.checkpoints.build_budget import BuildBudget
from backend.checkpoints.file_type import check_content, is_safetensors
from backend.checkpoints.header import check_numbering
from backend.checkpoints.tensor_pickle import check_tensor_pickle
from backend.core.errors import WeightsError
from backend.devices.torchvision_ops import ensure_torchvision_operators
from modules.families.registry import named_file

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor

MISREAD = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What architectures raise, besides RuntimeError, for tensors with names that they know and shapes that they do not."""


def read_network(path: Path, role: str, advice: str) -> ImageModelDescriptor[torch.nn.Module]:
    """The network on the CPU, with what spandrel found out about it.

    The file's content decides its format, not its suffix: safetensors, or a checkpoint of torch, which is read by
    torch's restricted unpickler that takes only tensors and runs no code.

    Args:
        role: What the network is for, for the errors: "upscaler".
        advice: What to do if spandrel does not know it as that.

    Raises:
        WeightsError: The file is missing, cannot be read, is damaged or holds something else.
    """
    ensure_torchvision_operators()
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError, canonicalize_state_dict

    try:
        check_content(path, path.name)
        tensors = load_file(path) if is_safetensors(path) else _unpickled(path, role)
        tensors = canonicalize_state_dict(tensors)
        check_numbering(tensors)
        with BuildBudget(path.name, path.stat().st_size, len(tensors)):
            model = ModelLoader("cpu").load_from_state_dict(tensors)
    except FileNotFoundError:
        raise WeightsError(
            f"{path.name}: is missing; put it into the weights folder or choose another {role}"
        ) from None
    except OSError as error:
        raise WeightsError(
            f"{path.name}: cannot be read ({error.strerror}); check its permissions and the disk"
        ) from error
    except UnsupportedModelError as error:
        what = named_file(path)
        told = f"is {what}, and no {role}" if what and role not in what else f"holds no {role} that spandrel knows"
        raise WeightsError(f"{path.name}: {told}; {advice}") from error
    # what the unpickler and the architectures raise on bytes or shapes that they do not understand
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, *MISREAD) as error:
        raise WeightsError(f"{path.name}: is damaged, or not what its name says; copy or download it again") from error
    if not isinstance(model, ImageModelDescriptor):
        raise WeightsError(f"{path.name}: holds no {role}, but a network for pictures with masks; {advice}")
    return model


def _unpickled(path: Path, role: str) -> Any:
    check_tensor_pickle(path, role)
    return torch.load(path, map_location="cpu", weights_only=True)
