"""What a UNet predicts and how far its noise goes, as its file says: by marker tensors, by metadata, or in the
scheduler's configuration of a folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType

from backend.checkpoints.config import Config
from backend.core.errors import WeightsError
from modules.families.scheduler import SCHEDULER_FILE, scheduler_of
from modules.families.source import Source

logger = logging.getLogger(__name__)

V_PRED, ZERO_SNR = "v_pred", "ztsnr"
MARKERS = (V_PRED, ZERO_SNR)
"""Empty tensors by which a file says that it predicts the velocity, and that its last step is pure noise."""
SAID_IN = ("modelspec.predict_key", "modelspec.prediction_type", "prediction_type", "predict_key")
VELOCITY_IN = ("ss_v_parameterization", V_PRED)
ZERO_SNR_IN = ("ss_zero_terminal_snr", ZERO_SNR, "zero_terminal_snr", "rescale_betas_zero_snr")
"""Entries of the metadata: of the model specification, and what trainers write."""
PREDICTIONS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("epsilon", "eps", "noise"), "epsilon"),
        **dict.fromkeys(("v", "v_prediction", "v-prediction", "v_pred", "vpred", "velocity"), "v_prediction"),
    }
)

ZERO_SNR_CONFIG: Mapping[str, object] = MappingProxyType(
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
)
"""With it the first step has to be the noisiest of all, which leading spacing leaves out."""


def noise_config(source: Source, published: Mapping[str, object]) -> Config:
    """The configuration of the scheduler: the folder's, or the ``published`` one, under what the file says of itself.

    Raises :class:`WeightsError` for a prediction that is not known here.
    """
    folder = source.path if not source.file else source.folder_with(f"scheduler/{SCHEDULER_FILE}")
    found = scheduler_of(folder, published)
    said = _said_by(source) if source.file else {}
    if source.file and not said and found.get("prediction_type", "epsilon") != "epsilon":
        logger.warning(
            "%s does not say what its UNet predicts; %s as in %s", source.label, found["prediction_type"], found.name
        )
    if said.get("prediction_type") == "epsilon" != found.get("prediction_type", "epsilon"):
        found = Config(SCHEDULER_FILE, published)  # the folder's is made for another kind of UNet
    prediction = said.get("prediction_type", found.get("prediction_type", "epsilon"))
    if prediction not in PREDICTIONS.values():
        raise WeightsError(
            f"{source.label} predicts {str(prediction)[:40]!r}, which is not known here; take a model that predicts "
            "epsilon or v_prediction"
        )
    if said.keys() & ZERO_SNR_CONFIG and prediction == "epsilon":
        logger.warning("%s: zero terminal SNR is for v-prediction, and its UNet predicts the noise", source.label)
        said = {name: value for name, value in said.items() if name not in ZERO_SNR_CONFIG}
    return Config(found.name, {**found, **said})


def _said_by(source: Source) -> dict[str, object]:
    """What the file says, as entries of a scheduler's configuration."""
    metadata = source.header.metadata
    marked = {name.rpartition(".")[2] for name in source.tensors} & set(MARKERS)
    said: dict[str, object] = {}
    if word := next((metadata[name].strip().lower() for name in SAID_IN if name in metadata), ""):
        said["prediction_type"] = PREDICTIONS.get(word, word)
    if V_PRED in marked or _is_true(metadata, VELOCITY_IN):
        said["prediction_type"] = "v_prediction"
    if ZERO_SNR in marked or _is_true(metadata, ZERO_SNR_IN):
        said |= ZERO_SNR_CONFIG
    return said


def _is_true(metadata: Mapping[str, str], names: tuple[str, ...]) -> bool:
    return any(metadata.get(name, "").strip().lower() in ("true", "1", "yes") for name in names)
