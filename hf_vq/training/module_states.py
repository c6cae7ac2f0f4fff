"""The weights of a task's modules in a checkpoint: each once, in accelerate's files or in those of a saved model.

What a task publishes it also writes into every checkpoint, which so loads as any saved model. Where those are the
weights that train, not their average, the checkpoint has that module nowhere else.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import SAFE_MODEL_NAME, save
from safetensors.torch import load_file, load_model
from torch import nn

from hf_vq.saved import AUTOENCODER_WEIGHTS


def published_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of the autoencoder that a checkpoint publishes, of all shards; none in one of an earlier version."""
    paths = sorted(folder.glob(f"{AUTOENCODER_WEIGHTS}.safetensors"))
    return {name: tensor for path in paths for name, tensor in load_file(path).items()}


def keep_once(accelerator: Accelerator, save_published: Callable[[Path], nn.Module | None]) -> None:
    """Let an accelerator's checkpoints hold a saved model, whose weights it does not write a second time.

    Args:
        accelerator: its modules are prepared.
        save_published: see `Task.save_published`.
    """

    def unwrapped(model: nn.Module) -> nn.Module:
        return accelerator.unwrap_model(model, keep_torch_compile=False)

    def accelerates_file(folder: str, place: int) -> Path:
        return Path(folder, f"{SAFE_MODEL_NAME}{f'_{place}' if place else ''}.safetensors")

    def save_modules(models: list[nn.Module], weights: list[dict], folder: str) -> None:
        if accelerator.is_main_process:
            published = save_published(Path(folder))
            for place, (model, state) in enumerate(zip(models, weights, strict=True)):
                if unwrapped(model) is not published:
                    save(state, accelerates_file(folder, place), safe_serialization=True)
        weights.clear()  # else accelerate writes them, numbered anew

    def load_modules(models: list[nn.Module], folder: str) -> None:
        for place, model in enumerate(models):
            path = accelerates_file(folder, place)
            if path.is_file():
                load_model(model, path)
            else:
                unwrapped(model).load_state_dict(published_weights(Path(folder)))
        models.clear()

    accelerator.register_save_state_pre_hook(save_modules)
    accelerator.register_load_state_pre_hook(load_modules)
