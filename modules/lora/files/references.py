"""What a user writes for a LoRA -> where it may be: the name of a file, a model of a hub, or an address.

One grammar for inputs, tags in prompts and records. Nothing here opens a file or a connection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from backend.core.texts import shortened

LOCAL, HUGGING_FACE, CIVITAI, REPLICATE, HTTPS = "local", "huggingface", "civitai", "replicate", "https"
SOURCES = (LOCAL, HUGGING_FACE, CIVITAI, REPLICATE, HTTPS)
"""Where a LoRA may come from, by the names of the setting ``lora_sources``."""
MAX_LENGTH = 2048
"""Characters of a reference."""
SUFFIXES = (".safetensors", ".sft")
ARCHIVE = ".tar"
FORMS = (
    "a name in weights/loras, owner/model, huggingface.co/owner/model, civitai.com/models/ID, "
    "replicate.com/owner/model, or the https address of a .safetensors file"
)
TOKEN_INPUTS: Mapping[str, str] = MappingProxyType({HUGGING_FACE: "hf_api_token", CIVITAI: "civitai_api_token"})
"""The input that has the token of a source."""

_SITES: Mapping[str, str] = MappingProxyType(
    {
        "huggingface.co": HUGGING_FACE,
        "hf.co": HUGGING_FACE,
        "civitai.com": CIVITAI,
        "replicate.com": REPLICATE,
        "replicate.delivery": HTTPS,
    }
)
_OWNER = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")
_REVISION = re.compile(r"[\w.-]{1,100}")
_VERSION = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"\d{1,12}")
_CIVITAI = re.compile(r"(?:urn:air:[\w-]+:lora:)?civitai:(\d{1,12})(?:@(\d{1,12}))?")
_SECRET = re.compile(r"token|key|secret|passw|auth|sign?(?:ature)?|credential", re.IGNORECASE)
_TOKEN = re.compile(r"\b(?:hf|r8)_[A-Za-z0-9]{16,}")
"""Tokens of Hugging Face and Replicate, which nothing else looks like."""
_QUERIES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        HUGGING_FACE: frozenset({"download"}),
        CIVITAI: frozenset({"modelVersionId", "type", "format", "size", "fp"}),
    }
)
"""The names in the query of an address that a source knows."""


class ReferenceProblem(ValueError):
    """Why a text is no reference, in words that follow the name of an input."""


@dataclass(frozen=True)
class LocalName:
    """A file in ``weights/loras``, with or without its suffix, and with or without its folders."""

    name: str
    source: str = LOCAL

    @property
    def text(self) -> str:
        return self.name


@dataclass(frozen=True)
class HubFile:
    """A model on Hugging Face; without ``file`` it must have exactly one in safetensors."""

    owner: str
    model: str
    file: str = ""
    revision: str = "main"
    source: str = HUGGING_FACE

    @property
    def text(self) -> str:
        if self.revision == "main":
            return "/".join(filter(None, ("huggingface.co", self.owner, self.model, self.file)))
        kind = "resolve" if self.file else "tree"
        return "/".join(filter(None, ("huggingface.co", self.owner, self.model, kind, self.revision, self.file)))


@dataclass(frozen=True)
class CivitaiModel:
    """A model of Civitai, its version, or both; without a version it is the newest. ``variant`` is the query that picks
    one of several files, "" for the main one."""

    model: str = ""
    version: str = ""
    variant: str = ""
    source: str = CIVITAI

    @property
    def text(self) -> str:
        if not self.model or self.variant:
            return f"civitai.com/api/download/models/{self.version}" + (f"?{self.variant}" if self.variant else "")
        return f"civitai:{self.model}" + (f"@{self.version}" if self.version else "")


@dataclass(frozen=True)
class ReplicateModel:
    """A fine-tune on Replicate, whose weights are a tar; without ``version`` the newest."""

    owner: str
    model: str
    version: str = ""
    source: str = REPLICATE

    @property
    def text(self) -> str:
        return "/".join(filter(None, ("replicate.com", self.owner, self.model, self.version)))


@dataclass(frozen=True)
class WebFile:
    """A file at an https address: safetensors, or a tar with one."""

    url: str
    source: str = HTTPS

    @property
    def text(self) -> str:
        return self.url


Reference = LocalName | HubFile | CivitaiModel | ReplicateModel | WebFile


def shown(text: str) -> str:
    """A reference as messages quote it: short, and without what may be a secret."""
    text = re.sub(r"//[^/@\s]*@", "//", text.partition("?")[0].partition("#")[0])
    return shortened(_TOKEN.sub("...", text))


def meanings(text: str, home: str = "") -> tuple[Reference, ...]:
    """What a text may mean. Only ``owner/model`` has several meanings: a file in a folder, a model of Hugging Face, and
    one of Replicate, of which the first that is there counts. ``home`` is the source that it belongs to where that is
    known.

    Raises :class:`ReferenceProblem`, which quotes no secret.
    """
    text = text.strip()
    if not text or len(text) > MAX_LENGTH or not text.isprintable() or "\\" in text:
        raise ReferenceProblem(f"is no reference to a LoRA; give {FORMS}")
    found = _meanings(text, home)
    if _TOKEN.search(text):
        raise ReferenceProblem("holds a token; give it as hf_api_token, and here only what is to be loaded")
    return found


def _meanings(text: str, home: str) -> tuple[Reference, ...]:
    if match := _CIVITAI.fullmatch(text):
        return (CivitaiModel(match[1], match[2] or ""),)
    scheme, separator, rest = text.partition("://")
    if separator:
        if scheme.lower() != "https":
            raise ReferenceProblem("must be an https address; others are not encrypted, or no addresses of the web")
        return (_of_address(f"https://{rest}"),)
    site = text.partition("/")[0].lower().removeprefix("www.")
    if site in _SITES and "/" in text:
        return (_of_address(f"https://{text}"),)
    return _of_name(text, home)


def _of_name(text: str, home: str) -> tuple[Reference, ...]:
    parts = text.removesuffix("/").split("/")
    if not all(map(_is_part, parts)):
        raise ReferenceProblem(f"'{shown(text)}' is no name of a file; give {FORMS}")
    found: list[Reference] = [LocalName("/".join(parts))]
    if len(parts) > 1 and all(_OWNER.fullmatch(part) for part in parts[:2]):
        owner, model, *inside = parts
        if inside and _is_weights(inside[-1]):
            found.append(HubFile(owner, model, "/".join(inside)))
        elif not inside and not _is_weights(model):
            found += [HubFile(owner, model), ReplicateModel(owner, model)]
        elif len(inside) == 1 and _VERSION.fullmatch(inside[0]):
            found.append(ReplicateModel(owner, model, inside[0]))
    if home:
        found = [one for one in found if one.source in (LOCAL, home)]
    return tuple(found)


def _of_address(address: str) -> Reference:
    try:
        parts = urlsplit(address)
        host, port = (parts.hostname or "").removeprefix("www."), parts.port
    except ValueError:
        raise ReferenceProblem(f"'{shown(address)}' is no address") from None
    if parts.username is not None or parts.password is not None:
        raise ReferenceProblem("has a name or a password before the host; leave it out of the address")
    if not host or port not in (None, 443):
        raise ReferenceProblem(f"'{shown(address)}' must name a host, at the usual port of https")
    source = _SITES.get(host, HTTPS)
    _check_query(parts, source)
    path = [unquote(part) for part in parts.path.split("/") if part]
    if not all(map(_is_part, path)):
        raise ReferenceProblem(f"'{shown(address)}' is no address of a file")
    reference = _READERS[source](parts, path)
    if reference is None:
        raise ReferenceProblem(f"'{shown(address)}' is no LoRA of {host}; give {FORMS}")
    return reference


def _check_query(parts: SplitResult, source: str) -> None:
    """Refuses what may be a secret, because a reference is written into the picture."""
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if name in _QUERIES.get(source, ()):
            continue
        if _SECRET.search(name):
            own = TOKEN_INPUTS.get(source)
            advice = f"give it as {own}" if own else "addresses with one are not taken, because pictures name them"
            raise ReferenceProblem(f"has a token in its address; {advice}")
        raise ReferenceProblem(f"has '?{shortened(name, 20)}=' in its address, which is not read; leave it out")


def _of_hugging_face(parts: SplitResult, path: Sequence[str]) -> Reference | None:
    if (
        len(path) < 2
        or not all(_OWNER.fullmatch(part) for part in path[:2])
        or path[0] in ("datasets", "spaces", "api")
    ):
        return None
    owner, model, *inside = path
    revision = "main"
    if len(inside) > 1 and inside[0] in ("resolve", "blob", "tree"):
        revision, inside = inside[1], inside[2:]
        if not _REVISION.fullmatch(revision):
            return None
    if inside and not _is_weights(inside[-1]):
        return None
    return HubFile(owner, model, "/".join(inside), revision)


def _of_civitai(parts: SplitResult, path: Sequence[str]) -> Reference | None:
    query = dict(parse_qsl(parts.query))
    if len(path) == 4 and path[:3] == ["api", "download", "models"] and _NUMBER.fullmatch(path[3]):
        chosen = [(name, query[name]) for name in ("type", "format", "size", "fp") if name in query]
        if not all(value.isalnum() and len(value) < 40 for _, value in chosen):
            return None
        return CivitaiModel(version=path[3], variant="&".join(f"{name}={value}" for name, value in chosen))
    if len(path) in (2, 3) and path[0] == "models" and _NUMBER.fullmatch(path[1]):
        version = query.get("modelVersionId", "")
        return CivitaiModel(path[1], version) if not version or _NUMBER.fullmatch(version) else None
    return None


def _of_replicate(parts: SplitResult, path: Sequence[str]) -> Reference | None:
    if len(path) < 2 or not all(_OWNER.fullmatch(part) for part in path[:2]):
        return None
    owner, model, *inside = path
    if inside and inside[0] == "versions":
        inside = inside[1:]
        if not inside:
            return None
    if len(inside) > 1 or not all(map(_VERSION.fullmatch, inside)):
        return None
    return ReplicateModel(owner, model, *inside)


def _of_web(parts: SplitResult, path: Sequence[str]) -> Reference | None:
    if not path or not path[-1].lower().endswith((*SUFFIXES, ARCHIVE)):
        return None
    host = (parts.hostname or "").lower()
    source = REPLICATE if host == "replicate.delivery" or host.endswith(".replicate.delivery") else HTTPS
    return WebFile(f"https://{host}/{'/'.join(quote(part) for part in path)}", source)


_READERS: Mapping[str, Callable[[SplitResult, Sequence[str]], Reference | None]] = MappingProxyType(
    {HUGGING_FACE: _of_hugging_face, CIVITAI: _of_civitai, REPLICATE: _of_replicate, HTTPS: _of_web}
)


def _is_weights(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _is_part(part: str) -> bool:
    """Whether a text can be a part of a path."""
    return part not in ("", ".", "..") and part.isprintable() and not set(part) & set('/\\<>"|*?:')
