"""Samplers and schedules by the names that WebUI users know, each true to its name.

A schedule is computed here and given to Euler's scheduler as it is: diffusers' own Karras, exponential and beta
schedules end at a noise level of 0.14 on Flux, where the WebUI's end at 0.0003. Of the samplers that draw fresh noise
at every step one is offered, whose noise the seed decides here; the others, such as Euler a, have no counterpart for
flow matching that is true to the name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.utils.torch_utils import randn_tensor

from modules.diffusion.sampler_names import SIMPLE

Levels = npt.NDArray[np.float64]
Shift = Callable[[Levels], Levels]
"""From evenly spaced times in 0..1 to the noise levels that a model was trained for at them, rising; Flux's are 0 at
0 and 1 at 1."""

LEAST_TIME = 1e-4
"""Where the WebUI's schedules end, as a time; the last step goes from there to 0."""


def _even(steps: int, shift: Shift, told_times: bool) -> Levels:
    return shift(np.linspace(1, 1 / steps, steps))


def _karras(steps: int, shift: Shift, told_times: bool) -> Levels:
    """Karras et al. 2022, equation 5, with their exponent 7."""
    least, most = shift(np.array([LEAST_TIME, 1.0])) ** (1 / 7)
    return np.asarray((most + np.linspace(0, 1, steps) * (least - most)) ** 7)


def _exponential(steps: int, shift: Shift, told_times: bool) -> Levels:
    least, most = np.log(shift(np.array([LEAST_TIME, 1.0])))
    return np.exp(np.linspace(most, least, steps))


def _beta(steps: int, shift: Shift, told_times: bool) -> Levels:
    """Times at the quantiles of a beta distribution with both parameters 0.6 (Lee et al. 2024): more steps at either
    end."""
    # with x = sin² the density has no poles, so that its integral is a plain sum
    angle = np.linspace(0, np.pi / 2, 20_001)
    density = np.clip(np.sin(angle) * np.cos(angle), 0, None) ** (2 * 0.6 - 1)
    share = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    times = np.sin(np.interp(np.linspace(1, 0, steps, endpoint=False), share / share[-1], angle)) ** 2
    return shift(np.maximum(times, LEAST_TIME))


def _normal(steps: int, shift: Shift, told_times: bool) -> Levels:
    """Even steps in what the model is told: the time, or the level itself."""
    if told_times:
        return shift(np.linspace(1, LEAST_TIME, steps))
    return np.linspace(1, float(shift(np.array([LEAST_TIME]))[0]), steps)


def _sgm_uniform(steps: int, shift: Shift, told_times: bool) -> Levels:
    return _normal(steps + 1, shift, told_times)[:-1]


SCHEDULES: Mapping[str, Callable[[int, Shift, bool], Levels]] = MappingProxyType(
    {
        SIMPLE: _even,
        "Karras": _karras,
        "Exponential": _exponential,
        "Beta": _beta,
        "Normal": _normal,
        "SGM Uniform": _sgm_uniform,
    }
)


class BegunOnHost:
    """A scheduler that finds the place of its first step on the host. Otherwise it looks for it on the device, after
    the first forward, and the host waits for that."""

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, **options: Any) -> None:
        scheduler: Any = self
        super().set_timesteps(num_inference_steps, device="cpu", **options)  # type: ignore[misc]
        scheduler.set_begin_index(scheduler.index_for_timestep(scheduler.timesteps[0]))
        scheduler.timesteps = scheduler.timesteps.to(device)


class DPMSolver(BegunOnHost, DPMSolverMultistepScheduler):  # type: ignore[misc]  # diffusers is untyped
    """DPM++ 2M."""


class UniPC(BegunOnHost, UniPCMultistepScheduler):  # type: ignore[misc]
    """UniPC."""


class SeededSDE(DPMSolver):
    """DPM++ 2M SDE (Lu et al. 2022, as a stochastic differential equation) whose fresh noise comes from the pictures'
    own generators.

    So a seed decides its picture, whatever is drawn beside it; diffusers' own asks the process' generator, or one for
    the whole batch.
    """

    generators: Sequence[torch.Generator] = ()
    """One a picture, on the CPU."""

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: None = None,
        return_dict: bool = True,
    ) -> Any:
        noise = randn_tensor(
            tuple(sample.shape), generator=list(self.generators), device=sample.device, dtype=torch.float32
        )
        return super().step(model_output, timestep, sample, variance_noise=noise, return_dict=return_dict)


SOLVERS: Mapping[str, type[Any]] = MappingProxyType({"DPM++ 2M": DPMSolver, "DPM++ 2M SDE": SeededSDE, "UniPC": UniPC})
"""What is not Euler: they place their steps themselves, and begin from pure noise only."""
KIND_OF_SOLVER: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {"DPM++ 2M SDE": {"algorithm_type": "sde-dpmsolver++"}}
)
"""What diffusers asks of a solver beside its class."""


def noise_levels(schedule: str, steps: int, shift: Shift, told_times: bool = False) -> Levels:
    """The noise levels at which the steps begin: ``steps`` numbers downwards from the highest. The last step ends at 0.

    ``told_times``: the model is told the time (Stable Diffusion), not the noise level (Flux).
    """
    return SCHEDULES[schedule](steps, shift, told_times)


def verbatim_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Euler steps of a flow model between exactly the noise levels that are given."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)


def flow_solver(sampler: str, shift: float) -> Any:
    """A scheduler of :data:`SOLVERS` for a flow model that is trained with so much shift to the noisy side (1 is
    none)."""
    asked = KIND_OF_SOLVER.get(sampler, {})
    scheduler = SOLVERS[sampler](
        prediction_type="flow_prediction", use_flow_sigmas=True, use_dynamic_shifting=True, **asked
    )
    # FluxPipeline works out a shift by the picture's size, between these two
    scheduler.register_to_config(base_shift=math.log(shift), max_shift=math.log(shift))
    return scheduler


def solver(sampler: str, schedule: str, configuration: Mapping[str, Any]) -> Any:
    """A scheduler of :data:`SOLVERS` for a model with this configuration of one; ``schedule`` is Simple, Karras or
    Exponential."""
    asked = {f"use_{name.lower()}_sigmas": name == schedule for name in ("Karras", "Exponential")}
    return SOLVERS[sampler].from_config(dict(configuration), **asked, **KIND_OF_SOLVER.get(sampler, {}))
