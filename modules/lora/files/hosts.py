"""How each source names its files: from a reference to an address, over the descriptions that hubs give in JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from re import Pattern
from types import MappingProxyType
from typing import Any, NoReturn
from urllib.parse import quote

from backend.core.errors import nearest
from backend.core.texts import shortened
from modules.lora.files.download import Downloader, DownloadError, Place
from modules.lora.files.references import (
    ARCHIVE,
    CIVITAI,
    HTTPS,
    HUGGING_FACE,
    REPLICATE,
    SUFFIXES,
    CivitaiModel,
    HubFile,
    Reference,
    ReplicateModel,
    WebFile,
)

_SUB = r"(?:[a-z0-9-]+\.)*"
HOSTS: Mapping[str, Pattern[str]] = MappingProxyType(
    {
        HUGGING_FACE: re.compile(rf"{_SUB}(?:huggingface\.co|hf\.co)"),
        CIVITAI: re.compile(rf"{_SUB}civitai\.com|civitai-delivery-worker-prod\.[0-9a-f]+\.r2\.cloudflarestorage\.com"),
        REPLICATE: re.compile(rf"{_SUB}replicate\.(?:com|delivery)"),
        HTTPS: re.compile(r"(?:[a-z0-9_-]+\.)+[a-z][a-z0-9-]*"),
    }
)
"""The hosts of every source: its own, and those that it keeps files on."""
TOKEN_HOSTS: Mapping[str, str] = MappingProxyType({HUGGING_FACE: "huggingface.co", CIVITAI: "civitai.com"})
"""The only host that gets the token of a source."""
SAYS_NOTHING = frozenset({"lora", "pytorch_lora_weights", "adapter_model", "model", "diffusion_pytorch_model"})
"""Names of files that every other model has too; the model's name is taken in their place."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
LISTED = 5
"""Names of files that a message lists at most."""


@dataclass(frozen=True)
class Target:
    """A file to download.

    Attributes:
        place: Where it is.
        name: What it is called, without suffix; "" where the host says it with the file.
        reference: Where it comes from exactly.
        sha256: Of the file, where the hub says it.
        is_archive: Whether it is a tar.
    """

    place: Place
    name: str
    reference: str
    sha256: str = ""
    is_archive: bool = False


def target_of(reference: Reference, token: str, downloader: Downloader) -> Target:
    """The file that a reference leads to. Raises :class:`DownloadError`."""
    if isinstance(reference, HubFile):
        return _of_hugging_face(reference, token, downloader)
    if isinstance(reference, CivitaiModel):
        return _of_civitai(reference, token, downloader)
    if isinstance(reference, ReplicateModel):
        inside = f"versions/{reference.version}/" if reference.version else ""
        place = _place(REPLICATE, f"replicate.com/{reference.owner}/{reference.model}/{inside}_weights")
        return Target(place, reference.model, reference.text, is_archive=True)
    assert isinstance(reference, WebFile)
    path = PurePosixPath(reference.url)
    is_archive = path.suffix.lower() == ARCHIVE
    place = Place(reference.url, HOSTS[reference.source])
    return Target(place, "" if is_archive else path.stem, reference.text, is_archive=is_archive)


def _place(source: str, path: str, token: str = "") -> Place:
    return Place(f"https://{path}", HOSTS[source], TOKEN_HOSTS.get(source, ""), token)


def _of_hugging_face(reference: HubFile, token: str, downloader: Downloader) -> Target:
    model = f"{reference.owner}/{reference.model}"
    about = f"huggingface.co/api/models/{model}/revision/{reference.revision}?blobs=true"
    found = downloader.json(_place(HUGGING_FACE, about, token))
    files = {str(one.get("rfilename", "")): one for one in _objects(found.get("siblings"))}
    weights = [name for name in files if name.lower().endswith(SUFFIXES) and not {".", "..", ""} & set(name.split("/"))]
    file = reference.file or (weights[0] if len(weights) == 1 else "")
    if not file:
        _refuse_choice(weights)
    if file not in weights:
        raise DownloadError(f"has no '{shortened(file)}' in this model{nearest(file, weights)}")
    commit = str(found.get("sha", ""))
    revision = commit if _COMMIT.fullmatch(commit) else reference.revision
    digest = files[file].get("lfs")
    sha256 = str(digest.get("sha256", digest.get("oid", ""))) if isinstance(digest, dict) else ""
    exact = HubFile(reference.owner, reference.model, file, revision)
    stem = PurePosixPath(file).stem
    return Target(
        _place(HUGGING_FACE, f"huggingface.co/{model}/resolve/{revision}/{quote(file)}", token),
        reference.model if stem.lower() in SAYS_NOTHING else stem,
        exact.text,
        sha256 if _SHA256.fullmatch(sha256) else "",
    )


def _refuse_choice(weights: list[str]) -> NoReturn:
    if not weights:
        raise DownloadError("has no safetensors file in this model")
    listed = ", ".join(shortened(name) for name in weights[:LISTED]) + ", ..." * (len(weights) > LISTED)
    raise DownloadError(f"has {len(weights)} safetensors files in this model; add the name of one: {listed}")


def _of_civitai(reference: CivitaiModel, token: str, downloader: Downloader) -> Target:
    version = reference.version
    if not version:
        found = downloader.json(_place(CIVITAI, f"civitai.com/api/v1/models/{reference.model}", token))
        versions = _objects(found.get("modelVersions"))
        version = str(versions[0].get("id", "")) if versions else ""
        if not version.isdecimal():
            raise DownloadError("has no version of this model that can be downloaded")
    exact = CivitaiModel(reference.model, version, reference.variant)
    query = f"?{reference.variant}" if reference.variant else ""
    place = _place(CIVITAI, f"civitai.com/api/download/models/{version}{query}", token)
    return Target(place, "", exact.text)


def _objects(value: Any) -> list[dict[str, Any]]:
    """The objects in what should be a list of them."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
