"""Hosts and files of LoRA that want to do harm: each is refused in one line that names the input, nothing of it is left
on disk, no token is said anywhere, and the files that other requests use are as they were."""

from __future__ import annotations

import gzip
import io
import json
import logging
import pickle
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.detector_files import Payload
from support.lora_hub import IMPATIENT, QUICK, LoraHub, Page, lora_bytes, tar_of

from backend.core.errors import InputError
from modules.lora.files.store import Fetch, Tokens

INK = lora_bytes(1)
TOKEN = "hf_NobodyMayReadThis0123456789"
WEB = "https://loras.example/x.safetensors"
TAR = "https://loras.example/x.tar"
MODEL = "huggingface.co/alice/ink"
ABOUT = "huggingface.co/api/models/alice/ink/revision/main?blobs=true"
COMMIT = "c0ffee" + "0" * 34

Prepare = Callable[[LoraHub, Path], Any]
"""Puts what does harm on the hub; gets a path that a harmful file would write."""


def web(body: bytes = b"", **page: Any) -> Prepare:
    return lambda hub, planted: hub.add(WEB.removeprefix("https://"), body, **page)


def tar(body: bytes) -> Prepare:
    return lambda hub, planted: hub.add(TAR.removeprefix("https://"), body)


def to(location: str, **addresses: list[str]) -> Prepare:
    """A redirect; the resolver answers with ``addresses`` for names in which a dot is written as ``_``."""

    def prepare(hub: LoraHub, planted: Path) -> None:
        hub.addresses.update({name.replace("_", "."): answers for name, answers in addresses.items()})
        hub.add(WEB.removeprefix("https://"), status=302, headers={"Location": location})
        for host in ("inside.example", "rebound.example", "other.example"):
            hub.add(f"{host}/x.safetensors", INK)

    return prepare


def about(found: object) -> Prepare:
    """What the hub says of a model, with its files."""

    def prepare(hub: LoraHub, planted: Path) -> None:
        hub.add_model("alice/ink", {"ink.safetensors": INK})
        hub.add(ABOUT, found if isinstance(found, bytes) else json.dumps(found).encode())

    return prepare


def hub_redirect(location: str) -> Prepare:
    def prepare(hub: LoraHub, planted: Path) -> None:
        hub.add_model("alice/ink", {"ink.safetensors": INK})
        hub.add(
            f"huggingface.co/alice/ink/resolve/{COMMIT}/ink.safetensors", status=302, headers={"Location": location}
        )
        hub.add("other.example/x.safetensors", INK)

    return prepare


def as_pickle(hub: LoraHub, planted: Path) -> None:
    hub.add(WEB.removeprefix("https://"), pickle.dumps(Payload(planted)))


def pickle_in_tar(hub: LoraHub, planted: Path) -> None:
    hub.add(TAR.removeprefix("https://"), tar_of(ink_st=pickle.dumps(Payload(planted))))


def special(kind: bytes, link: str = "", name: str = "ink.safetensors", beside: bool = True) -> bytes:
    """A tar with a member that is no regular file."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as made:
        if beside:
            good = tarfile.TarInfo("good.safetensors")
            good.size = len(INK)
            made.addfile(good, io.BytesIO(INK))
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        made.addfile(info)
    return archive.getvalue()


def named(name: str, content: bytes = INK, claimed: int | None = None) -> bytes:
    """A tar with one member of this name, which claims to have so many bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(content) if claimed is None else claimed
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512 + 1024)


def huge_pax_header() -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**31
    return info.tobuf(tarfile.PAX_FORMAT) + bytes(4096)


def sparse() -> bytes:
    """A hole of a terabyte, as GNU tar writes it."""
    headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": str(2**40), "GNU.sparse.map": "0,1"}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as made:
        info = tarfile.TarInfo("ink.safetensors")
        info.size, info.pax_headers = 1, headers
        made.addfile(info, io.BytesIO(b"x"))
    return archive.getvalue()


def header(text: str, length: int | None = None) -> bytes:
    """A safetensors file with this header and no tensors."""
    return (len(text) if length is None else length).to_bytes(8, "little") + text.encode()


BOMB = gzip.compress(bytes(10**7))
OVERLAP = '{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}'
SIBLINGS = [{"rfilename": "ink.safetensors", "lfs": {"sha256": "0" * 64}}]

CASES: dict[str, tuple[str, Prepare, str]] = {
    # where it leads
    "redirect to loopback": (WEB, to("https://127.0.0.1/x.safetensors"), "leads to '127.0.0.1'"),
    "redirect to loopback in IPv6": (WEB, to("https://[::1]/x.safetensors"), "leads to '::1'"),
    "redirect to a wrapped address": (WEB, to("https://[::ffff:7f00:1]/x.safetensors"), "leads to '::ffff:"),
    "redirect to metadata of the cloud": (WEB, to("https://169.254.169.254/latest"), "leads to '169.254.169.254'"),
    "redirect to a number": (WEB, to("https://2130706433/x.safetensors"), "leads to '2130706433'"),
    "redirect to localhost": (WEB, to("https://localhost/x.safetensors"), "leads to 'localhost'"),
    "a name of loopback": (
        "https://inside.example/x.safetensors",
        to("", inside_example=["127.0.0.1"]),
        "leads to a private network",
    ),
    "a name of a private network": (
        WEB,
        to("https://inside.example/x", inside_example=["10.0.0.7"]),
        "private network",
    ),
    "a name of a link-local address": (
        WEB,
        to("https://inside.example/x", inside_example=["fe80::1"]),
        "private network",
    ),
    "a name of a wrapped address": (
        WEB,
        to("https://inside.example/x", inside_example=["::ffff:127.0.0.1"]),
        "private network",
    ),
    "rebinding": (
        "https://rebound.example/x.safetensors",
        lambda hub, planted: (
            hub.addresses.update({"rebound.example": ["8.8.8.8", "127.0.0.1"]}),
            hub.add("rebound.example/x.safetensors", status=302, headers={"Location": "/again.safetensors"}),
            hub.add("rebound.example/again.safetensors", INK),
        ),
        "leads to a private network",
    ),
    "redirect to http": (WEB, to("http://other.example/x.safetensors"), "not plain https"),
    "redirect to a file": (WEB, to("file:///etc/passwd"), "not plain https"),
    "redirect to another port": (WEB, to("https://other.example:8443/x.safetensors"), "not plain https"),
    "redirect with a password": (WEB, to("https://a:b@other.example/x.safetensors"), "not plain https"),
    "redirect to no address": (WEB, to("https://[/"), "no address"),
    "redirects without end": (WEB, to("/x.safetensors"), "redirects more than 5 times"),
    "a hub leads elsewhere": (MODEL, hub_redirect("https://other.example/x.safetensors"), "leads to 'other.example'"),
    "a hub leads to a name like its own": (MODEL, hub_redirect("https://evilhf.co/x"), "leads to 'evilhf.co'"),
    "a hub leads to a longer name": (MODEL, hub_redirect("https://hf.co.other.example/x"), "leads to 'hf.co.other."),
    "a host without a certificate": (
        "https://wrong.example/x.safetensors",
        lambda hub, planted: hub.addresses.update({"wrong.example": ["8.8.8.8"]}),
        "no certificate",
    ),
    "a host that is not known": ("https://nowhere.example/x.safetensors", web(), "is not known"),
    # how it is sent
    "an endless body": (WEB, web(INK, endless=True), "at most 0.2 MB are read"),
    "a length over the cap": (WEB, web(INK, length=10**12), "sends 1000.0 GB or more"),
    "a body over the cap": (WEB, web(bytes(300_000)), "at most 0.2 MB"),
    "less than it said": (WEB, web(INK, length=len(INK) + 500), "sends less than it said"),
    "more than it said": (WEB, web(INK, length=len(INK) - 500), "safetensors"),
    "a slow drip": (WEB, web(INK, pause=0.02, piece=1), "sends it too slowly"),
    "silence": (WEB, web(INK, pause=3), "does not answer"),
    "a huge header": (WEB, web(INK, headers={"X-Much": "x" * 100_000}), "answers what is no HTTP"),
    "gzip that nobody asked for": (WEB, web(BOMB, headers={"Content-Encoding": "gzip"}), "sends it compressed"),
    "an error": (WEB, web(status=500), "answers 500"),
    "a page": (WEB, web(b"<html>", headers={"Content-Type": "text/html; charset=utf-8"}), "answers with a page"),
    # what it is
    "nothing": (WEB, web(), "is damaged"),
    "a pickle": (WEB, as_pickle, "is a pickle, which is not opened"),
    "a zip, as torch saves": (WEB, web(b"PK\x03\x04" + bytes(2000)), "is a pickle, which is not opened"),
    "noise": (WEB, web(bytes(range(256)) * 20), "is damaged"),
    "a header longer than the file": (WEB, web(header("{}", 2**40)), "is damaged"),
    "tensors that overlap": (WEB, web(header(OVERLAP) + bytes(8)), "is damaged"),
    "tensors beyond the end": (WEB, web(INK[:-100]), "is damaged"),
    "a tar under another name": (WEB, web(tar_of(ink_st=INK)), "is damaged"),
    # tars
    "a name that leads out of the tar": (TAR, tar(named("../../evil.safetensors")), "names that lead out of it"),
    "a symbolic link": (TAR, tar(special(tarfile.SYMTYPE, "/etc/passwd")), "names that lead out of it"),
    "a symbolic link inside": (TAR, tar(special(tarfile.SYMTYPE, "good.safetensors")), "has links"),
    "a hard link": (TAR, tar(special(tarfile.LNKTYPE, "good.safetensors")), "has links"),
    "a device": (TAR, tar(special(tarfile.CHRTYPE)), "names that lead out of it"),
    "a named pipe": (TAR, tar(special(tarfile.FIFOTYPE)), "names that lead out of it"),
    "two safetensors": (TAR, tar(tar_of(a_st=INK, b_st=INK)), "holds 2 safetensors files"),
    "no safetensors": (TAR, tar(tar_of(readme=b"hello")), "holds no safetensors files"),
    "a compressed tar": (TAR, tar(gzip.compress(tar_of(ink_st=INK))), "is damaged, compressed, or no tar"),
    "a bomb in place of a tar": (TAR, tar(BOMB), "is damaged, compressed, or no tar"),
    "a header of two gigabytes": (TAR, tar(huge_pax_header()), "has a header that is too large"),
    "a hole of a terabyte": (TAR, tar(sparse()), "has links, devices or holes"),
    "a member over the cap": (TAR, tar(named("ink.safetensors", claimed=2**33)), "is damaged, compressed, or no tar"),
    "a member that is cut off": (TAR, tar(named("ink.safetensors", claimed=100_000)), "its tar is"),
    "a pickle in a tar": (TAR, pickle_in_tar, "is a pickle, which is not opened"),
    "noise in place of a tar": (TAR, tar(bytes(range(256)) * 8), "is damaged, compressed, or no tar"),
    # what hubs say
    "an endless description": (MODEL, about(b"{" + b" " * 50_000), "more than a description"),
    "a description that is none": (MODEL, about(b"<html>"), "does not describe the model in JSON"),
    "a deep description": (MODEL, about(b'{"siblings":' + b"[" * 9000 + b"]" * 9000 + b"}"), "not describe the model"),
    "a description of other types": (
        MODEL,
        about({"siblings": {"rfilename": 7}, "sha": []}),
        "has no safetensors file",
    ),
    "names that lead out of a model": (
        MODEL,
        about({"siblings": [{"rfilename": "../../a.safetensors"}]}),
        "has no safe",
    ),
    "another checksum": (MODEL, about({"siblings": SIBLINGS, "sha": COMMIT}), "has another checksum than its hub says"),
    "a token that is refused": (
        MODEL,
        lambda hub, planted: hub.add(ABOUT, token="another"),
        "the token in hf_api_token is refused",
    ),
    "a token in its answer": (MODEL, hub_redirect(f"https://other.example/{TOKEN}?token={TOKEN}"), "leads to 'other."),
    # what the caller writes
    "an address of this machine": ("https://127.0.0.1/x.safetensors", web(), "leads to '127.0.0.1'"),
    "not encrypted": ("http://loras.example/x.safetensors", web(INK), "must be an https address"),
    "a token in the address": (f"{WEB}?token={TOKEN}", web(INK), "has a token in its address"),
    "a password in the address": (
        f"https://a:{TOKEN}@loras.example/x.safetensors",
        web(INK),
        "a password before the host",
    ),
    "a token in place of a reference": (TOKEN, web(INK), "holds a token"),
    "a path of this machine": ("/etc/passwd", web(), "is no name of a file"),
    "a path that leads out": ("../../config_optimized.json", web(), "is no name of a file"),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"}


SLOW = ("a slow drip", "silence")


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_and_leaves_nothing(
    hub: LoraHub,
    tmp_path: Path,
    case: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    reference, prepare, problem = CASES[case]
    store, planted = hub.store(tmp_path), tmp_path / "planted"
    good = "https://loras.example/good.safetensors"
    hub.add("loras.example/good.safetensors", lora_bytes(9))
    before = store.fetch(good)
    kept = contents(tmp_path)
    prepare(hub, planted)
    begin = time.monotonic()
    with pytest.raises(InputError) as caught:
        strict = hub.store(tmp_path, IMPATIENT) if case in SLOW else store
        strict.fetch(reference, Fetch("extra_lora", Tokens({"huggingface": TOKEN, "civitai": TOKEN})))
    assert time.monotonic() - begin < QUICK.seconds
    text = str(caught.value)
    assert text.startswith("extra_lora: ") and problem in text and "\n" not in text and len(text) < 400
    assert contents(tmp_path) == kept and not planted.exists()
    assert store.fetch(good) == before
    shown = capfd.readouterr()
    assert TOKEN not in text + caplog.text + shown.out + shown.err
    assert all(not authorization or host == "huggingface.co" for host, _, authorization in hub.seen)


def test_a_download_that_takes_too_long_ends(hub: LoraHub, tmp_path: Path) -> None:
    hub.add("loras.example/x.safetensors", INK, pause=0.05, piece=100)
    limits = replace(QUICK, seconds=0.4, patience=60)
    with pytest.raises(InputError, match="does not send it within 0 seconds"):
        hub.store(tmp_path, limits).fetch(WEB)
    assert contents(tmp_path) == {}


def test_a_full_disk_is_respected(hub: LoraHub, tmp_path: Path) -> None:
    hub.add("loras.example/x.safetensors", INK)
    with pytest.raises(InputError, match="has no room for"):
        hub.store(tmp_path, reserved=2**60).fetch(WEB)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("name", ["../../evil.safetensors", "/etc/evil.safetensors", "a<lora:b>.safetensors", ""])
def test_the_name_that_a_host_gives_never_names_a_path(hub: LoraHub, tmp_path: Path, name: str) -> None:
    hub.pages["civitai.com/api/download/models/3"] = Page(
        INK, headers={"Content-Disposition": f'attachment; filename="{name}"'}
    )
    file = hub.store(tmp_path).fetch("https://civitai.com/api/download/models/3")
    assert file.path.parent == tmp_path / "cache" and file.path.stem == file.sha256
    assert not set(file.name) & set("/\\<>:") and file.name
