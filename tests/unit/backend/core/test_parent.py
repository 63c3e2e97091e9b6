"""A process that ends with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from backend.core.parent import LOOK_SECONDS
from backend.core.settings import ROOT

PARENT = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", sys.argv[1]]).pid, flush=True)
time.sleep(60)
"""
CHILD = "import time; from backend.core.parent import end_with_parent; end_with_parent(); print('ready', flush=True); time.sleep(60)"


def test_it_ends_when_its_parent_is_killed_and_not_before() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = int(min(parent.stdout.readline() for _ in range(2)))  # digits come before letters
    time.sleep(1.5 * LOOK_SECONDS)
    assert Path(f"/proc/{child}").exists()
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()
