"""The extensions and scripts that Stable Diffusion WebUI Forge comes with.

Optimization guides for the WebUI say to list them in ``disabled_extensions`` and ``disabled_scripts``. This package has
none of them, but such a list has to be accepted as it is, with a report of what it does here; a name that is in neither
list is a typing error.
"""

from __future__ import annotations

FORGE_EXTENSIONS = frozenset(
    """ScuNET SwinIR extra-options-section forge_legacy_preprocessors forge_preprocessor_inpaint
    forge_preprocessor_marigold forge_preprocessor_normalbae forge_preprocessor_recolor
    forge_preprocessor_reference forge_preprocessor_revision forge_preprocessor_tile forge_space_animagine_xl_31
    forge_space_birefnet forge_space_example forge_space_florence_2 forge_space_geowizard forge_space_iclight
    forge_space_idm_vton forge_space_illusion_diffusion forge_space_photo_maker_v2 forge_space_sapiens_normal
    mobile prompt-bracket-checker sd_forge_controlllite sd_forge_controlnet sd_forge_dynamic_thresholding
    sd_forge_fooocus_inpaint sd_forge_freeu sd_forge_ipadapter sd_forge_kohya_hrfix sd_forge_latent_modifier
    sd_forge_lora sd_forge_multidiffusion sd_forge_neveroom sd_forge_perturbed_attention sd_forge_sag
    sd_forge_stylealign soft-inpainting""".split()  # noqa: SIM905
)
"""The extensions that Forge comes with (lllyasviel/stable-diffusion-webui-forge, 2025-06)."""

FORGE_SCRIPTS = frozenset(
    """custom_code img2imgalt loopback outpainting_mk_2 poor_mans_outpainting postprocessing_codeformer
    postprocessing_focal_crop postprocessing_gfpgan postprocessing_upscale prompt_matrix prompts_from_file
    sd_upscale xyz_grid""".split()  # noqa: SIM905
)
"""Its scripts, without ``.py``."""
