"""Model files with code in them, in every place where a library has ever looked for some."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch

Plant = Callable[[Path, Path], object]
"""Changes a copy of the embedded models (the first path); the code makes a file (the second path)."""


class Place(NamedTuple):
    """``part`` is what reads the place: a folder of the embedded models, or a kind of file."""

    part: str
    plant: Plant


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


def code(marker: Path) -> str:
    """A module that makes the file when it is imported, and holds every class that may be asked for."""
    names = ("Evil", "EvilConfig", "EvilTokenizer", "EvilModel", "FluxPipeline", "AutoencoderKL")
    classes = "\n".join(f"class {name}: pass" for name in names)
    return f"import pathlib; pathlib.Path({str(marker)!r}).touch()\n{classes}\n"


def changed(file: str, **values: object) -> Plant:
    """The JSON file with these values, and the module ``evil`` beside it and above it."""

    def plant(folder: Path, marker: Path) -> None:
        path = folder / file
        given = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**given, **values}))
        for place in {path.parent, folder}:
            for name in ("evil.py", "__init__.py"):
                (place / name).write_text(code(marker))

    return plant


def written(*files: str) -> Plant:
    """Python files with the code."""

    def plant(folder: Path, marker: Path) -> None:
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(code(marker))

    return plant


def pickled(*files: str, archive: bool = False) -> Plant:
    """Pickles that run the code, in place of what is there or beside it."""

    def plant(folder: Path, marker: Path) -> None:
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if archive:
                torch.save({"params": Payload(marker)}, folder / name)
            else:
                (folder / name).write_bytes(pickle.dumps(Payload(marker), protocol=2))

    return plant


def in_text(file: str, text: str) -> Plant:
    """A text file, with MARKER for the path of the file that is made."""

    def plant(folder: Path, marker: Path) -> None:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text.replace("MARKER", str(marker)))

    return plant


def appended(file: str, line: str) -> Plant:
    def plant(folder: Path, marker: Path) -> None:
        with (folder / file).open("a") as opened:
            opened.write("\n" + line.replace("MARKER", str(marker)) + "\n")

    return plant


def indexed_outside(folder: Path, marker: Path) -> None:
    """An index that names a pickle in another folder as a part of the weights."""
    pickled("evil.bin")(folder, marker)
    for name, file in (("text_encoder", "model"), ("vae", "diffusion_pytorch_model")):
        index = {"metadata": {}, "weight_map": {"a": "../evil.bin"}}
        (folder / name / f"{file}.safetensors.index.json").write_text(json.dumps(index))


AUTO = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoProcessor"), "evil.Evil")
TOKENIZER = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}
ESCAPE = "{{ cycler.__init__.__globals__.os.system('touch MARKER') }}"
TAG = "!!python/object/apply:os.system ['touch MARKER']"
UPSAMPLER = "prompt_upsampler"

PLACES: Mapping[str, Place] = MappingProxyType(
    {
        # the prompt upsampler
        "auto_map of a tokenizer": Place(UPSAMPLER, changed("tokenizer_config.json", auto_map=TOKENIZER)),
        "class of a tokenizer": Place(UPSAMPLER, changed("tokenizer_config.json", tokenizer_class="evil.Evil")),
        "auto_map and class of a tokenizer": Place(
            UPSAMPLER, changed("tokenizer_config.json", auto_map=TOKENIZER, tokenizer_class="EvilTokenizer")
        ),
        "auto_map of a known model": Place(UPSAMPLER, changed("config.json", auto_map=AUTO)),
        "auto_map of an unknown model": Place(UPSAMPLER, changed("config.json", auto_map=AUTO, model_type="evil")),
        "repository in an auto_map": Place(
            UPSAMPLER, changed("config.json", model_type="evil", auto_map={"AutoConfig": "owner/name--evil.EvilConfig"})
        ),
        "generation": Place(UPSAMPLER, changed("generation_config.json", custom_generate="evil")),
        "generation script": Place(UPSAMPLER, written("custom_generate/generate.py", "generate.py")),
        "processor": Place(
            UPSAMPLER, changed("processor_config.json", auto_map={"AutoProcessor": "evil.Evil"}, processor_class="Evil")
        ),
        "chat template": Place(UPSAMPLER, in_text("chat_template.jinja", ESCAPE)),
        "chat template of a tokenizer": Place(UPSAMPLER, changed("tokenizer_config.json", chat_template=ESCAPE)),
        "adapter": Place(
            UPSAMPLER,
            changed(
                "adapter_config.json",
                peft_type="LORA",
                auto_mapping={"parent_library": "evil"},
                base_model_name_or_path=".",
            ),
        ),
        "adapter's weights": Place(UPSAMPLER, pickled("adapter_model.bin")),
        "quantization": Place(
            UPSAMPLER, changed("config.json", quantization_config={"quant_method": "evil", "modules": "evil.Evil"})
        ),
        "attention of a repository": Place(UPSAMPLER, changed("config.json", attn_implementation="owner/name:evil")),
        "dtype": Place(UPSAMPLER, changed("config.json", dtype="evil.Evil", torch_dtype="evil.Evil")),
        "modules beside the weights": Place(
            UPSAMPLER,
            written("modeling_llama.py", "configuration_llama.py", "tokenization_llama.py", "llama/__init__.py"),
        ),
        "pickles beside the weights": Place(
            UPSAMPLER, pickled("pytorch_model.bin", "training_args.bin", "optimizer.pt", "tokenizer.model")
        ),
        "pickle in place of the weights": Place(UPSAMPLER, pickled("model.safetensors")),
        # a diffusers folder
        "pipeline in the index": Place(
            "flux", changed("model_index.json", _class_name=["evil", "FluxPipeline"], custom_pipeline="evil.py")
        ),
        "components in the index": Place(
            "flux", changed("model_index.json", vae=["evil", "AutoencoderKL"], tokenizer=["evil", "EvilTokenizer"])
        ),
        "pipeline beside the index": Place("flux", written("pipeline.py", "__init__.py", "vae/autoencoder_kl.py")),
        "auto_map of a text encoder": Place("flux", changed("text_encoder/config.json", auto_map=AUTO)),
        "class of a text encoder": Place(
            "flux", changed("text_encoder_2/config.json", model_type="evil", auto_map=AUTO)
        ),
        "auto_map of a text encoder's tokenizer": Place(
            "flux", changed("tokenizer/tokenizer_config.json", auto_map=TOKENIZER, tokenizer_class="EvilTokenizer")
        ),
        "words of a tokenizer": Place("flux", pickled("tokenizer/vocab.json", "tokenizer/merges.txt")),
        "model of a tokenizer": Place("flux", pickled("tokenizer_2/spiece.model", "tokenizer_2/tokenizer.json")),
        "auto_map of a transformer": Place(
            "flux", changed("transformer/config.json", _class_name="evil.Evil", auto_map=AUTO)
        ),
        "auto_map of an autoencoder": Place("flux", changed("vae/config.json", _class_name="Evil", auto_map=AUTO)),
        "blocks of an autoencoder": Place(
            "flux", changed("vae/config.json", down_block_types=["evil.Evil"] * 5, act_fn="evil.Evil")
        ),
        "class of a scheduler": Place(
            "flux", changed("scheduler/scheduler_config.json", _class_name="evil.Evil", auto_map=AUTO)
        ),
        "index of weights": Place("flux", indexed_outside),
        "pickles of components": Place(
            "flux",
            pickled("text_encoder/pytorch_model.bin", "vae/diffusion_pytorch_model.bin", "scheduler/scheduler.bin"),
        ),
        "pickle in place of a component": Place("flux", pickled("text_encoder/model.safetensors")),
        # detectors, upscalers and a face restorer
        "tag of a description": Place("detector", in_text("face_detector.yaml", TAG)),
        "second document of a description": Place("detector", appended("face_detector.yaml", f"---\n{TAG}")),
        "activation of a description": Place(
            "detector", appended("face_detector.yaml", "activation: __import__('os').system('touch MARKER')")
        ),
        "layer of a description": Place(
            "detector",
            in_text(
                "face_detector.yaml",
                "task: detect\nnames: [face]\nimgsz: 256\nhead: []\n"
                "backbone: [[-1, 1, torch_safe_load, [MARKER, false]]]\n",
            ),
        ),
        "argument of a layer": Place(
            "detector",
            in_text(
                "face_detector.yaml",
                "task: detect\nnames: [face]\nimgsz: 256\nhead: []\n"
                "backbone: [[-1, 1, Conv, [\"__import__('os').system('touch MARKER')\", 3, 2]]]\n",
            ),
        ),
        "pickle of a detector": Place("detector", pickled("face.pt")),
        "archive of a detector": Place("detector", pickled("face.pt", "face.pth", archive=True)),
        "pickle as a detector's weights": Place("detector", pickled("face_detector.safetensors")),
        "pickle as an ONNX file": Place("detector", pickled("face.onnx")),
        "pickles of upscalers": Place("upscaler", pickled("a.pth", "b.pt", "c.ckpt", "d.safetensors", "e.bin", "f")),
        "archives of upscalers": Place(
            "upscaler", pickled("a.pth", "b.pt", "c.ckpt", "d.safetensors", "e.bin", "f", archive=True)
        ),
        "pickle of a face restorer": Place("upscaler", pickled("GFPGANv1.4.pth", "RestoreFormer.ckpt", archive=True)),
        # the text model of a detector with any classes
        "auto_map of class names": Place(
            "class names",
            changed("tokenizer/tokenizer_config.json", auto_map=TOKENIZER, tokenizer_class="EvilTokenizer"),
        ),
    }
)
