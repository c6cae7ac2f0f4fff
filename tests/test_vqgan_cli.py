"""A public VQGAN, its discriminator and one's own pictures to a better tokenizer, by the command line alone."""

import json
import shutil
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from hf_vq import PatchDiscriminator
from hf_vq_cli import main

from .conftest import FIXTURES

ROOT = Path(__file__).parent.parent
CHECKPOINT = FIXTURES / "taming_vqgan" / "last.ckpt"


def test_a_converted_checkpoint_goes_on_with_its_discriminator_on_own_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(CHECKPOINT, "last.ckpt")
    Path("pictures").mkdir()
    for number in range(8):
        pixels = torch.randint(0, 256, (40, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
        Image.fromarray(pixels.numpy()).save(f"pictures/{number}.png")
    assert main(["convert", "last.ckpt", "mine", "--format", "taming-vqgan", "--license", "mit"]) == 0
    recipe = [str(ROOT / "model_cards" / "vqgan-own-pictures" / "finetune.yaml"), "--data", "pictures"]
    given = [*recipe, "--init_from", "mine", "--discriminator_init", "last.ckpt", "--perceptual", "random"]
    given += ["--image_size", "32", "--disc_start", "1", "--adversarial_ramp_steps", "0", "--max_steps", "2"]
    given += ["--per_device_train_batch_size", "2", "--use_cpu", "--disable_tqdm", "--eval_steps", "2"]
    assert main(["train", "autoencoder", *given, "--output_dir", "better"]) == 0
    history = json.loads(Path("better/report.json").read_text())["history"]
    assert any("loss_adversarial" in entry and "discriminator_real" in entry for entry in history)
    before, after = load_file("mine/diffusion_pytorch_model.safetensors"), published("better")
    assert before.keys() == after.keys()
    assert not torch.equal(before["decoder.conv_out.weight"], after["decoder.conv_out.weight"])
    judge = published("better/discriminator")
    first = PatchDiscriminator.from_single_file(CHECKPOINT).state_dict()["main.0.weight"]
    torch.testing.assert_close(judge["main.0.weight"], first, rtol=0, atol=1e-3)  # one step of AdamW from it
    assert not torch.equal(judge["main.0.weight"], first)


def published(folder):
    return load_file(Path(folder, "diffusion_pytorch_model.safetensors"))
