"""Generation parameters as Stable Diffusion WebUI writes them into pictures, read as inputs.

The text is the prompt, a line ``Negative prompt: ...`` if there is one, and a line ``Steps: 20, Sampler: Euler, ...``.
What this package does not have, or the model does not honour, is told.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from backend.core.errors import InputError
from backend.core.texts import shortened
from backend.core.validation import fields_of
from modules.detection.classes import ClassSet
from modules.diffusion.profile import ModelProfile
from modules.diffusion.sampler_names import SAMPLERS, SCHEDULES
from modules.lora.files.sources import LOCAL_ONLY, LoraSources
from modules.request.adetailer_args import MAX_UNITS, PREFIX, units_from_json
from modules.request.adetailer_unit import FACES, AdetailerUnit
from modules.request.defaults import OTHER_NAMES
from modules.request.image_request import HIRES_UPSCALERS, MAX_SEED
from modules.request.lora_use import changed_tags
from modules.request.loras import tag_uses

NEGATIVE = "Negative prompt:"
SUFFIXES = ("", " 2nd", " 3rd", " 4th")
"""At the end of ADetailer's labels, by the number of the unit."""
UNIT_LABELS: Mapping[str, str] = MappingProxyType(
    {of_field.title or name.replace("_", " "): name for name, of_field in fields_of(AdetailerUnit).items()}
)
"""ADetailer's labels in these texts -> its arguments without ``ad_``."""
SILENT = frozenset(
    {
        *("Model hash", "VAE hash", "Lora hashes", "Hashes", "Resources"),
        *("Version", "ADetailer version", "Notes", "Created Date"),
    }
)
"""Fields that ask for nothing."""
SAME: Mapping[str, str] = MappingProxyType({"Scheduler": "Schedule type", "Base model": "Model"})
"""Names of other programs -> the WebUI's."""

_BEGIN = re.compile(r"(?:Steps|Sampler|Seed|Size|Model|CFG scale):")
_BEHIND = re.compile(r"\w[\w -]{0,40}:")
"""How a line begins that extensions write behind the parameters, such as Template: ..."""
_NAME = re.compile(r"\w[\w \-/]{0,60}")
_VALUE = re.compile(r'\s*("(?:\\.|[^\\"])*"|[^,]*)\s*,?')


@dataclass(frozen=True)
class Targets:
    """What the inputs may ask for: of the model, and by the names of files."""

    profile: ModelProfile
    detectors: Mapping[str, ClassSet]
    upscalers: Collection[str]
    properties: Mapping[str, Mapping[str, Any]]
    """The schema of every input."""
    lora_sources: LoraSources = LOCAL_ONLY


@dataclass
class Filled:
    """Inputs as far as a text names them, and what could not be honoured.

    Attributes:
        picture: Which picture of the inputs is meant, None for all. Those of one request are made together, because
            pixels of a batch differ a little from those of single pictures.
    """

    inputs: dict[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    picture: int | None = None

    def chosen(self, given: Mapping[str, Any]) -> int | None:
        """Which picture is kept, None for all: of a number or a seed that are given, all are."""
        return None if {"seed", "num_outputs"} & given.keys() else self.picture

    def under(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs with those that are given, which win."""
        inputs = dict(self.inputs)
        if self.picture is not None and self.chosen(given) is None:
            inputs |= {"seed": (inputs["seed"] + self.picture) % (MAX_SEED + 1), "num_outputs": 1}
        for other, name in OTHER_NAMES.items():
            if given.get(other) is not None:
                inputs.pop(name, None)
        if "aspect_ratio" in given:
            for side in ("width", "height"):
                inputs.pop(side, None)
        elif "width" in given or "height" in given:
            inputs["aspect_ratio"] = "custom"
        return {**inputs, **given}


def is_infotext(text: str) -> bool:
    """Whether a text ends in a WebUI's line of parameters."""
    return _parameters_at(text.strip().split("\n")) > 0


def parse(text: str) -> tuple[str, str, dict[str, str]]:
    """The prompt, the negative prompt and the fields of an infotext; without a line of parameters all is prompt."""
    lines = text.strip().split("\n")
    fields_found: dict[str, str] = {}
    if (place := _parameters_at(lines)) >= 0:
        fields_found = _fields(lines[place])
        behind = (line.partition(":") for line in lines[place + 1 :])
        fields_found |= {name.strip(): value.strip() for name, _, value in behind if name.strip() not in fields_found}
        lines = lines[:place]
    begin = next((number for number, line in enumerate(lines) if line.strip().startswith(NEGATIVE)), len(lines))
    prompt, negative = "\n".join(lines[:begin]).strip(), "\n".join(lines[begin:]).strip()
    return prompt, negative.removeprefix(NEGATIVE).strip(), fields_found


def _parameters_at(lines: Sequence[str]) -> int:
    """The number of the line of parameters, -1 where there is none. Behind it are only lines of extensions."""
    for place in range(len(lines) - 1, -1, -1):
        line = lines[place].strip()
        if _BEGIN.match(line) and _fields(line).get("Steps", "").isdecimal():
            return place
        if not _BEHIND.match(line) or line.startswith(NEGATIVE):
            break
    return -1


def _fields(line: str) -> dict[str, str]:
    found: dict[str, str] = {}
    place = 0
    while (colon := line.find(":", place)) >= 0:
        name = line[place:colon].rpartition(",")[2].strip()
        match = _VALUE.match(line, colon + 1)
        assert match is not None  # the pattern matches nothing too
        value, place = match[1].strip(), match.end()
        if value.startswith('"'):
            try:
                value = str(json.loads(value))
            except ValueError:
                value = value.strip('"')
        found.setdefault(name, value)
    return found


def filled_in(text: str, targets: Targets) -> Filled:
    """The inputs that an infotext names. What it does not have of hires fix, ADetailer and upscaling is off."""
    prompt, negative, found = parse(text)
    reader = _Reader(found, targets)
    reader.inputs.update(prompt=reader.with_known_loras("prompt", prompt), enable_hr=False, adetailer=False, scale=1.0)
    if negative and targets.profile.inputs.negative_prompt:
        reader.inputs["negative_prompt"] = negative
    elif negative:
        reader.notices.append(f"negative_prompt: is left out, {targets.profile.inputs.label} has none")
    reader.steps()
    reader.sampling()
    reader.size()
    reader.hires()
    reader.units()
    reader.number("Postprocess upscale by", "scale")
    if (model := reader.taken("Model")) and model != targets.profile.name:
        reader.notices.append(f"Model: the picture is by '{shortened(model)}', here is {targets.profile.name}")
    names = (name for name in reader.left if _NAME.fullmatch(name))  # others are parts of a value with commas
    if left := [name for name in names if name not in SILENT and not name.startswith("ADetailer ")]:
        reader.notices.append(f"not honoured: {shortened(', '.join(left), 300)}")
    return Filled(reader.inputs, [f"from the parameters: {notice}" for notice in reader.notices])


class _Reader:
    """Takes one field after the other; what is left in the end is not known."""

    def __init__(self, found: Mapping[str, str], targets: Targets) -> None:
        self.left, self.targets = dict(found), targets
        for other, name in SAME.items():
            if other in self.left and name not in self.left:
                self.left[name] = self.left.pop(other)
        self.inputs: dict[str, Any] = {}
        self.notices: list[str] = []
        self.first_pass = _size(self.left.get("Size", ""))

    def with_known_loras(self, name: str, prompt: str) -> str:
        """A prompt without the tags of LoRA that are not here."""

        def kept(tag: str) -> str:
            try:
                tag_uses(tag, name, self.targets.lora_sources)
            except InputError as error:
                self.notices.append(f"{error}; it is left out")
                return ""
            return tag

        return changed_tags(prompt, kept)

    def taken(self, name: str) -> str:
        return self.left.pop(name, "").strip()

    def number(self, name: str, target: str) -> None:
        """Sets an input to the number of a field, within the range of the input."""
        if not (text := self.taken(name)):
            return
        prop = self.targets.properties[target]
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            self.notices.append(f"{name}: '{shortened(text)}' is no number")
            return
        least, most = prop.get("minimum", value), prop.get("maximum", value)
        if target == "guidance_scale":
            least, most = self.targets.profile.inputs.guidance or (least, most)
        within = min(max(value, least), most)
        if within != value:
            self.notices.append(f"{name}: {shortened(text)} is out of range, {within:.10g} is used")
        self.inputs[target] = int(within) if prop["type"] == "integer" else within

    def steps(self) -> None:
        self.number("Steps", "num_inference_steps")
        if self.left.get("Seed", "").strip() == "-1":
            self.taken("Seed")
        self.number("Seed", "seed")
        self.number("Guidance Scale", "guidance_scale")
        classifier_free = self.targets.profile.inputs.negative_prompt
        own, other = "CFG scale", "Distilled CFG Scale"
        if not classifier_free:
            own, other = other, own
        self.number(own, "guidance_scale")
        if (value := self.taken(other)) and value not in ("1", "1.0") and "guidance_scale" not in self.inputs:
            self.notices.append(f"{other}: {shortened(value)} is for other models, the default is used")

    def sampling(self) -> None:
        honoured = self.targets.profile.inputs
        sampler, schedule = _spelled(self.taken("Sampler")), _spelled(self.taken("Schedule type"))
        if old := next((name for name in SCHEDULES if sampler.lower().endswith(f" {name.lower()}")), ""):
            sampler, schedule = sampler[: -len(old) - 1], schedule or old
        for name, value, offered, target in (
            ("Sampler", sampler, honoured.samplers, "sampler"),
            ("Schedule type", schedule, honoured.schedules, "scheduler"),
        ):
            if found := _named(value, offered):
                self.inputs[target] = found
            elif value:
                self.notices.append(f"{name}: '{shortened(value)}' is not here, {offered[0]} is used")
        used, schedule = self.inputs.get("sampler", SAMPLERS[0]), self.inputs.get("scheduler", SCHEDULES[0])
        if used != SAMPLERS[0] and schedule not in honoured.solver_schedules:
            self.inputs["scheduler"] = honoured.solver_schedules[0]
            self.notices.append(f"Schedule type: {used} takes no {schedule}, {honoured.solver_schedules[0]} is used")

    def size(self) -> None:
        width, height = self.first_pass
        text = self.taken("Size")
        if not width or not height:
            self.notices += [f"Size: '{shortened(text)}' is no size"] if text else []
            return
        canvas, limits = self.targets.profile.canvas, self.targets.properties
        shapes = [(ratio, area) for area in canvas.areas for ratio in canvas.aspect_ratios]
        if same := next((shape for shape in shapes if canvas.size(*shape) == (width, height)), None):
            self.inputs["aspect_ratio"], self.inputs["megapixels"] = same
        elif canvas.fitted(width, height) == (width, height) and all(
            limits[name]["minimum"] <= side <= limits[name]["maximum"]
            for name, side in (("width", width), ("height", height))
        ):
            self.inputs.update(aspect_ratio="custom", width=width, height=height)
        else:
            near = min(shapes, key=lambda shape: _distance(canvas.size(*shape), (width, height)))
            self.inputs["aspect_ratio"], self.inputs["megapixels"] = near
            size = "{}x{}".format(*canvas.size(*near))
            self.notices.append(f"Size: {width}x{height} is not on the grid of this model, {size} is used")

    def hires(self) -> None:
        size, upscaler = _size(self.taken("Hires resize")), self.taken("Hires upscaler")
        if "Hires upscale" not in self.left and not size[0]:
            self.number("Denoising strength", "prompt_strength")
            if "prompt_strength" in self.inputs:
                self.notices.append("image: the picture was made from another one; give it as image=@FILE")
            self._inpainting()
            return
        self.inputs["enable_hr"] = True
        self.number("Hires upscale", "hr_scale")
        if size[0] and self.first_pass[0]:
            self.inputs["hr_scale"] = min(4.0, max(1.0, size[0] / self.first_pass[0]))
        self.number("Hires steps", "hr_steps")
        self.number("Denoising strength", "denoising_strength")
        self.taken("Hires sampler")
        if prompt := self.taken("Hires prompt"):
            self.inputs["hr_prompt"] = prompt
        if self.taken("Hires tiles"):
            self.inputs["hr_tiles"] = "on"
        self._hires_upscaler(upscaler)

    def _inpainting(self) -> None:
        if area := self.taken("Inpaint area"):
            self.inputs["inpaint_only_masked"] = area == "Only masked"
        self.number("Masked area padding", "inpaint_only_masked_padding")
        if margins := self.taken("Outpaint"):
            self.inputs["outpaint"] = margins

    def _hires_upscaler(self, name: str) -> None:
        if name in HIRES_UPSCALERS:
            self.inputs["hr_upscaler"] = name
        elif name in self.targets.upscalers:
            self.inputs.update(hr_upscaler="ESRGAN", upscaler=name)
        elif name.startswith("Latent"):
            self.inputs["hr_upscaler"] = "Latent"
            self.notices.append(f"Hires upscaler: '{shortened(name)}' is not here, Latent is used")
        elif name:
            self.notices.append(f"Hires upscaler: '{shortened(name)}' is not installed, the default is used")

    def units(self) -> None:
        units = []
        for suffix in SUFFIXES:
            label = f"ADetailer model{suffix}"
            if label in self.left and (unit := self._unit(suffix)) is not None:
                units.append(unit)
        if units:
            self.inputs.update(adetailer=True, adetailer_args=json.dumps(units[:MAX_UNITS]))

    def _unit(self, suffix: str) -> dict[str, Any] | None:
        """ADetailer's arguments of one unit, as far as they can be honoured."""
        model = self.taken(f"ADetailer model{suffix}")
        unit: dict[str, Any] = {}
        if model in self.targets.detectors:
            unit[f"{PREFIX}model"] = model
        elif found := self._detector_like(model):
            unit[f"{PREFIX}model"] = found
            self.notices.append(f"ADetailer model{suffix}: '{shortened(model)}' is not installed, {found} is used")
        else:
            self.notices.append(f"ADetailer model{suffix}: '{shortened(model)}' is not installed, its unit is left out")
        for key in [key for key in self.left if key.startswith("ADetailer ") and _suffix(key) == suffix]:
            label = key.removeprefix("ADetailer ").removesuffix(suffix)
            text = self.taken(key)
            if label not in UNIT_LABELS:
                if key not in SILENT:
                    self.notices.append(f"{key}: is left out")
                continue
            if label == "prompt":
                text = self.with_known_loras(f"ADetailer prompt{suffix}", text)
            argument = {PREFIX + UNIT_LABELS[label]: _typed(UNIT_LABELS[label], text)}
            try:
                units_from_json(json.dumps(argument), key)
                unit |= argument
            except InputError as error:
                self.notices.append(f"{error}; it is left out")
        return unit if f"{PREFIX}model" in unit else None

    def _detector_like(self, model: str) -> str:
        """An installed detector that finds one of the things that this one is named after."""
        found = (
            name
            for name, class_set in self.targets.detectors.items()
            if any(one.lower() in model.lower() for one in class_set.classes)
        )
        return next(found, "")


def _suffix(key: str) -> str:
    return next((suffix for suffix in SUFFIXES[1:] if key.endswith(suffix)), "")


def _typed(name: str, text: str) -> object:
    """The text of an argument in the type of its default; where it is of no such type, the text."""
    default = next(one.default for one in fields(FACES) if one.name == name)
    try:
        if isinstance(default, bool):
            return {"True": True, "False": False}.get(text, text)
        return type(default)(text) if isinstance(default, int | float) else text
    except ValueError:
        return text


def _spelled(name: str) -> str:
    """A sampler or schedule in the WebUI's spelling: ComfyUI's dpmpp_2m_sde is DPM++ 2M SDE."""
    return name.replace("dpmpp", "DPM++").replace("uni_pc", "UniPC").replace("_", " ")


def _named(name: str, offered: Sequence[str]) -> str:
    """What is offered under this name, in letters of any size; "" for nothing."""
    return next((one for one in offered if one.lower() == name.lower()), "")


def _size(text: str) -> tuple[int, int]:
    """Width and height of a text such as 1024x768; zeros where it is none."""
    match = re.fullmatch(r"(\d{1,5}) ?[xX×] ?(\d{1,5})", text.strip())
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _distance(one: Sequence[int], other: Sequence[int]) -> float:
    """How far two sizes are from each other, in shape first."""
    shape = math.log(one[0] / one[1] * other[1] / max(other[0], 1) or 1)
    return 4 * abs(shape) + abs(math.log(one[0] * one[1] / max(other[0] * other[1], 1)))
