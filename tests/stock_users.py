"""What users of the stock libraries do who have no hf_vq, and what one types: each in a process of its own."""

import contextlib
import io
import runpy
import sys
import warnings

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForCausalLM

from .conftest import no_complaints


def process_picture(folder, picture):
    """The pixel values that the image processor of a folder gives, as lists."""
    processor = AutoImageProcessor.from_pretrained(folder)
    assert "hf_vq" not in sys.modules
    return processor(Image.open(picture), return_tensors="pt")["pixel_values"].tolist()


def generate_tokens(folders):
    """Writes beside the prompt in each folder how the model there goes on: the likeliest tokens, and drawn ones."""
    warnings.simplefilter("error")
    torch.manual_seed(0)
    for folder in folders:
        prior, prompt = AutoModelForCausalLM.from_pretrained(folder), torch.load(f"{folder}/prompt.pt")
        assert type(prior).__name__ == "LlamaForCausalLM"
        tokens = [prior.generate(prompt, do_sample=False), prior.generate(prompt.repeat(20, 1))]
        torch.save(tokens, f"{folder}/tokens.pt")
    assert "hf_vq" not in sys.modules


def generate_unasked(folder):
    """Tokens that the model of a folder draws without a prompt."""
    with no_complaints():
        prior = AutoModelForCausalLM.from_pretrained(folder)
        torch.manual_seed(0)
        tokens = [prior.generate(do_sample=True), prior.generate(num_return_sequences=40)]
    assert "hf_vq" not in sys.modules
    return tokens


def type_command(*arguments):
    """`python -m hf_vq_cli`: its exit code and what it wrote to stderr."""
    sys.argv[1:] = arguments
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            runpy.run_module("hf_vq_cli", run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            return stop.code, errors.getvalue()
