"""From references to files: by name, from the cache, and from hosts."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.lora_hub import QUICK, LoraHub, lora_bytes, tar_of
from support.refusals import refusal

from backend.core.cancellation import Canceled, Cancellation
from modules.lora.files.store import Fetch, LoraStore, Tokens

INK, VERSION = lora_bytes(1), "a" * 64
CDN = "civitai-delivery-worker-prod.0af1.r2.cloudflarestorage.com"


@pytest.fixture
def store(hub: LoraHub, tmp_path: Path) -> LoraStore:
    return hub.store(tmp_path)


def put(folder: Path, name: str, content: bytes = INK) -> None:
    file = folder / "loras" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["ink", "ink.safetensors", "Styles/Ink", "styles/ink", "INK"])
def test_a_file_is_found_by_its_name(store: LoraStore, tmp_path: Path, name: str) -> None:
    put(tmp_path, "styles/ink.safetensors")
    put(tmp_path, "oil.sft", lora_bytes(2))
    file = store.fetch(name)
    assert (file.name, file.path) == ("ink", tmp_path / "loras" / "styles" / "ink.safetensors")
    header = int.from_bytes(INK[:8], "little")
    assert file.sha256 == hashlib.sha256(INK).hexdigest()
    assert file.tensors_sha256 == hashlib.sha256(INK[8 + header :]).hexdigest()


def test_a_changed_file_is_another_one(store: LoraStore, tmp_path: Path) -> None:
    put(tmp_path, "ink.safetensors")
    first = store.fetch("ink")
    put(tmp_path, "ink.safetensors", lora_bytes(2, 4001))
    assert store.fetch("ink").sha256 != first.sha256


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("inc", "lora_weights: 'inc' is not in weights/loras (did you mean 'ink'?)"),
        ("zzzzzz", "lora_weights: 'zzzzzz' is not in weights/loras; there are a/oil, b/oil, ink; put its file there"),
        ("oil", "lora_weights: 'oil' is the name of several files; give one with its folder: a/oil, b/oil"),
    ],
)
def test_a_name_that_is_not_there_is_refused_with_the_nearest(
    hub: LoraHub, tmp_path: Path, name: str, problem: str
) -> None:
    for file in ("ink.safetensors", "a/oil.safetensors", "b/oil.safetensors"):
        put(tmp_path, file)
    assert refusal(lambda: hub.store(tmp_path).fetch(name)) == problem
    assert hub.seen == []


def test_only_allowed_sources_are_asked(hub: LoraHub, tmp_path: Path) -> None:
    store = hub.store(tmp_path, sources=("local", "civitai"))
    for reference, sources in (
        ("alice/ink", "huggingface or replicate"),
        ("https://loras.example/a.safetensors", "https"),
    ):
        problem = refusal(lambda reference=reference: store.fetch(reference))  # type: ignore[misc]
        assert f"would be downloaded from {sources}, which the setting lora_sources does not allow" in problem
    assert hub.seen == []


HUB = "huggingface.co/alice/ink"
WAYS: dict[str, dict[str, Any]] = {
    "alice/ink": {"name": "ink_v1"},
    "huggingface.co/alice/ink": {"name": "ink_v1"},
    "https://huggingface.co/alice/ink/resolve/main/ink_v1.safetensors": {"name": "ink_v1"},
    "civitai:12": {"name": "ink_v2"},
    "civitai.com/models/12?modelVersionId=34": {"name": "ink_v2"},
    "https://civitai.com/api/download/models/34": {"name": "ink_v2"},
    "bob/ink": {"name": "ink"},
    f"bob/ink/{VERSION}": {"name": "ink"},
    "https://replicate.delivery/x/trained_model.tar": {"name": "weights"},
    "https://loras.example/a/ink_v3.safetensors": {"name": "ink_v3"},
}


def fill(hub: LoraHub) -> None:
    """The same file in all places."""
    hub.add_model("alice/ink", {"README.md": b"", "ink_v1.safetensors": INK})
    hub.add("civitai.com/api/v1/models/12", b'{"modelVersions": [{"id": 34}, {"id": 33}]}')
    hub.add("civitai.com/api/download/models/34", status=307, headers={"Location": f"https://{CDN}/m/x?sig=1"})
    hub.add(f"{CDN}/m/x?sig=1", INK, headers={"Content-Disposition": 'attachment; filename="ink_v2.safetensors"'})
    for path in ("bob/ink/_weights", f"bob/ink/versions/{VERSION}/_weights"):
        hub.add(
            f"replicate.com/{path}", status=302, headers={"Location": "https://replicate.delivery/x/trained_model.tar"}
        )
    hub.add("replicate.delivery/x/trained_model.tar", tar_of(output__weights_st=INK, output__caption=b"ink"))
    hub.add("loras.example/a/ink_v3.safetensors", INK)


@pytest.mark.parametrize("reference", WAYS)
def test_a_file_is_downloaded_once(hub: LoraHub, store: LoraStore, tmp_path: Path, reference: str) -> None:
    fill(hub)
    shown: list[tuple[int, int]] = []
    file = store.fetch(reference, Fetch(on_progress=lambda done, total: shown.append((done, total))))
    assert file.path.read_bytes() == INK and file.name == WAYS[reference]["name"]
    assert shown[-1][0] == shown[-1][1] >= len(INK)
    asked = len(hub.seen)
    assert store.fetch(reference) == file and len(hub.seen) == asked
    assert len(files_in(tmp_path / "cache")) == 2


def test_the_order_of_the_sources_decides_what_a_name_means(hub: LoraHub, tmp_path: Path) -> None:
    hub.add_model("bob/ink", {"ink.safetensors": lora_bytes(5)})
    hub.add("replicate.com/bob/ink/_weights", tar_of(weights_st=INK))
    first = hub.store(tmp_path / "a", sources=("replicate", "huggingface")).fetch("bob/ink")
    other = hub.store(tmp_path / "b", sources=("huggingface", "replicate")).fetch("bob/ink")
    assert first.path.read_bytes() == INK and other.path.read_bytes() == lora_bytes(5)


def test_of_several_files_one_must_be_named(hub: LoraHub, store: LoraStore) -> None:
    hub.add_model("alice/ink", {"a.safetensors": INK, "b.safetensors": lora_bytes(2)})
    assert "has 2 safetensors files in this model; add the name of one: a.safetensors, b.safetensors" in refusal(
        lambda: store.fetch("huggingface.co/alice/ink")
    )
    assert "has no 'c.safetensors' in this model" in refusal(lambda: store.fetch("alice/ink/c.safetensors"))
    assert store.fetch("alice/ink/b.safetensors").path.read_bytes() == lora_bytes(2)


def test_a_token_opens_a_private_model_for_those_who_have_it(hub: LoraHub, store: LoraStore, tmp_path: Path) -> None:
    token = "hf_for-this-test-alone"
    hub.add_model("alice/ink", {"ink.safetensors": INK}, token)
    mine = Fetch(tokens=Tokens({"huggingface": token}))
    store.fetch("huggingface.co/alice/ink", mine)
    asked = len(hub.seen)
    store.fetch("huggingface.co/alice/ink", mine)
    assert len(hub.seen) == asked
    problem = "'huggingface.co/alice/ink' is not there, or asks for a token; give hf_api_token"
    assert problem in refusal(lambda: store.fetch("huggingface.co/alice/ink"))
    other = Fetch(tokens=Tokens({"huggingface": "hf_another-token"}))
    assert "the token in hf_api_token is refused" in refusal(lambda: store.fetch("huggingface.co/alice/ink", other))
    assert token not in repr(mine)
    assert not any(token.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_token_stays_with_its_own_host(hub: LoraHub, store: LoraStore) -> None:
    fill(hub)
    store.fetch("civitai:12", Fetch(tokens=Tokens({"civitai": "secret", "huggingface": "other"})))
    sent = {host: authorization for host, _, authorization in hub.seen}
    assert sent == {"civitai.com": "Bearer secret", CDN: ""}


def test_the_least_recently_used_files_make_room(hub: LoraHub, tmp_path: Path) -> None:
    store = hub.store(tmp_path, room=3 * len(INK))
    for number in (1, 2, 3):
        hub.add(f"loras.example/{number}.safetensors", lora_bytes(number))
    one, two = (store.fetch(f"https://loras.example/{number}.safetensors") for number in (1, 2))
    time.sleep(0.01)
    store.fetch("https://loras.example/1.safetensors")
    hub.add("loras.example/4.safetensors", lora_bytes(4, 8000))
    store.fetch("https://loras.example/4.safetensors", Fetch(keep=frozenset({one.sha256})))
    assert one.path.is_file() and not two.path.is_file()
    problem = refusal(lambda: hub.store(tmp_path / "small", room=1000).fetch("https://loras.example/1.safetensors"))
    assert "raise lora_cache_gb" in problem and files_in(tmp_path / "small") == []


def test_what_was_changed_in_the_cache_is_fetched_again(hub: LoraHub, store: LoraStore) -> None:
    fill(hub)
    file = store.fetch("https://loras.example/a/ink_v3.safetensors")
    file.path.write_bytes(INK[:-1])
    assert store.fetch("https://loras.example/a/ink_v3.safetensors").path.read_bytes() == INK


def test_a_download_ends_when_it_is_canceled(hub: LoraHub, store: LoraStore, tmp_path: Path) -> None:
    hub.add("loras.example/slow.safetensors", INK, pause=0.3, piece=10)
    cancellation = Cancellation()
    begin = time.monotonic()
    threading.Timer(0.3, cancellation.cancel).start()
    with pytest.raises(Canceled):
        store.fetch("https://loras.example/slow.safetensors", Fetch(check=cancellation.check))
    assert time.monotonic() - begin < 8 and files_in(tmp_path / "cache") == []


def test_of_two_requests_for_one_file_one_downloads(hub: LoraHub, tmp_path: Path) -> None:
    hub.add("loras.example/ink.safetensors", INK, pause=0.05, piece=1000)
    stores = [hub.store(tmp_path) for _ in range(3)]
    threads = [threading.Thread(target=one.fetch, args=("https://loras.example/ink.safetensors",)) for one in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hub.seen) == 1 and len(files_in(tmp_path / "cache")) == 2


def test_a_folder_that_cannot_be_written_is_told(hub: LoraHub, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    hub.add("loras.example/ink.safetensors", INK)
    assert "set another in lora_cache" in refusal(
        lambda: hub.store(tmp_path, QUICK).fetch("https://loras.example/ink.safetensors")
    )
