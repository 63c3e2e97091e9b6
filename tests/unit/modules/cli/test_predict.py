"""Where the files of ``scripts/predict`` go: no file is ever replaced, also by several commands at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from modules.cli.predict import deliver_numbered


def made(folder: Path, *contents: str) -> list[Path]:
    """The files of one prediction."""
    folder.mkdir()
    files = [folder / f"out-{index}.webp" for index in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_text(content)
    return files


def test_numbers_begin_at_0_and_go_on_after_the_highest_of_any_format(tmp_path: Path) -> None:
    output, files = tmp_path / "output", made(tmp_path / "made", "a", "b")
    output.mkdir()
    assert [path.name for path in deliver_numbered(files, output)] == ["out-0.webp", "out-1.webp"]
    (output / "out-7.png").write_text("another")
    (output / "out-x.png").write_text("a word")
    assert [path.name for path in deliver_numbered(files, output)] == ["out-8.webp", "out-9.webp"]
    assert (output / "out-0.webp").read_text() == "a" == (output / "out-8.webp").read_text()


def test_commands_that_write_at_once_take_different_numbers(tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    predictions = [made(tmp_path / str(index), f"{index}a", f"{index}b") for index in range(20)]
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda files: deliver_numbered(files, output), predictions))
    assert len({path for paths in written for path in paths}) == 40 == len(list(output.iterdir()))
    for index, (first, second) in enumerate(written):
        assert (first.read_text(), second.read_text()) == (f"{index}a", f"{index}b")
        assert int(second.stem.removeprefix("out-")) == int(first.stem.removeprefix("out-")) + 1


def test_the_pictures_before_adetailer_have_the_numbers_of_theirs(tmp_path: Path) -> None:
    output, files = tmp_path / "output", made(tmp_path / "made", "a", "b")
    output.mkdir()
    before = [tmp_path / f"before-{index}.png" for index in range(2)]
    for file in before:
        file.write_text(file.name)
    (output / "out-4-before.png").write_text("kept")
    assert [path.name for path in deliver_numbered(files, output, before)] == ["out-5.webp", "out-6.webp"]
    assert (output / "out-6-before.png").read_text() == "before-1.png"
    assert (output / "out-4-before.png").read_text() == "kept"
