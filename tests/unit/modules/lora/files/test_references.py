"""What users write for a LoRA, and what it means."""

from __future__ import annotations

import pytest

from modules.lora.files.references import (
    CivitaiModel,
    HubFile,
    LocalName,
    Reference,
    ReferenceProblem,
    ReplicateModel,
    WebFile,
    meanings,
    shown,
)

VERSION = "a" * 64
FILE = "https://loras.example/a/ink.safetensors"
TAR = "https://replicate.delivery/yhqm/x/trained_model.tar"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("ink", [LocalName("ink")]),
        (" ink.safetensors ", [LocalName("ink.safetensors")]),
        ("styles/old/ink.sft", [LocalName("styles/old/ink.sft"), HubFile("styles", "old", "ink.sft")]),
        ("alice/ink", [LocalName("alice/ink"), HubFile("alice", "ink"), ReplicateModel("alice", "ink")]),
        (f"alice/ink/{VERSION}", [LocalName(f"alice/ink/{VERSION}"), ReplicateModel("alice", "ink", VERSION)]),
        ("alice/ink/b.safetensors", [LocalName("alice/ink/b.safetensors"), HubFile("alice", "ink", "b.safetensors")]),
        ("a b/c", [LocalName("a b/c")]),
        ("huggingface.co/alice/ink", [HubFile("alice", "ink")]),
        ("hf.co/alice/ink/", [HubFile("alice", "ink")]),
        ("https://www.huggingface.co/alice/ink/tree/main", [HubFile("alice", "ink")]),
        ("huggingface.co/alice/ink/b.safetensors", [HubFile("alice", "ink", "b.safetensors")]),
        (
            "https://huggingface.co/alice/ink/resolve/v2/sub/b%20c.safetensors?download=true",
            [HubFile("alice", "ink", "sub/b c.safetensors", "v2")],
        ),
        ("https://huggingface.co/alice/ink/blob/main/b.safetensors", [HubFile("alice", "ink", "b.safetensors")]),
        ("civitai.com/models/12/slug?modelVersionId=34", [CivitaiModel("12", "34")]),
        ("https://civitai.com/models/12", [CivitaiModel("12")]),
        ("civitai:12", [CivitaiModel("12")]),
        ("civitai:12@34", [CivitaiModel("12", "34")]),
        ("urn:air:flux1:lora:civitai:12@34", [CivitaiModel("12", "34")]),
        ("https://civitai.com/api/download/models/34", [CivitaiModel(version="34")]),
        (
            "civitai.com/api/download/models/34?type=Model&format=SafeTensor",
            [CivitaiModel(version="34", variant="type=Model&format=SafeTensor")],
        ),
        ("replicate.com/alice/ink", [ReplicateModel("alice", "ink")]),
        (f"https://replicate.com/alice/ink/versions/{VERSION}", [ReplicateModel("alice", "ink", VERSION)]),
        (TAR, [WebFile(TAR, "replicate")]),
        (FILE, [WebFile(FILE)]),
        ("https://loras.example/Ink.SAFETENSORS#x", [WebFile("https://loras.example/Ink.SAFETENSORS")]),
    ],
)
def test_every_form_is_read(text: str, meant: list[Reference]) -> None:
    assert list(meanings(text)) == meant


@pytest.mark.parametrize(
    "text",
    [
        *("alice/ink", f"alice/ink/{VERSION}", "huggingface.co/alice/ink", "huggingface.co/alice/ink/b.safetensors"),
        *("huggingface.co/alice/ink/resolve/v2/b.safetensors", "civitai:12", "civitai:12@34", FILE, TAR, "ink"),
        *("civitai.com/api/download/models/34", "civitai.com/api/download/models/34?type=Model", "replicate.com/a/b"),
    ],
)
def test_what_a_record_says_means_the_same_again(text: str) -> None:
    for meant in meanings(text):
        assert meant in meanings(meant.text)


@pytest.mark.parametrize(("home", "kinds"), [("huggingface", HubFile), ("replicate", ReplicateModel)])
def test_an_input_of_one_hub_means_that_hub(home: str, kinds: type) -> None:
    assert [type(one) for one in meanings("alice/ink", home)] == [LocalName, kinds]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is no reference to a LoRA; give a name in weights/loras"),
        ("x" * 2049, "is no reference"),
        ("a\nb", "is no reference"),
        ("a\\b", "is no reference"),
        ("../secret", "'../secret' is no name of a file"),
        ("/etc/passwd", "'/etc/passwd' is no name of a file"),
        ("a//b", "'a//b' is no name"),
        ("http://loras.example/ink.safetensors", "must be an https address"),
        ("file:///etc/passwd", "must be an https address"),
        ("ftp://loras.example/ink.safetensors", "must be an https address"),
        ("https://", "'https://' must name a host"),
        ("https://[x]/a.safetensors", "is no address"),
        ("https://loras.example:8443/ink.safetensors", "at the usual port of https"),
        ("https://bob:pw@loras.example/ink.safetensors", "has a name or a password before the host"),
        ("https://loras.example/ink.zip", "'https://loras.example/ink.zip' is no LoRA of loras.example"),
        ("https://loras.example/%2e%2e/ink.safetensors", "is no address of a file"),
        ("https://huggingface.co/datasets/a/b", "is no LoRA of huggingface.co"),
        ("huggingface.co/alice/ink/notes.txt", "is no LoRA of huggingface.co"),
        ("civitai.com/models/x", "is no LoRA of civitai.com"),
        ("replicate.com/alice/ink/versions/1", "is no LoRA of replicate.com"),
        ("civitai.com/api/download/models/3?token=0123456789", "has a token in its address; give it as civitai_api_"),
        ("https://huggingface.co/a/b?token=0123456789", "has a token in its address; give it as hf_api_token"),
        (f"{FILE}?X-Amz-Signature=0123456789", "has a token in its address; addresses with one are not taken"),
        (f"{FILE}?page=2", "has '?page=' in its address, which is not read"),
        ("hf_0123456789abcdefghij", "holds a token; give it as hf_api_token"),
    ],
)
def test_anything_else_is_refused_without_quoting_a_secret(text: str, problem: str) -> None:
    with pytest.raises(ReferenceProblem) as caught:
        meanings(text)
    assert problem in str(caught.value) and "0123456789" not in str(caught.value) and "pw" not in str(caught.value)


def test_a_reference_is_shown_without_secrets() -> None:
    assert shown("https://bob:pw@a.example/x?token=1#y") == "https://a.example/x"
    assert shown("hf_0123456789abcdefghij") == "..."
