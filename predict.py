"""The package as Cog sees it: the inputs with their ranges, and nothing else.

Every ``Input`` holds literals only, because ``cog build`` and ``backend/api/input_schema.py`` read this file without
running it.
"""

from typing import Optional

from cog import BasePredictor, Input, Path, Secret


class Predictor(BasePredictor):
    """Flux (or Z-Image, SDXL, SD 1.5) generates pictures, ADetailer repaints their faces, ESRGAN upscales them."""

    def setup(self) -> None:
        """Reads the settings, loads the models and warms them up."""
        from backend.core.settings import load_settings
        from modules.app.prediction_queue import PredictionQueue
        from modules.app.service import start_process

        self.queue = PredictionQueue(lambda: start_process(load_settings(), served=True))
        self.queue.service.uploads.receive_from_cog()

    async def predict(
        self,
        prompt: str = Input(description="What the picture shows, in words.", min_length=1, max_length=20000),
        negative_prompt: str = Input(
            default="",
            max_length=20000,
            description="What the picture should not show. For SDXL, SD 1.5, and the base models of Z-Image and FLUX.2 klein.",
        ),
        aspect_ratio: Optional[str] = Input(
            default=None,
            choices=[
                "1:1",
                "16:9",
                "21:9",
                "3:2",
                "2:3",
                "4:5",
                "5:4",
                "3:4",
                "4:3",
                "9:16",
                "9:21",
                "match_input_image",
                "custom",
            ],
            description="Shape of the picture. With custom, width and height decide; match_input_image is the shape of input_image, or of the first of images. Not used when an image is given: the picture then has the shape of the image. Left out: 1:1; match_input_image with FLUX.1 Kontext.",
        ),
        width: Optional[int] = Input(
            default=None,
            ge=256,
            le=1440,
            description="Width in pixels before scale is applied; only with aspect_ratio custom. A multiple of 16.",
        ),
        height: Optional[int] = Input(
            default=None,
            ge=256,
            le=1440,
            description="Height in pixels before scale is applied; only with aspect_ratio custom. A multiple of 16.",
        ),
        megapixels: Optional[str] = Input(
            default=None,
            choices=["1", "0.25", "0.5", "2", "4", "match_input"],
            description="Area of the generated picture: 1 is the native area of the model, 0.25 a quarter of it, match_input that of the given picture, at most 1440 pixels a side. 0.5, 2 and 4 are for FLUX.2 klein. Left out: 1.",
        ),
        output_megapixels: Optional[str] = Input(
            default=None,
            choices=["0.25", "0.5", "1", "2", "4"],
            description="Another name of megapixels, as hosted FLUX.2 klein has it.",
        ),
        model: Optional[str] = Input(
            default=None,
            choices=["dev", "schnell"],
            description="The variant of FLUX.1 that a fine-tune of a host draws with. Here it must be the one that is installed; leave it out.",
        ),
        num_outputs: int = Input(default=1, ge=1, le=4, description="Number of pictures. Picture i uses seed + i."),
        num_inference_steps: Optional[int] = Input(
            default=None,
            ge=1,
            le=50,
            description="Denoising steps. More is slower and finer. Left out: 28 (FLUX.1-dev), 4 (schnell, FLUX.2 klein), 8 (Z-Image-Turbo), 30 (SDXL, SD 1.5).",
        ),
        guidance_scale: Optional[float] = Input(
            default=None,
            ge=0,
            le=100,
            description="How strictly the picture follows the prompt, at most 10 for most models. Left out: 3.5 (FLUX.1-dev; 3 with the profile hosted), 30 (FLUX.1 Fill and Canny), 10 (Depth), 2.5 (Kontext), 5 (SDXL), 7.5 (SD 1.5).",
        ),
        guidance: Optional[float] = Input(
            default=None, ge=0, le=100, description="Another name of guidance_scale, as hosted Flux models have it."
        ),
        sampler: str = Input(
            default="Euler",
            choices=["Euler", "DPM++ 2M", "DPM++ 2M SDE", "UniPC"],
            description="Sampling method. Passes that start from a picture (image-to-image, Hires fix, ADetailer) always use Euler.",
        ),
        scheduler: str = Input(
            default="Simple",
            choices=["Simple", "Karras", "Exponential", "Beta", "Normal", "SGM Uniform"],
            description="Noise schedule. With Flux, all but Simple need the sampler Euler.",
        ),
        go_fast: Optional[bool] = Input(
            default=None,
            description="Skip steps that change little: faster, and a slightly different picture. Left out: off; on with the profile hosted.",
        ),
        seed: Optional[int] = Input(
            default=None,
            ge=0,
            le=4294967295,
            description="The same seed gives the same picture. Left out: a random one, which is written into the file.",
        ),
        image: Optional[Path] = Input(
            default=None,
            regex="^(data:|https?://)",
            description="A picture to start from (image-to-image), to inpaint when a mask is given, to extend with outpaint, or to finish as it is with a prompt_strength of 0.",
        ),
        mask: Optional[Path] = Input(
            default=None,
            regex="^(data:|https?://)",
            description="White where the image is repainted, black where it stays, also in Hires fix and ADetailer. Same size as the image.",
        ),
        prompt_strength: Optional[float] = Input(
            default=None,
            ge=0,
            le=1,
            description="How much of the image is repainted: 0 keeps its size and pixels for all but the details, 1 ignores it. Left out: 0.8; 1 with FLUX.1 Fill and with outpaint.",
        ),
        inpaint_only_masked: Optional[bool] = Input(
            default=None,
            description="With a mask: draw the masked part alone, at the native size of the model, and put it into the image, which keeps its size and all other pixels. Off: draw the whole image at that size. Left out: on; off with the profile hosted, but for outpaint.",
        ),
        inpaint_only_masked_padding: int = Input(
            default=32,
            ge=0,
            le=256,
            description="Pixels of the image around the mask that the model sees, with inpaint_only_masked.",
        ),
        outpaint: str = Input(
            default="",
            max_length=200,
            description='Extend the image: the pixels that each side gets, for example "left=128 right=128", also top and bottom. The image keeps its pixels but for a border that blends into the new part.',
        ),
        input_image: Optional[Path] = Input(
            default=None,
            regex="^(data:|https?://)",
            description="A picture that the prompt changes, for models that edit: FLUX.1 Kontext. For FLUX.2 klein the first of its reference pictures.",
        ),
        images: Optional[list[Path]] = Input(
            default=None,
            description="Reference pictures that the model looks at, in their order: up to 5 for FLUX.2 klein, one for FLUX.1 Kontext. With input_image they follow it.",
        ),
        control_image: Optional[Path] = Input(
            default=None,
            regex="^(data:|https?://)",
            description="A picture that says what is where, for FLUX.1 Canny (any picture, or its edges) and FLUX.1 Depth (a depth map).",
        ),
        enable_hr: bool = Input(
            default=False,
            description="Hires fix: upscale the generated picture and denoise it again at that size, before the faces are repainted.",
        ),
        hr_scale: float = Input(
            default=1.3,
            ge=1,
            le=4,
            description="Upscale factor of Hires fix, rounded to the nearest size that the model can generate.",
        ),
        hr_steps: int = Input(
            default=0, ge=0, le=50, description="Denoising steps of Hires fix. 0: those of the first pass."
        ),
        hr_upscaler: str = Input(
            default="ESRGAN",
            choices=["ESRGAN", "Lanczos", "Latent", "Latent (nearest)", "Latent (bicubic)"],
            description="Upscaler of Hires fix. The latent ones need a denoising_strength of 0.6 or more.",
        ),
        denoising_strength: float = Input(
            default=0.3, ge=0, le=1, description="How much of the picture Hires fix repaints: 0 keeps it, 1 ignores it."
        ),
        hr_prompt: str = Input(
            default="",
            max_length=20000,
            description="Prompt for Hires fix. Empty: the main prompt. [PROMPT] inserts it, [SEP] separates the prompts of the tiles, row by row.",
        ),
        hr_tiles: str = Input(
            default="auto",
            choices=["auto", "on", "off"],
            description="Draw Hires fix in overlapping tiles of the model's native size. auto: beyond twice the native side, or where one pass does not fit into memory.",
        ),
        adetailer: Optional[bool] = Input(
            default=None,
            description="Find the faces and repaint each at full resolution. Left out: on; off with the profile hosted.",
        ),
        ad_prompt: str = Input(
            default="",
            max_length=20000,
            description="Prompt for the faces. Empty: the main prompt. [SEP] separates the prompts of successive faces, [SKIP] skips a face.",
        ),
        ad_hands_prompt: str = Input(
            default="",
            max_length=20000,
            description="Prompt for the hands, which are repainted after the faces. Empty: hands are not repainted.",
        ),
        ad_mask: Optional[Path] = Input(
            default=None,
            regex="^(data:|https?://)",
            description="White areas that the detail pass repaints, each by itself, beside the faces that it finds. The shape of the picture.",
        ),
        adetailer_args: str = Input(
            default="",
            max_length=20000,
            description='JSON: one ADetailer unit, or a list of up to 4, by ADetailer\'s argument names, for example {"ad_confidence": 0.5, "ad_mask_k": 1}.',
        ),
        adetailer_args_hands: str = Input(
            default="",
            max_length=20000,
            description="The same for hands; {} repaints them with the main prompt. Empty: only with ad_hands_prompt.",
        ),
        scale: Optional[float] = Input(
            default=None,
            ge=1,
            le=8,
            description="Upscale the finished picture by this factor with ESRGAN. 1 is off. Left out: 2; 1 with the profile hosted.",
        ),
        upscaler: str = Input(
            default="",
            max_length=20000,
            description="Upscaler for scale and Hires fix: the name of its file without extension, such as 4x-UltraSharp. Empty: the best one that is installed.",
        ),
        face_enhance: bool = Input(
            default=False,
            description="Restore the faces of the finished picture with GFPGAN or RestoreFormer, where their weights are installed.",
        ),
        lora_weights: Optional[str] = Input(
            default=None,
            max_length=2048,
            description="A LoRA for all pictures: the name of a file in weights/loras, owner/model, huggingface.co/owner/model, civitai.com/models/ID, replicate.com/owner/model, or the https address of a .safetensors file. lora_sources says which are allowed.",
        ),
        lora_scale: Optional[float] = Input(
            default=None,
            ge=-3,
            le=3,
            description="How strongly the LoRA changes the pictures. 0 does nothing, a negative number turns it round. Left out: 1; 0.8 with hf_lora.",
        ),
        extra_lora: Optional[str] = Input(
            default=None,
            max_length=2048,
            description="A second LoRA, as in lora_weights. More go into the prompt, as <lora:name:0.8>.",
        ),
        extra_lora_scale: float = Input(
            default=1.0, ge=-3, le=3, description="How strongly the second LoRA changes the pictures."
        ),
        hf_lora: Optional[str] = Input(
            default=None,
            max_length=2048,
            description="Another name of lora_weights, in which owner/model is a model of Hugging Face.",
        ),
        replicate_weights: Optional[str] = Input(
            default=None,
            max_length=2048,
            description="Another name of lora_weights, in which owner/model is a fine-tune of Replicate.",
        ),
        hf_api_token: Optional[Secret] = Input(
            default=None,
            max_length=1000,
            description="Token of Hugging Face, for a LoRA that is private or gated. It is sent there and kept nowhere.",
        ),
        civitai_api_token: Optional[Secret] = Input(
            default=None,
            max_length=1000,
            description="Token of Civitai, for a LoRA that asks for one. It is sent there and kept nowhere.",
        ),
        prompt_upsampling: bool = Input(
            default=False, description="Let a language model rewrite the prompt as a full description first."
        ),
        prompt_upsampling_seed: Optional[int] = Input(
            default=None,
            ge=0,
            le=4294967295,
            description="The same seed gives the same rewritten prompt. Left out: the picture's seed.",
        ),
        disable_safety_checker: bool = Input(
            default=False,
            description="Give out every picture, without asking the safety checker that the model was set up with.",
        ),
        output_format: Optional[str] = Input(
            default=None,
            choices=["webp", "jpg", "png"],
            description="File format of the pictures. Left out: webp; jpg for FLUX.2 klein with the profile hosted.",
        ),
        output_quality: Optional[int] = Input(
            default=None,
            ge=0,
            le=100,
            description="Quality of webp and jpg files, 100 is best. Not used for png. Left out: 80; 95 for FLUX.2 klein with the profile hosted.",
        ),
    ) -> list[Path]:
        """Generates the pictures and returns their files, in the order of their seeds."""
        inputs = dict(locals())  # first, while the arguments are the only local names
        del inputs["self"]
        return [Path(file) for file in await self.queue.predict(inputs, self.record_metric)]
