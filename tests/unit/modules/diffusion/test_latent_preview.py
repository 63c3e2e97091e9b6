"""Small pictures of latents: the map back to colours, and the finished picture seen from a step."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from modules.app.service import Service
from modules.diffusion.latent_preview import FinishedEstimate, LatentPreview, sample_pictures
from modules.request.image_request import ImageRequest


def test_the_map_of_a_linear_autoencoder_is_found_exactly() -> None:
    mixing = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))

    def encode(images: list[Image.Image]) -> torch.Tensor:
        pixels = torch.stack(
            [torch.from_numpy(np.array(image.resize((8, 8), Image.Resampling.BOX))) for image in images]
        )
        return torch.einsum("cp,nhwp->nchw", mixing, pixels / 127.5 - 1) + 0.3

    preview = LatentPreview.fitted(encode, 64)
    (red,) = preview.pictures(encode([Image.new("RGB", (64, 64), (200, 10, 30))]))
    assert red.size == (8, 8)
    assert np.abs(np.asarray(red, int) - (200, 10, 30)).max() <= 1


def test_the_embedded_model_is_seen_before_it_has_finished(service: Service) -> None:
    preview = service.latent_preview()
    seen: list[Image.Image] = []
    request = ImageRequest("a man with a blue hat", 256, 256, seed=7, num_inference_steps=4)
    batch = service.pipeline.run(request, latent_sink=lambda latents: seen.extend(preview.pictures(latents())))
    finished = batch.pictures[0].image.resize(seen[0].size, Image.Resampling.BOX)
    errors = [np.abs(np.asarray(one, float) - np.asarray(finished, float)).mean() for one in seen]
    assert len(seen) == request.num_inference_steps
    assert errors[-1] < 30 and errors[1] < 0.5 * errors[0]  # the first still has the noise


def test_a_straight_line_is_followed_to_its_end() -> None:
    sigmas, start, noise = torch.tensor([1.0, 0.6, 0.2, 0.0]), torch.tensor([5.0, -1.0]), torch.tensor([0.1, 2.0])
    at = [torch.lerp(start, noise, sigma) for sigma in sigmas]
    estimate = FinishedEstimate(straight=True, before=at[0])
    assert torch.allclose(estimate.after_step(at[1], sigmas, 1)(), start)
    curved = FinishedEstimate(straight=False, before=at[0])
    assert torch.equal(curved.after_step(at[1], sigmas, 1)(), at[1])


def test_the_samples_have_all_colours() -> None:
    pixels = np.concatenate([np.asarray(image).reshape(-1, 3) for image in sample_pictures(64)])
    assert pixels.min() < 40 and pixels.max() > 215 and (pixels.std(axis=0) > 40).all()
