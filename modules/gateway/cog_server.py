"""Cog's server as a child process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from backend.api.openapi import openapi
from backend.core.files import ROOT, write_atomic
from backend.core.heartbeat import silent_seconds

if TYPE_CHECKING:
    from modules.input_checks import Installed

HEALTH_SECONDS = 12.0
"""Cog's server gives its worker 10 seconds for an answer."""
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class CogOptions:
    """How Cog's server is started: ``slots`` predictions at a time; files go to ``upload_url`` unless it is empty."""

    predictor: Path
    slots: int
    upload_url: str = ""


class CogServer:
    """One run of Cog's server with its worker, in a process group of their own and a folder of their own.

    The folder is its working directory, because Cog's server looks there for the schema, and its TMPDIR.
    """

    def __init__(self, process: asyncio.subprocess.Process, url: str, folder: Path) -> None:
        self.process, self.url, self.folder = process, url, folder

    @classmethod
    async def start(cls, options: CogOptions, folder: Path) -> CogServer:
        schema = folder / ".cog" / "openapi_schema.json"
        schema.parent.mkdir(parents=True)
        write_atomic(schema, json.dumps(openapi(options.predictor.read_text())))
        port = _free_port()
        upload = ["--upload-url", options.upload_url] if options.upload_url else []
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "modules.gateway.cog_process",
            str(os.getpid()),
            "--host",
            "127.0.0.1",
            *upload,
            cwd=folder,
            env=_environment(options, folder, port),
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches this process alone, which ends the other in order
        )
        return cls(process, f"http://127.0.0.1:{port}", folder)

    @property
    def ended(self) -> bool:
        return self.process.returncode is not None

    async def health(self, session: aiohttp.ClientSession) -> dict[str, Any]:
        """The answer to ``/health-check``; raises ``aiohttp.ClientError`` or ``TimeoutError`` where there is none."""
        timeout = aiohttp.ClientTimeout(total=HEALTH_SECONDS)
        async with session.get(f"{self.url}/health-check", timeout=timeout) as answer:
            found: dict[str, Any] = await answer.json()
            return found

    def installed(self) -> Installed | None:
        """What the worker has written about itself; None for a predictor that writes nothing."""
        from modules.input_checks import INSTALLED_FILE, Installed

        for file in self.folder.glob(f"*/{INSTALLED_FILE}"):
            return Installed.from_json(file.read_bytes())
        return None

    def silent_seconds(self) -> float | None:
        """Seconds since the worker's last progress; None where it computes nothing, or does not tell."""
        return silent_seconds(self.folder.iterdir())

    async def stop(self) -> None:
        """Ends it in order, and kills what is left of its group after ``STOP_SECONDS``."""
        with suppress(ProcessLookupError, TimeoutError):
            self.process.terminate()
            await asyncio.wait_for(self.process.wait(), STOP_SECONDS)
        await self.kill()

    async def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.wait()


def _environment(options: CogOptions, folder: Path, port: int) -> Mapping[str, str]:
    inherited = os.environ
    return {
        "MALLOC_ARENA_MAX": "1",  # else glibc keeps freed memory for the thread that computes (bench.robustness.soak)
        **inherited,
        "PORT": str(port),
        "TMPDIR": str(folder),
        "COG_PREDICT_TYPE_STUB": f"{options.predictor}:Predictor",
        "COG_MAX_CONCURRENCY": str(options.slots),
        # the server starts its worker as "python"
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), inherited.get("PYTHONPATH")])),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
