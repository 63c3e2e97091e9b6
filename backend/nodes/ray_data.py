"""A table on several processes or machines: Ray Data runs the node in workers, one per GPU, or one per N cores.

Workers only make pictures; the caller writes them, so workers need no access to its folder, and a row that was made
twice because its worker was lost is delivered once. Ray restarts a lost worker and gives its row to a free one.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from backend.core.errors import SettingsError
from backend.core.scratch import hold
from backend.core.settings import ROOT
from backend.nodes.images import ImageGenerateNode, Outcome
from backend.nodes.table import Row

LOCAL = "local"
"""Instead of a cluster's address: Ray on this machine, for as long as the table takes."""


class Worker:
    """One process with its own models. ``scratch`` is the folder for its temporary files."""

    def __init__(self, build: Callable[[], ImageGenerateNode], scratch: Path) -> None:
        hold(scratch)  # on another machine this makes it
        tempfile.tempdir = str(scratch)
        self.node = build()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"outcome": [pickle.dumps(self.node.generate(pickle.loads(row))) for row in batch["row"]]}


def generate_with_ray(
    rows: Sequence[Row], build: Callable[[], ImageGenerateNode], address: str, cores: int, scratch: Path
) -> Iterator[Outcome]:
    """The outcomes of all rows, in the order in which they are ready.

    ``build`` makes a worker's node; ``address`` is a cluster's or ``"local"``; a worker takes ``cores`` cores where the
    cluster has no GPU. On other machines the package must be in the same folder as here. Raises
    :class:`SettingsError` when Ray is not installed, does not answer, or has too few cores for one worker.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise SettingsError("--ray: Ray is not installed; run .venv/bin/pip install -r requirements-ray.txt") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    local = {"include_dashboard": False} if address == LOCAL else {"address": address}
    try:
        ray.init(**local, logging_level="ERROR", log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    except Exception as error:  # Ray raises plain Exceptions too, when its processes are slow to start
        raise SettingsError(
            f"--ray: Ray does not start, or no cluster answers at '{address}': {str(error).partition(chr(10))[0]}"
        ) from error
    try:
        there = ray.cluster_resources()
        gpus, workers = int(there.get("GPU", 0)), int(there.get("CPU", 0) // cores)
        if not gpus and not workers:
            raise SettingsError(
                f"--ray-cores: {cores} is more than the {there.get('CPU', 0):.0f} available cores; lower it"
            )
        ray.data.DataContext.get_current().enable_progress_bars = False
        share = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": cores}
        pool = ray.data.ActorPoolStrategy(size=gpus or workers)
        table = ray.data.from_items([{"row": pickle.dumps(row)} for row in rows], override_num_blocks=len(rows))
        made = table.map_batches(Worker, fn_constructor_args=(build, scratch), batch_size=1, compute=pool, **share)
        for batch in made.iter_batches(batch_size=1, prefetch_batches=0):
            yield from (pickle.loads(outcome) for outcome in batch["outcome"])
    finally:
        ray.shutdown()
