"""Incidents of other projects that must not happen here.

Those about malicious files are in ``security/test_malicious_files.py``, those about downloads in
``unit/modules/cli/test_fetch_weights.py``; the rest is here.
"""

from __future__ import annotations

import ast
import http.server
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.background import serve_in_background
from support.processes import Server

from backend.core.errors import InputError, WeightsError
from backend.core.settings import ROOT, Settings
from modules.app.service import Service, start
from modules.extension_optimizer import EXTENSIONS

EMBEDDED = ROOT / "weights" / "embedded"
TESTS: Mapping[str, tuple[str, ...]] = {
    "CVE-2024-12029": ("test_invokeai_cve_2024_12029_a_pickle_under_any_name_does_not_run",),
    "CVE-2025-32434": (
        "test_torch_weights_only_bypasses_a_torch_that_has_none",
        "test_torch_weights_only_bypasses_no_detector_without_a_pinned_checksum",
    ),
    "ultralytics 8.3.41": (
        "test_ultralytics_8_3_41_versions_that_carried_a_miner_are_not_installed",
        "test_ultralytics_8_3_41_a_byte_changed_in_a_pinned_file_is_refused",
        "test_ultralytics_8_3_41_its_import_starts_no_process_and_connects_to_nothing",
    ),
    "CVE-2026-56671": (
        "test_comfyui_cve_2026_56671_no_path_that_a_client_names_is_opened",
        "test_comfyui_cve_2026_56671_names_of_files_come_from_us",
    ),
    "CVE-2026-44513": ("test_diffusers_cve_2026_44513_a_planted_pipeline_is_not_imported",),
    "CVE-2025-6242": (
        "test_vllm_cve_2025_6242_what_an_internal_address_says_does_not_reach_the_client",
        "test_vllm_cve_2025_6242_the_package_itself_opens_no_address",
        "test_a_download_is_not_led_to_another_host",
    ),
    "CVE-2026-40192": (
        "test_pillow_cve_2026_40192_only_known_formats_are_decoded",
        "test_too_many_pixels_are_refused_by_the_header",
        "test_a_server_refuses_harmful_inputs_and_answers_the_next_request",
    ),
    "tar.extractall": (
        "test_tar_extractall_no_archive_is_ever_unpacked",
        "test_no_kill_at_a_random_moment_leaves_a_wrong_file",
    ),
    "safetensors: 100 MB header cap": (
        "test_safetensors_header_is_refused",
        "test_safetensors_of_another_architecture_are_refused",
        "test_safetensors_that_are_not_numbers_stop_set_up",
    ),
}
"""The tests that stand for each incident."""


def test_every_incident_has_its_tests() -> None:
    there = set(
        re.findall(
            r"^\s*def (test_\w+)",
            "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py")),
            re.MULTILINE,
        )
    )
    assert [name for names in TESTS.values() for name in names if name not in there] == []


def test_ultralytics_8_3_41_its_import_starts_no_process_and_connects_to_nothing(tmp_path: Path) -> None:
    """By Python's own audit events, in a process that imports ultralytics as the package does and builds the
    detector."""
    code = """
import sys
from pathlib import Path
seen = []
names = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request")
from modules.detection.yolo import load_detector_network, offline_ultralytics
sys.addaudithook(lambda event, arguments: seen.append((event, str(arguments)[:100])) if event in names else None)
offline_ultralytics(Path(sys.argv[1]))
load_detector_network(Path("weights/embedded/face_detector.safetensors"))
print(seen)
"""
    process = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "ultralytics")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert process.stdout == "[]\n"


def test_comfyui_cve_2026_56671_names_of_files_come_from_us(service: Service) -> None:
    inputs = {
        "prompt": "../../evil \x00 name",
        "megapixels": "0.25",
        "num_inference_steps": 1,
        "adetailer": False,
        "scale": 1.0,
    }
    (file,) = service.predict(inputs, lambda name, value: None)
    assert file.name == "out-0.webp" and file.resolve().is_relative_to(service.outputs.resolve())


@contextmanager
def internal_service() -> Iterator[tuple[str, list[str]]]:
    """A service that only this machine should reach, with a secret; ``/away`` leads to it. Gives its address and the
    paths asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302 if self.path == "/away" else 200)
            self.send_header("Location", "/secret")
            self.end_headers()
            self.wfile.write(b"internal secret 4711")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        serve_in_background(running)
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()


@pytest.mark.parametrize("path", ["/secret", "/away"])
def test_vllm_cve_2025_6242_what_an_internal_address_says_does_not_reach_the_client(server: Server, path: str) -> None:
    with internal_service() as (url, asked):
        response = server.predict({"prompt": "a fox", "image": url + path})
    assert response.status_code == 422 and "private network" in response.json()["detail"][0]["msg"]
    assert "4711" not in response.text and asked == []


def test_vllm_cve_2025_6242_the_package_itself_opens_no_address(service: Service) -> None:
    with internal_service() as (url, asked):
        for value in (Path(url), Path(f"{url}/x.png")):
            with pytest.raises(InputError, match="^image: "):
                service.predict({"prompt": "a fox", "image": value}, lambda name, value: None)
    assert asked == []


def test_tar_extractall_no_archive_is_ever_unpacked() -> None:
    """Of the tar of a LoRA one member is read, and the list of what torch saved; nothing is unpacked. Nor does anything
    read a pickle, but Ray's workers those of their own rows."""
    forbidden = {
        "tarfile",
        "zipfile",
        "unpack_archive",
        "extractall",
        "pickle.load",
        "pickle.loads",
        "dill",
        "joblib",
        "shelve",
        "marshal",
    }
    own = [
        ROOT / "predict.py",
        *(
            path
            for folder in ("backend", "modules", "bench", "training", "examples")
            for path in (ROOT / folder).rglob("*.py")
            if path.name != "ray_data.py"
        ),
    ]
    found = []
    for path in own:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [node.attr, ast.unparse(node)] if isinstance(node, ast.Attribute) else []
            found += [f"{path.name}: {name}" for name in names if name in forbidden]
    assert set(found) == {"tensor_pickle.py: zipfile", "archive.py: tarfile"}


@pytest.mark.parametrize("component", ["transformer", "vae"])
def test_safetensors_that_are_not_numbers_stop_set_up(tmp_path: Path, component: str) -> None:
    """Noticed by the picture of the warm-up, and not by users as a black one."""
    shutil.copytree(EMBEDDED, tmp_path / "embedded")
    (file,) = (tmp_path / "embedded" / "flux" / component).glob("*.safetensors")
    tensors = load_file(file)
    name = next(name for name in tensors if "out" in name and name.endswith("weight"))
    save_file({**tensors, name: torch.full_like(tensors[name], float("nan"))}, file)
    with pytest.raises(WeightsError, match="not a number; a file of the model is damaged"):
        start(replace(Settings(), model="embedded", weights_dir=str(tmp_path), disabled_extensions=tuple(EXTENSIONS)))
