"""scripts/fetch-weights against a hub of our own: parallel, never half a file, never a wrong one, whatever is killed
when."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from support.local_hub import COMMIT, TOKEN, LocalHub, manifest_files, sha256

from backend.core.settings import ROOT
from backend.weights.catalog import read_manifest
from backend.weights.lockfile import PARTIAL, read_lock

SCHNELL = "FLUX.1-schnell"
TRANSFORMER = tuple(
    file for file in read_manifest()[SCHNELL].parts["transformer"].files if file.path.endswith(".safetensors")
)
MIB = 2**20
CHUNK = MIB
"""What the hub's library writes at a time, a tenth of its own: a connection that breaks off loses less than this."""
COMMAND = ("-m", "modules.cli.fetch_weights")
IN_CHUNKS = (
    "-c",
    f"""
import os
from backend.weights.resolver import ONLINE
os.environ.update(ONLINE)  # before the hub's library reads them
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = {CHUNK}
from modules.cli.fetch_weights import exit_with, main
exit_with(main)
""",
)
"""The same with small chunks."""
KILLS = 4


@pytest.fixture
def hub() -> Iterator[Callable[..., LocalHub]]:
    """Starts hubs that serve the files of some models."""
    started: list[LocalHub] = []

    def start(*names: str, shard_bytes: int = 100_000) -> LocalHub:
        started.append(LocalHub(manifest_files(names, shard_bytes)))
        return started[-1]

    yield start
    for running in started:
        running.close()


def command(
    hub: LocalHub, folder: Path, *options: str, token: str = "", program: tuple[str, str] = COMMAND
) -> subprocess.Popen[str]:
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    environment = {
        **kept,
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder / "home"),
        "HF_ENDPOINT": hub.url,
        "FLUX_WEIGHTS_DIR": str(folder / "weights"),
    }
    return subprocess.Popen(
        [sys.executable, "-P", *program, *options],
        env={**environment, "HF_TOKEN": token} if token else environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fetch(
    hub: LocalHub, folder: Path, *options: str, token: str = "", program: tuple[str, str] = COMMAND
) -> tuple[int, str]:
    """Exit status, and what was printed."""
    process = command(hub, folder, *options, token=token, program=program)
    output, errors = process.communicate(timeout=300)
    assert "Traceback" not in errors, errors
    return process.returncode, output + errors


def require_installed(hub: LocalHub, folder: Path, *models: str) -> None:
    """Every file is there with the hub's bytes, and the lock knows them."""
    weights, lock = folder / "weights", read_lock(folder / "weights")
    for file in (file for name in models for file in read_manifest()[name].files):
        content = hub.repositories[file.repository][file.path]
        assert (weights / file.local).read_bytes() == content, file.local
        entry = lock[file.local]
        assert (entry.bytes, entry.sha256, entry.repository, entry.revision) == (
            len(content),
            sha256(content),
            file.repository,
            COMMIT,
        )
    assert [path.name for path in (weights / PARTIAL).iterdir()] == ["running"], "something was left on its way"


def test_models_come_in_parallel_and_are_known_by_their_checksums(hub: Callable[..., LocalHub], tmp_path: Path) -> None:
    serving = hub(SCHNELL, "face_yolov8n", "ESRGAN_4x", shard_bytes=MIB // 4)
    serving.rate = MIB
    status, output = fetch(
        serving, tmp_path, "--only", SCHNELL, "--only", "face_yolov8n.pt", "--only", "ESRGAN*", "--jobs", "4"
    )
    assert status == 0, output
    require_installed(serving, tmp_path, SCHNELL, "face_yolov8n", "ESRGAN_4x")
    assert serving.most_at_once == 4
    files = len(read_manifest()[SCHNELL].files) + 2
    assert output.count("ok ") == files and f"{files} of {files} files" in output


def test_what_is_there_is_not_asked_for_again(hub: Callable[..., LocalHub], tmp_path: Path) -> None:
    serving = hub("hand_yolov8n", "face_yolov8n")
    fetch(serving, tmp_path, "--only", "hand_yolov8n")
    serving.requests.clear()
    assert fetch(serving, tmp_path, "--only", "hand_yolov8n")[0] == 0
    assert serving.requests == []


def test_no_kill_at_a_random_moment_leaves_a_wrong_file(hub: Callable[..., LocalHub], tmp_path: Path) -> None:
    serving, rng = hub(SCHNELL, shard_bytes=2 * CHUNK), Random(20)
    serving.rate = 4 * MIB
    total, killed, jobs = serving.total(), 0, 4
    while killed < KILLS:
        before, wait = serving.sent, rng.uniform(0, total / 6)
        process = command(serving, tmp_path, "--only", SCHNELL, "--jobs", str(jobs), program=IN_CHUNKS)
        while process.poll() is None and serving.sent - before < wait:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += 1
        for file in read_manifest()[SCHNELL].files:  # whatever is in its place is right at every moment
            path = tmp_path / "weights" / file.local
            assert not path.exists() or path.read_bytes() == serving.repositories[file.repository][file.path]
    serving.rate = 0
    status, output = fetch(serving, tmp_path, "--only", SCHNELL, program=IN_CHUNKS)
    assert status == 0, output
    require_installed(serving, tmp_path, SCHNELL)
    assert fetch(serving, tmp_path, "--only", SCHNELL, "--check")[0] == 0


def test_a_killed_download_is_resumed_where_the_last_chunk_was_written(
    hub: Callable[..., LocalHub], tmp_path: Path
) -> None:
    serving, file = hub(SCHNELL, shard_bytes=10 * CHUNK), TRANSFORMER[0]
    serving.rate = 8 * MIB
    process = command(serving, tmp_path, "--only", file.local, program=IN_CHUNKS)
    while max((path.stat().st_size for path in (tmp_path / "weights" / PARTIAL).glob("*")), default=0) < 2 * CHUNK:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    serving.rate = 0
    status, output = fetch(serving, tmp_path, "--only", file.local, program=IN_CHUNKS)
    assert status == 0, output
    first, second = [wanted for method, _, wanted in serving.requests if method == "GET"]
    resumed = int(second.removeprefix("bytes=").removesuffix("-"))
    assert first == "" and resumed >= 2 * CHUNK
    assert (tmp_path / "weights" / file.local).read_bytes() == serving.repositories[file.repository][file.path]


def test_a_connection_that_breaks_off_is_taken_up_where_it_ended(hub: Callable[..., LocalHub], tmp_path: Path) -> None:
    serving = hub(SCHNELL, shard_bytes=2 * CHUNK)
    serving.cut_after = {TRANSFORMER[0].path: CHUNK + CHUNK // 2}
    status, output = fetch(serving, tmp_path, "--only", TRANSFORMER[0].local, program=IN_CHUNKS)
    assert status == 0, output
    ranges = [wanted for method, _, wanted in serving.requests if method == "GET"]
    assert ranges == ["", f"bytes={CHUNK}-"]
    assert (tmp_path / "weights" / TRANSFORMER[0].local).read_bytes() == serving.repositories[
        TRANSFORMER[0].repository
    ][TRANSFORMER[0].path]


def test_what_has_the_wrong_checksum_is_never_installed(hub: Callable[..., LocalHub], tmp_path: Path) -> None:
    models = ("face_yolov8n", "face_yolov8s", "hand_yolov8n", "person_yolov8n-seg")
    serving, wanted = hub(*models), [part for model in models for part in ("--only", model)]
    files = serving.repositories["Bingsu/adetailer"]
    right = files["hand_yolov8n.pt"]
    serving.wrong = {
        "hand_yolov8n.pt": right[:-1] + bytes([right[-1] ^ 1]),
        "face_yolov8s.pt": files["face_yolov8s.pt"][: len(right) // 2],
        "person_yolov8n-seg.pt": b"<html>not here</html>".ljust(len(files["person_yolov8n-seg.pt"])),
    }
    status, output = fetch(serving, tmp_path, *wanted)
    assert status == 1 and "ok face_yolov8n.pt" in output
    for bad in serving.wrong:
        assert f"failed {bad}: " in output
        assert not (tmp_path / "weights" / bad).exists() and bad not in read_lock(tmp_path / "weights")
    serving.wrong = {}
    assert fetch(serving, tmp_path, *wanted)[0] == 0
    require_installed(serving, tmp_path, *models)


def test_a_file_that_is_not_what_its_name_says_is_not_installed(hub: Callable[..., LocalHub], tmp_path: Path) -> None:
    """The checksum is the hub's own, but the file is a page, or a pickle under the name of safetensors."""
    serving = hub(SCHNELL, "face_yolov8n")
    serving.repositories["Bingsu/adetailer"]["face_yolov8n.pt"] = b"<html>moved</html>"
    serving.repositories["black-forest-labs/FLUX.1-schnell"]["vae/diffusion_pytorch_model.safetensors"] = (
        b"\x80\x02}q\x00."
    )
    status, output = fetch(serving, tmp_path, "--only", "face_yolov8n", "--only", f"{SCHNELL}/vae")
    assert status == 1
    assert "face_yolov8n.pt: is damaged or not what torch saves" in output
    assert "is a pickle under the name of a safetensors file" in output
    assert not list((tmp_path / "weights").rglob("*.pt")) and not list((tmp_path / "weights").rglob("*.safetensors"))


def test_the_lock_says_which_bytes_are_wanted(hub: Callable[..., LocalHub], tmp_path: Path) -> None:
    serving, file = hub("face_yolov8n"), tmp_path / "weights" / "face_yolov8n.pt"
    fetch(serving, tmp_path, "--only", "face_yolov8n")
    serving.repositories["Bingsu/adetailer"]["face_yolov8n.pt"] = b"PK\x03\x04 another release"
    file.unlink()
    status, output = fetch(serving, tmp_path, "--only", "face_yolov8n")
    assert status == 1 and "the hub has another file than the lock" in output
    assert not file.exists()


def test_a_file_of_ones_own_is_neither_replaced_nor_taken_for_the_models(
    hub: Callable[..., LocalHub], tmp_path: Path
) -> None:
    serving, file = hub("face_yolov8n"), tmp_path / "weights" / "face_yolov8n.pt"
    file.parent.mkdir()
    file.write_bytes(b"PK mine")
    status, output = fetch(serving, tmp_path, "--only", "face_yolov8n")
    assert status == 1 and "another file of this name is there" in output and file.read_bytes() == b"PK mine"
    file.write_bytes(serving.repositories["Bingsu/adetailer"]["face_yolov8n.pt"])
    assert fetch(serving, tmp_path, "--only", "face_yolov8n")[0] == 0
    require_installed(serving, tmp_path, "face_yolov8n")
    assert not [request for request in serving.requests if request[:2] == ("GET", "face_yolov8n.pt")], (
        f"it was downloaded: {serving.requests}"
    )


def test_a_token_goes_only_to_gated_models_and_is_written_nowhere(hub: Callable[..., LocalHub], tmp_path: Path) -> None:
    serving, gated = hub(SCHNELL, "face_yolov8n"), read_manifest()[SCHNELL].repository
    serving.gated = frozenset({gated})
    wanted = ("--only", f"{SCHNELL}/vae", "--only", "face_yolov8n")
    status, output = fetch(serving, tmp_path, *wanted)
    assert status == 1 and f"{gated} is gated; accept its licence on its page, then give a token in HF_TOKEN" in output
    status, output = fetch(serving, tmp_path, *wanted, token=TOKEN)
    assert status == 0, output
    assert serving.tokens["Bingsu/adetailer"] == {""} and f"Bearer {TOKEN}" in serving.tokens[gated]
    assert TOKEN not in output
    assert all(TOKEN.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_download_is_not_led_to_another_host(hub: Callable[..., LocalHub], tmp_path: Path) -> None:
    """vLLM, CVE-2025-6242: redirects that were followed wherever they led."""
    serving = hub("face_yolov8n")
    serving.elsewhere = {"face_yolov8n.pt": "http://169.254.169.254/latest/meta-data"}
    status, output = fetch(serving, tmp_path, "--only", "face_yolov8n")
    assert status == 1 and "was redirected to http://169.254.169.254, which is not the hub" in output


def test_check_reads_every_byte_and_says_what_is_wrong(hub: Callable[..., LocalHub], tmp_path: Path) -> None:
    serving, weights = hub("face_yolov8n", "face_yolov8s", "hand_yolov8n", "ESRGAN_4x"), tmp_path / "weights"
    fetch(serving, tmp_path, "--only", "*_yolov8?", "--only", "ESRGAN_4x")
    content = bytearray((weights / "face_yolov8n.pt").read_bytes())
    content[50_000] ^= 1
    (weights / "face_yolov8n.pt").write_bytes(content)
    (weights / "face_yolov8s.pt").write_bytes(content[:-1])
    (weights / "hand_yolov8n.pt").unlink()
    status, output = fetch(serving, tmp_path, "--check", "--only", "*_yolov8?", "--only", "ESRGAN_4x")
    assert status == 1
    assert "failed face_yolov8n.pt: has the right size and other content" in output
    assert f"failed face_yolov8s.pt: has {len(content) - 1:,} bytes in place of {len(content):,}" in output
    assert "failed hand_yolov8n.pt: is missing; scripts/fetch-weights --only hand_yolov8n downloads it" in output
    assert "1 of 4 files are right" in output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--only", "FLUX.1-deev"), "is no model of weights/manifest.json (did you mean 'FLUX.1-dev'?)"),
        (("--jobs", "0"), "--jobs must be at least 1"),
        (("--trust", "nowhere.pt"), "nowhere.pt: there is no such file"),
    ],
)
def test_a_wrong_command_is_told_in_a_line(
    hub: Callable[..., LocalHub], tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    status, output = fetch(hub("face_yolov8n"), tmp_path, *options)
    assert status == 2 and says in output


def test_a_damaged_lock_is_told(hub: Callable[..., LocalHub], tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "lock.json").write_text(json.dumps({"a.pt": {"size": 1}}))
    status, output = fetch(hub("face_yolov8n"), tmp_path, "--only", "face_yolov8n")
    assert status == 2 and "lock.json of the weights is damaged" in output
