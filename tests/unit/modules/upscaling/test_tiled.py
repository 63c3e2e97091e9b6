"""The upscaler: every size and scale, no seams, bounded tiles, and what it says about files that are not upscalers."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save, save_file
from spandrel.architectures.Compact import Compact
from spandrel.architectures.RCAN import RCAN
from spandrel.architectures.SAFMN import SAFMN
from support.upscaling import UNTILED, largest_difference, picture

from backend.core.errors import WeightsError
from backend.core.settings import ROOT
from backend.planning.upscale_tiles import tile_spans
from modules.upscaling.tiled import (
    Upscaler,
    UpscalerNetwork,
    blend_weights,
    load_upscaler_network,
    pass_sizes,
    receptive_reach,
)
from training.models.upscaler import build, export

EMBEDDED = ROOT / "weights" / "embedded" / "upscaler.safetensors"


@cache
def network() -> UpscalerNetwork:
    return load_upscaler_network(EMBEDDED)


@cache
def untiled(width: int, height: int, scale: float) -> Image.Image:
    return Upscaler(network(), UNTILED).upscale(picture(width, height), scale)


class Harmful:
    """A pickle that does something when it is read: it sets ``ran``."""

    ran: ClassVar[bool] = False

    def __reduce__(self) -> tuple[object, ...]:
        return setattr, (Harmful, "ran", True)


def half_a_file() -> bytes:
    whole = save(export(network().network))
    return whole[: len(whole) // 2]


class TestTiles:
    @given(size=st.integers(1, 3000), tile=st.integers(1, 600), overlap=st.integers(0, 40))
    def test_cover_the_picture_and_share_the_overlap(self, size: int, tile: int, overlap: int) -> None:
        overlap = min(overlap, tile // 2)
        spans = tile_spans(size, tile, overlap)
        assert spans[0][0] == 0 and spans[-1][1] == size
        assert len({stop - start for start, stop in spans}) == 1 and spans[0][1] <= tile
        assert all(before[0] < after[0] and before[1] - after[0] >= overlap for before, after in pairwise(spans))

    @given(size=st.integers(1, 600), tile=st.integers(8, 200), overlap=st.integers(0, 20), factor=st.integers(1, 4))
    def test_weigh_every_pixel_once(self, size: int, tile: int, overlap: int, factor: int) -> None:
        spans = [(factor * start, factor * stop) for start, stop in tile_spans(size, tile, min(overlap, tile // 2))]
        total = torch.zeros(size * factor)
        for (start, stop), weight in zip(spans, blend_weights(spans, factor * overlap)):
            assert (weight > 0).all()
            total[start:stop] += weight
        torch.testing.assert_close(total, torch.ones(size * factor))

    def test_are_of_equal_size_rather_than_one_large_and_one_small(self) -> None:
        assert tile_spans(256, 192, 8) == [(0, 132), (124, 256)]

    def test_the_network_looks_no_farther_than_its_convolutions(self) -> None:
        reach = receptive_reach(network())
        image = torch.rand(1, 3, 1, 2 * reach + 9)
        changed = image.clone()
        changed[..., 0] += 1
        with torch.inference_mode():
            same = network()(image) == network()(changed)
        assert same[..., 4 * (reach + 1) :].all() and not same.all()


class TestSeams:
    @pytest.mark.parametrize("size", [(1, 1), (40, 30), (203, 67)])
    def test_a_picture_is_what_one_plain_pass_makes_of_it_borders_included(self, size: tuple[int, int]) -> None:
        image = picture(*size)
        with torch.inference_mode():
            plain = network()(torch.tensor(np.asarray(image)).permute(2, 0, 1)[None] / 255)[0]
        expected = Image.fromarray(plain.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy())
        assert largest_difference(Upscaler(network(), UNTILED).upscale(image, 4), expected) == 0
        assert largest_difference(Upscaler(network(), 64).upscale(image, 4), expected) <= 1

    @pytest.mark.parametrize(
        ("size", "side", "scale"),
        [
            ((203, 67), 64, 1.3),
            ((203, 67), 64, 4),
            ((203, 67), 128, 2),
            ((203, 67), 128, 4),
            ((203, 67), 192, 3.7),
            ((83, 31), 64, 8),
            ((83, 31), 192, 8),
        ],
    )
    def test_tiles_give_what_the_whole_picture_gives(self, size: tuple[int, int], side: int, scale: float) -> None:
        tiled = Upscaler(network(), side).upscale(picture(*size), scale)
        assert largest_difference(tiled, untiled(*size, scale)) <= 1

    @pytest.mark.parametrize("size", [(1, 1), (5, 3), (63, 9), (64, 64), (65, 33)])
    def test_also_for_pictures_as_small_as_a_tile_and_its_border(self, size: tuple[int, int]) -> None:
        tiled = Upscaler(network(), 64).upscale(picture(*size), 3.7)
        assert largest_difference(tiled, untiled(*size, 3.7)) <= 1

    def test_the_context_is_what_prevents_them(self) -> None:
        bare = Upscaler(network(), 64)
        bare.context = 0
        assert largest_difference(bare.upscale(picture(203, 67), 4), untiled(203, 67, 4)) > 4

    def test_the_network_never_sees_more_than_a_tile_and_its_context(self) -> None:
        seen = []
        upscaler = Upscaler(network(), 64)
        handle = network().register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
        upscaler.upscale(picture(203, 67), 2)
        handle.remove()
        assert max(max(sides) for sides in seen) <= 64 + 2 * upscaler.context


class TestSizes:
    @given(
        width=st.integers(1, 2000),
        height=st.integers(1, 2000),
        scale=st.floats(1, 8),
        factor=st.sampled_from([2, 3, 4]),
    )
    def test_every_run_is_followed_by_a_reduction(self, width: int, height: int, scale: float, factor: int) -> None:
        sizes = pass_sizes((width, height), scale, factor)
        assert sizes[-1] == (max(1, round(width * scale)), max(1, round(height * scale)))
        for (before_x, before_y), (after_x, after_y) in zip([(width, height), *sizes], sizes):
            assert after_x <= before_x * factor and after_y <= before_y * factor

    @pytest.mark.parametrize(("scale", "runs"), [(1, 1), (1.3, 1), (4, 1), (4.1, 2), (8, 2)])
    def test_the_network_runs_once_and_twice_only_beyond_its_factor(self, scale: float, runs: int) -> None:
        assert len(pass_sizes((256, 256), scale, 4)) == runs

    @pytest.mark.parametrize("scale", [1, 1.3, 2.5, 8])
    def test_the_picture_is_exactly_as_large_as_asked(self, scale: float) -> None:
        assert Upscaler(network(), 64).upscale(picture(17, 11), scale).size == (round(17 * scale), round(11 * scale))

    def test_it_still_shows_the_same(self) -> None:
        small = picture(203, 67).reduce(3).resize((96, 40), Image.Resampling.BICUBIC)
        back = Upscaler(UpscalerNetwork(build(), 4), 64).upscale(small, 4).resize(small.size, Image.Resampling.BOX)
        assert np.abs(np.asarray(back, np.int16) - np.asarray(small, np.int16)).mean() < 12


class TestModes:
    def test_transparency_is_kept(self) -> None:
        image = picture(40, 30).copy()
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        result = Upscaler(network(), 64).upscale(image, 2)
        assert result.mode == "RGBA"
        assert (
            largest_difference(result.getchannel("A"), image.getchannel("A").resize((80, 60), Image.Resampling.LANCZOS))
            == 0
        )

    @pytest.mark.parametrize("mode", ["L", "P", "CMYK"])
    def test_every_opaque_picture_becomes_rgb(self, mode: str) -> None:
        assert Upscaler(network(), 64).upscale(picture(16, 16).convert(mode), 2).mode == "RGB"

    @pytest.mark.parametrize(("dtype", "largest", "mean"), [(torch.float16, 1, 0.1), (torch.bfloat16, 8, 1)])
    def test_a_network_in_half_precision_gives_nearly_the_same(
        self, dtype: torch.dtype, largest: int, mean: float
    ) -> None:
        half = load_upscaler_network(EMBEDDED, dtype)
        assert {parameter.dtype for parameter in half.parameters()} == {dtype}
        result = Upscaler(half, 64).upscale(picture(40, 30), 4)
        assert largest_difference(result, untiled(40, 30, 4)) <= largest
        assert np.abs(np.asarray(result, np.int16) - np.asarray(untiled(40, 30, 4), np.int16)).mean() < mean

    def test_numbers_that_half_precision_cannot_hold_are_an_error_and_no_black_picture(self) -> None:
        loud = deepcopy(network()).half()
        next(loud.parameters()).data.fill_(60_000)
        with pytest.raises(
            WeightsError,
            match=r"^upscaler: its numbers exceed the range of torch.float16; set 'dtype' to \"bfloat16\"",
        ):
            Upscaler(loud, 64).upscale(picture(40, 30), 4)


def test_progress_counts_every_tile_of_every_run() -> None:
    told: list[tuple[int, int]] = []
    Upscaler(network(), 32).upscale(picture(40, 30), 8, lambda done, total: told.append((done, total)))
    total = told[0][1]
    assert told == [(index + 1, total) for index in range(total)] and total > 4


class TestLoading:
    def test_a_file_gives_back_the_network_in_float32(self, tmp_path: Path) -> None:
        save_file(export(network().network), tmp_path / "a.safetensors")
        loaded = load_upscaler_network(tmp_path / "a.safetensors")
        assert loaded.factor == 4
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
        for name, value in network().state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[name], value.half().float(), rtol=0, atol=0)

    def test_an_architecture_that_overflows_in_half_precision_is_not_asked_for_it(self, tmp_path: Path) -> None:
        save_file(RCAN(scale=2, n_resgroups=1, n_resblocks=1, n_feats=16).state_dict(), tmp_path / "a.safetensors")
        loaded = load_upscaler_network(tmp_path / "a.safetensors", torch.float16)
        assert loaded.factor == 2 and {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}

    def test_a_pth_file_too(self, tmp_path: Path) -> None:
        torch.save({"params_ema": export(network().network)}, tmp_path / "a.pth")
        assert load_upscaler_network(tmp_path / "a.pth").factor == 4

    @pytest.mark.parametrize(
        ("name", "write", "says"),
        [
            ("gone.safetensors", lambda path: None, "is missing"),
            ("cut.safetensors", lambda path: path.write_bytes(half_a_file()), "is damaged"),
            ("empty.safetensors", lambda path: path.write_bytes(b""), "is damaged"),
            ("pickle.safetensors", lambda path: torch.save(export(network().network), path), "is a pickle"),
            ("text.pth", lambda path: path.write_text("<html>not found</html>"), "is damaged"),
            ("empty.pth", lambda path: path.write_bytes(b""), "is damaged"),
            ("list.pth", lambda path: torch.save([1, 2], path), "is damaged"),
            ("harmful.pth", lambda path: path.write_bytes(pickle.dumps(Harmful())), "is damaged"),
            ("other.safetensors", lambda path: save_file({"weight": torch.zeros(2)}, path), "holds no upscaler"),
            (
                "shape.safetensors",
                lambda path: save_file({**export(network().network), "conv_body.weight": torch.zeros(2)}, path),
                "is damaged",
            ),
            (
                "channels.pth",
                lambda path: torch.save({**Compact(num_feat=8).state_dict(), "body.34.bias": torch.zeros(17)}, path),
                "is damaged",
            ),
            (
                "nothing.pth",
                lambda path: torch.save(
                    {**SAFMN(dim=8, n_blocks=1).state_dict(), "to_feat.weight": torch.zeros(0, 0, 0, 0)}, path
                ),
                "is damaged",
            ),
            ("program.pt", lambda path: torch.jit.save(torch.jit.script(torch.nn.Conv2d(3, 3, 1)), path), "is damaged"),
        ],
    )
    def test_other_files_are_refused_in_one_line(
        self, tmp_path: Path, name: str, write: Callable[[Path], object], says: str
    ) -> None:
        write(tmp_path / name)
        with pytest.raises(WeightsError, match=says) as error:
            load_upscaler_network(tmp_path / name)
        message = str(error.value)
        assert message.startswith(f"{name}: ") and "\n" not in message and str(tmp_path) not in message
        assert not Harmful.ran


def test_the_embedded_upscaler_beats_bicubic_by_two_decibels() -> None:
    from training.models.upscaler import draw_pool, psnr

    gains = []
    for sharp in draw_pool(20_002, 4):
        sharp = sharp.crop((256, 256, 768, 768))
        small = sharp.resize((128, 128), Image.Resampling.BICUBIC)
        ours = Upscaler(network(), 192).upscale(small, 4)
        gains.append(psnr(ours, sharp) - psnr(small.resize(sharp.size, Image.Resampling.BICUBIC), sharp))
    assert sum(gains) / len(gains) > 2


def test_the_embedded_upscaler_is_as_good_at_the_border_of_a_picture() -> None:
    """The same pixels at the border of a picture and inside of a larger one."""
    from training.models.upscaler import draw_pool, psnr

    (sharp,) = draw_pool(20_003, 1)
    small = sharp.resize((256, 256), Image.Resampling.BICUBIC)
    inside = Upscaler(network(), 192).upscale(small, 4).crop((256, 256, 768, 768))
    alone = Upscaler(network(), 192).upscale(small.crop((64, 64, 192, 192)), 4)
    wanted = sharp.crop((256, 256, 768, 768))
    assert psnr(alone, wanted) > psnr(inside, wanted) - 0.5
