"""PixelCNN: an autoregressive prior over two-dimensional grids of codes, gated or with plain residual blocks."""

from collections.abc import Sequence
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from hf_vq.priors.autoregressive import AutoregressivePrior
from hf_vq.priors.config import PriorConfig
from hf_vq.priors.pixelcnn_layers import GatedStack, ResidualStack
from hf_vq.priors.pixelcnn_sampling import PixelCNNSamplingState
from hf_vq.ranges import Chance, Depth, KernelSize, Range, Width
from hf_vq.registry import register


class PixelCNNConfig(PriorConfig):
    """Config of `PixelCNN`.

    Args:
        codebook_size, num_classes, code_shape, class_dropout_prob: see `PriorConfig`.
        gated: vertical and horizontal stacks with gates; otherwise residual blocks with masked convolutions.
        hidden_channels: channels of the layers; residual blocks narrow to half of it inside.
        num_layers: gated layers, the first included; or residual blocks, after the first convolution.
        kernel_size: odd size of the kernels.
        first_kernel_size: odd size, at least 3, of the first kernel, which excludes the position itself.
        one_hot: feed codes as one-hot vectors instead of embeddings of `hidden_channels`.
        head_channels: widths of the 1x1 ReLU layers before the logits; an int is one layer. By default one of 512
            where gated, else two of `hidden_channels`.
        dropout: inside every layer.

    Raises:
        ValueError: a value is out of its range.
    """

    model_type = "hf_vq_pixelcnn"

    gated: bool = True
    hidden_channels: Annotated[int, Range(2, 2**16)] = 64
    num_layers: Depth = 15
    kernel_size: KernelSize = 3
    first_kernel_size: Annotated[int, Range(3, 2**8)] = 7
    one_hot: bool = False
    head_channels: Width | list[Width] | tuple[Width, ...] | None = None
    dropout: Chance = 0.0

    def __post_init__(self, **kwargs):
        if self.head_channels is None:
            self.head_channels = [512] if self.gated else [self.hidden_channels] * 2
        elif isinstance(self.head_channels, int):
            self.head_channels = [self.head_channels]
        self.head_channels = list(self.head_channels)
        for name in ("kernel_size", "first_kernel_size"):
            if getattr(self, name) % 2 == 0:
                raise ValueError(f"{name} must be odd, got {getattr(self, name)}")
        super().__post_init__(**kwargs)
        if self.code_shape is not None and len(self.code_shape) != 2:
            raise ValueError(f"code_shape must be (height, width), got {self.code_shape}")


@register
class PixelCNN(AutoregressivePrior, PreTrainedModel):
    """Gated PixelCNN (https://arxiv.org/abs/1606.05328) or plain PixelCNN (https://arxiv.org/abs/1601.06759).

    With `gated=True` the network of ritheshkumar95/pytorch-vqvae, with `gated=False` and `one_hot=True` that of the
    Keras VQ-VAE example, at any width, depth, kernel and grid, with or without classes.
    """

    config_class = PixelCNNConfig
    base_model_prefix = "prior"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GatedLayer", "ResidualBlock"]
    grid_dims = 2

    def __init__(self, config: PixelCNNConfig):
        super().__init__(config)
        in_channels = config.codebook_size if config.one_hot else config.hidden_channels
        self.embedding = None if config.one_hot else nn.Embedding(config.codebook_size, in_channels)
        self.stack = (GatedStack if config.gated else ResidualStack)(config, in_channels)
        head, width = [], config.hidden_channels
        for next_width in cast(Sequence[int], config.head_channels):
            head += [nn.Conv2d(width, next_width, 1), nn.ReLU()]
            width = next_width
        self.head = nn.Sequential(*head, nn.Conv2d(width, config.codebook_size, 1))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Both originals: Glorot-uniform kernels and zero biases; embeddings of unit variance."""
        if isinstance(module, nn.Conv2d):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)

    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """Vectors (*shape, in_channels) of codes (*shape)."""
        if self.embedding is None:
            return F.one_hot(codes, self.config.codebook_size).to(self.dtype)
        return self.embedding(codes)

    def predict(self, codes: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        inputs = codes if self.embedding is None else self.embed(codes).movedim(-1, 1)
        features = self.stack(inputs, class_labels)  # (batch, channels, height, width)
        return self.head(features).movedim(1, -1)

    def start_sampling(
        self, num_grids: int, code_shape: tuple[int, ...], class_labels: torch.Tensor | None = None
    ) -> PixelCNNSamplingState:
        return PixelCNNSamplingState(self, num_grids, code_shape[1], class_labels)
