"""The Muon optimizer for matrices and convolutions, AdamW for the rest (Keller Jordan,
https://kellerjordan.github.io/posts/muon/, 2024).

On two cores samples are dear; Muon reaches the same loss with far fewer of them. Matrices of one shape are done
together, because a GPU needs longer to be told of a small product than for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import torch
from torch import nn

from training.models.precision import product_type


def orthogonalized(gradients: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrices to N x rows x columns gradients, by a quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x: torch.Tensor = gradients.to(product_type(gradients.device))
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).to(gradients.dtype)


def rows_and_columns(parameter: nn.Parameter) -> tuple[int, int]:
    """Of a matrix, or of a convolution's weights with all but the outputs as columns."""
    return len(parameter), parameter.numel() // len(parameter)


class Muon:
    """One optimizer over a model: ``matrices`` by Muon, all other parameters by AdamW, in groups that have a rate each.

    ``step(rate)`` takes a factor of all rates.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[tuple[Iterable[nn.Parameter], float]],
        matrix_rate: float,
        weight_decay: float = 0.0,
    ) -> None:
        self.matrices = sorted(matrices, key=rows_and_columns)
        self.momenta = [torch.zeros_like(p) for p in self.matrices]
        self.matrix_rate, self.weight_decay = matrix_rate, weight_decay
        groups = [{"params": list(parameters), "rate": other_rate} for parameters, other_rate in others]
        self.adamw = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        learned = [pair for pair in zip(self.matrices, self.momenta) if pair[0].grad is not None]
        for (rows, columns), alike in groupby(learned, lambda pair: rows_and_columns(pair[0])):
            parameters, momenta = zip(*alike)
            gradients = [parameter.grad for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 0.05)
            updates = torch.stack([one.flatten(1) for one in torch._foreach_lerp(gradients, momenta, 0.95)])
            steps = orthogonalized(updates) * (rate * self.matrix_rate * max(1.0, rows / columns) ** 0.5)
            torch._foreach_mul_(parameters, 1 - rate * self.matrix_rate * self.weight_decay)
            torch._foreach_sub_(parameters, [step.view_as(one) for step, one in zip(steps, parameters)])
            for parameter in parameters:
                parameter.grad = None
        for group in self.adamw.param_groups:
            group["lr"] = rate * group["rate"]
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, object]:
        return {"momenta": self.momenta, "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        for own, saved in zip(self.momenta, state["momenta"], strict=True):  # type: ignore[call-overload]
            own.copy_(saved)
        self.adamw.load_state_dict(state["adamw"])  # type: ignore[arg-type]
