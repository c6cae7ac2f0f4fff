"""Facts about our VQModel as the decoder of stock pipelines: the same image, no new warning, saved and reloaded."""

import json
import logging
import warnings

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from hf_vq import VQModel

from .conftest import FIXTURES

CALLS = {
    "LDMPipeline": {"batch_size": 2, "num_inference_steps": 5, "eta": 0.0},
    "AmusedPipeline": {
        "prompt": ["the red dog", "a blue cat"],
        "num_inference_steps": 5,
        "guidance_scale": 3.0,
        "temperature": (2, 0),
    },
}
FOLDERS = {
    "LDMPipeline": FIXTURES / "diffusers_ldm_pipeline",
    "AmusedPipeline": FIXTURES / "diffusers_amused_pipeline",
}


def draw(name, pipe):
    seed = json.loads((FOLDERS[name] / "meta.json").read_text())["call"]["generator_seed"]
    pipe.set_progress_bar_config(disable=True)
    images = pipe(**CALLS[name], generator=torch.Generator().manual_seed(seed), output_type="np").images
    return torch.from_numpy(images)


def with_words(make):
    """What a function returns, and the set of what Python and diffusers warned meanwhile."""
    words, handler, logger = set(), logging.Handler(logging.WARNING), logging.getLogger("diffusers")
    handler.emit = lambda record: words.add(record.getMessage())
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = make()
    finally:
        logger.removeHandler(handler)
    return made, words | {str(warning.message) for warning in caught}


@pytest.mark.parametrize("name", CALLS)
def test_stock_pipelines_draw_the_same_image_with_our_model(name, tmp_path):
    stock_class, folder = getattr(diffusers, name), FOLDERS[name]
    expected = load_file(folder / "io.safetensors")["out.images"]
    _, stock_words = with_words(lambda: draw(name, stock_class.from_pretrained(folder)))

    def by_constructor():
        parts = stock_class.from_pretrained(folder).components
        return stock_class(**{**parts, "vqvae": VQModel.from_pretrained(folder, subfolder="vqvae")})

    def by_from_pretrained():
        ours = VQModel.from_pretrained(folder, subfolder="vqvae")
        return stock_class.from_pretrained(folder, vqvae=ours)

    def saved_and_reloaded():
        by_constructor().save_pretrained(tmp_path / "ours")
        return stock_class.from_pretrained(tmp_path / "ours")

    def without_hf_vq():
        pipe = by_constructor()
        pipe.register_modules(vqvae=pipe.vqvae.to_diffusers())
        pipe.save_pretrained(tmp_path / "stock")
        return stock_class.from_pretrained(tmp_path / "stock")

    for make in (by_constructor, by_from_pretrained, saved_and_reloaded, without_hf_vq):
        (pipe, images), words = with_words(lambda make=make: (pipe := make(), draw(name, pipe)))
        assert words <= stock_words
        assert type(pipe.vqvae) is (diffusers.VQModel if make is without_hf_vq else VQModel)
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)
    index = json.loads((tmp_path / "stock" / "model_index.json").read_text())
    assert index["vqvae"] == ["diffusers", "VQModel"]
