"""The loop in which the transformer learns, for a given time, and the mean of its weights."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import nn

from training.models.muon import Muon

logger = logging.getLogger(__name__)

SAVE_SECONDS = 240
Learner = TypeVar("Learner", bound=nn.Module)


def learning_rate(step: int, spent: float) -> float:
    """The share of the full rate: it rises for 60 steps and falls over the last 60 percent of the time."""
    return min(1.0, (step + 1) / 60) * max(0.02, min(1.0, (1 - spent) / 0.6))


def descend(
    learner: Learner,
    optimizers: Sequence[Muon],
    loss_of_next_batch: Callable[[], torch.Tensor],
    minutes: float,
    most_decay: float,
    save: Callable[[Learner], None],
) -> None:
    """Trains ``learner``'s weights for so many minutes and saves their mean now and then. Of that mean ``most_decay``
    stays at every step."""
    average = copy.deepcopy(learner).requires_grad_(False)
    means: list[torch.Tensor] = list(average.parameters())
    weights: list[torch.Tensor] = list(learner.parameters())
    begin, step, spent, saved = time.monotonic(), 0, 0.0, time.monotonic()
    shown = torch.zeros(())
    while spent < 1:
        spent = (time.monotonic() - begin) / (60 * minutes)
        loss = loss_of_next_batch()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step(learning_rate(step, spent))
        step += 1
        torch._foreach_lerp_(means, weights, 1 - min(most_decay, step / (step + 30)))
        shown = loss.detach() if step == 1 else shown.lerp(loss.detach(), 0.02)  # on a GPU nothing waits for it
        if step % 50 == 0:
            logger.info(
                "step %d, %.1f%% of the time, %.2f steps/s, loss %.4f",
                step,
                100 * spent,
                step / (time.monotonic() - begin),
                shown.item(),
            )
        if time.monotonic() - saved > SAVE_SECONDS or spent >= 1:
            save(average)
            saved = time.monotonic()
