"""A file ends a task of another process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from backend.core.cancel_file import FILE, canceled_by_file


async def wait(folder: Path | None, seconds: float) -> None:
    async with canceled_by_file(folder):
        await asyncio.sleep(seconds)


def test_a_task_is_canceled_when_the_file_appears(tmp_path: Path) -> None:
    async def work() -> None:
        task = asyncio.create_task(wait(tmp_path, 50))
        await asyncio.sleep(0.1)
        assert not task.done()
        (tmp_path / FILE).touch()
        await asyncio.wait([task], timeout=5)
        assert task.cancelled()

    asyncio.run(work())


def test_a_task_is_canceled_when_the_file_was_there_before(tmp_path: Path) -> None:
    (tmp_path / FILE).touch()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(wait(tmp_path, 50))


def test_a_file_that_appears_after_the_block_cancels_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        await wait(tmp_path, 0)
        (tmp_path / FILE).touch()
        await asyncio.sleep(0.1)

    asyncio.run(work())


@pytest.mark.parametrize("folder", [None, Path("/nowhere")])
def test_without_a_file_a_task_comes_to_its_end(folder: Path | None) -> None:
    asyncio.run(wait(folder, 0.1))
