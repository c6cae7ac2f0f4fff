"""PixelSNAIL: causal convolutions and attention over two-dimensional grids of codes, the prior of VQ-VAE-2."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import can_return_tuple

from hf_vq.priors.autoregressive import AutoregressivePrior
from hf_vq.priors.base import PriorOutput
from hf_vq.priors.conditions import Condition, ContextCondition
from hf_vq.priors.config import PriorConfig
from hf_vq.priors.inputs import at_own_lengths
from hf_vq.priors.pixelsnail_layers import (
    CausalConv2d,
    ContextNetwork,
    FirstConv2d,
    GatedResidualLayer,
    PixelBlock,
    coordinates,
    pointwise_conv,
)
from hf_vq.priors.pixelsnail_sampling import PixelSNAILSamplingState
from hf_vq.ranges import Chance, Codebook, Depth, FreeDepth, KernelSize, Range, Width
from hf_vq.registry import register


class PixelSNAILConfig(PriorConfig):
    """Config of `PixelSNAIL`.

    Args:
        codebook_size, num_classes, code_shape, class_dropout_prob: see `PriorConfig`.
        hidden_channels: channels of the blocks.
        kernel_size: odd size, at least 3, of the causal kernels.
        num_blocks: blocks, each with its own attention.
        num_residual_layers: causal residual layers in each block.
        residual_channels: channels inside these layers.
        attention: attend to all codes before; VQ-VAE-2 does so at its top grid only, for its cost grows with the
            square of the number of codes.
        sees_row_ends: left of a row lies the end of the row above, so that every code depends on all codes before it;
            without attention, on those that the kernels reach. False is the network of rosinality, and that of folders
            saved before there was this option: the beginning of a row does not see the end of the row above.
        num_attention_heads: heads that share `hidden_channels // 2` channels.
        num_output_layers: 1x1 residual layers before the logits.
        context_codebook_sizes: numbers of codes of the coarser grids that the prior is conditioned on, coarse to
            fine; () is none. Each has a network of its own, on its own grid; their features are resized to the
            grid of the codes and summed.
        num_context_layers: residual layers of these networks.
        context_kernel_size: odd size of their kernels.
        condition_channels: channels of what comes from coarser grids and classes; `residual_channels` by default.
        dropout: inside every residual layer and on attention weights.

    Raises:
        ValueError: a value is out of its range.
    """

    model_type = "hf_vq_pixelsnail"
    former_options: ClassVar[dict[str, Any]] = {"sees_row_ends": False}

    hidden_channels: Width = 128
    kernel_size: Annotated[int, Range(3, 2**8)] = 5
    num_blocks: Depth = 4
    num_residual_layers: Depth = 4
    residual_channels: Width = 128
    attention: bool = True
    sees_row_ends: bool = True
    num_attention_heads: Depth = 8
    num_output_layers: FreeDepth = 0
    context_codebook_sizes: list[Codebook] | tuple[Codebook, ...] = ()
    num_context_layers: FreeDepth = 3
    context_kernel_size: KernelSize = 3
    condition_channels: Width | None = None
    dropout: Chance = 0.1

    def __post_init__(self, **kwargs):
        self.context_codebook_sizes = list(self.context_codebook_sizes)
        if self.condition_channels is None:
            self.condition_channels = self.residual_channels
        for name in ("kernel_size", "context_kernel_size"):
            if getattr(self, name) % 2 == 0:
                raise ValueError(f"{name} must be odd, got {getattr(self, name)}")
        width = self.hidden_channels // 2
        if self.attention and (width == 0 or width % self.num_attention_heads):
            raise ValueError(
                f"num_attention_heads must divide hidden_channels // 2, got {self.num_attention_heads} for {width}"
            )
        super().__post_init__(**kwargs)
        if self.code_shape is not None and len(self.code_shape) != 2:
            raise ValueError(f"code_shape must be (height, width), got {self.code_shape}")

    @property
    def has_condition(self) -> bool:
        """Whether anything is added to the gates: coarser codes, classes or both."""
        return bool(self.context_codebook_sizes) or self.num_classes > 0


@register
class PixelSNAIL(AutoregressivePrior, PreTrainedModel):
    """PixelSNAIL (https://arxiv.org/abs/1712.09763) as the priors of VQ-VAE-2 (https://arxiv.org/abs/1906.00446).

    It is the network of rosinality/vq-vae-2-pytorch at any width, depth, kernel and grid, its weight norms folded into
    plain weights. Classes are an addition: their embedding joins the features of the coarser codes or stands alone.
    So is `sees_row_ends`, which costs no weights: the same kernels read on where a row begins.
    """

    config_class = PixelSNAILConfig
    base_model_prefix = "prior"
    supports_gradient_checkpointing = True
    grid_dims = 2
    reads_lengths = True  # coordinates and features of coarser grids end differently in a higher grid
    _no_split_modules = ["PixelBlock"]
    _supports_sdpa = True

    def __init__(self, config: PixelSNAILConfig):
        super().__init__(config)
        classes, channels = config.num_class_embeddings, config.hidden_channels
        self.first = FirstConv2d(config.codebook_size, channels, config.kernel_size, config.sees_row_ends)
        self.blocks = nn.ModuleList(PixelBlock(config) for _ in range(config.num_blocks))
        self.contexts = nn.ModuleList(ContextNetwork(config, size) for size in config.context_codebook_sizes)
        self.class_embedding = nn.Embedding(classes, cast(int, config.condition_channels)) if classes else None
        self.output_layers = nn.ModuleList(
            GatedResidualLayer(channels, config.residual_channels, pointwise_conv, config.dropout)
            for _ in range(config.num_output_layers)
        )
        self.head = pointwise_conv(channels, config.codebook_size)
        _set_init_stds(self)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            init.normal_(module.weight, std=cast(float, module.init_std))
            if module.bias is not None:
                init.zeros_(module.bias)

    @can_return_tuple
    def forward(
        self,
        codes: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        context_codes: Sequence[torch.Tensor] | None = None,
        labels: torch.Tensor | None = None,
        return_loss: bool = True,
        *,
        lengths: torch.Tensor | None = None,
    ) -> PriorOutput:
        """Logits of every code from the codes before it in raster order, and their loss.

        Args:
            codes: (batch, height, width) int64.
            class_labels: (batch,) int64 of a prior with classes; in training some are dropped to the null class.
            context_codes: the coarser grids, coarse to fine, each (batch, its height, its width) int64.
            labels: (batch, height, width) int64 targets instead of `codes`; -100 is ignored.
            return_loss: compute the loss.
            lengths: (batch,) int64, real rows of each item; what is below takes no part in the loss.

        Returns:
            `PriorOutput` with the loss in mean nats per code and logits (batch, height, width, codebook_size).

        Raises:
            ValueError: codes, conditions or targets out of range or of the wrong shape or type.
        """
        return self.run_forward(
            codes, labels, return_loss, lengths, class_labels=class_labels, context_codes=context_codes
        )

    def make_conditions(self) -> tuple[Condition, ...]:
        return (*super().make_conditions(), ContextCondition(self.config.context_codebook_sizes))

    def compute_condition(
        self,
        grid: tuple[int, ...],
        class_labels: torch.Tensor | None,
        context_codes: Sequence[torch.Tensor] | None,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """What the residual layers of the blocks are conditioned on, the same for every code that is drawn.

        Returns:
            (batch, condition_channels, height, width); of classes alone (batch, condition_channels, 1, 1); or None.
        """
        parts = [
            _context_features(cast(ContextNetwork, network), codes, grid, lengths)
            for network, codes in zip(self.contexts, context_codes or (), strict=True)
        ]
        if self.class_embedding is not None:
            parts.append(self.class_embedding(class_labels)[:, :, None, None])
        return sum(parts[1:], start=parts[0]) if parts else None

    def predict(
        self,
        codes: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        context_codes: Sequence[torch.Tensor] | None = None,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        grid = tuple(codes.shape[1:])
        condition = self.compute_condition(grid, class_labels, context_codes, lengths)
        features = self.first(codes)  # (batch, hidden_channels, height, width)
        background = coordinates(grid, features, lengths).expand(codes.shape[0], -1, -1, -1)
        for block in self.blocks:
            features = block(features, background, condition)
        for layer in self.output_layers:
            features = layer(features)
        return self.head(F.elu(features)).movedim(1, -1)

    def start_sampling(
        self,
        num_grids: int,
        code_shape: tuple[int, ...],
        class_labels: torch.Tensor | None = None,
        context_codes: Sequence[torch.Tensor] | None = None,
    ) -> "PixelSNAILSamplingState":
        condition = self.compute_condition(code_shape, class_labels, context_codes)
        return PixelSNAILSamplingState(self, num_grids, code_shape, condition)


def _context_features(
    network: ContextNetwork, codes: torch.Tensor, grid: tuple[int, ...], lengths: torch.Tensor | None
) -> torch.Tensor:
    """Features of coarser codes (batch, rows, columns), resized to a grid; of items of given lengths, each alone."""
    if lengths is None:
        return F.interpolate(network(codes), size=grid, mode="nearest")
    height, width = grid

    def alone(rows: torch.Tensor, length: int) -> torch.Tensor:
        coarser = codes[rows, : -(-length * codes.shape[1] // height)]
        return F.interpolate(network(coarser), size=(length, width), mode="nearest")

    return at_own_lengths(lengths, height, alone)


def _set_init_stds(prior: PixelSNAIL) -> None:
    """Give each layer its `init_std`: about unit variance throughout, logits near zero, so uniform codes at first.

    What residual layers add is scaled down by the root of their number, as in GPT-2. (The layers carry the numbers
    because transformers initialises only modules that have weights of their own.)
    """
    config = prior.config
    depth = config.num_blocks * (config.num_residual_layers + 1) + config.num_output_layers
    modules = list(prior.modules())
    for module in modules:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.init_std = module.weight[0].numel() ** -0.5
    for module in modules:
        if isinstance(module, (CausalConv2d, FirstConv2d)):  # two parts that are added
            taps = module.above.weight[0, 0].numel() + module.left.weight[0, 0].numel()
            channels = module.left.in_channels if isinstance(module, CausalConv2d) else 1  # of a one-hot vector one
            module.above.init_std = module.left.init_std = (taps * channels) ** -0.5
        elif isinstance(module, ContextNetwork):
            module.first.init_std = module.first.weight[0, 0].numel() ** -0.5
    for module in modules:
        if isinstance(module, GatedResidualLayer):
            for last in [*module.conv2.modules(), module.condition]:
                if isinstance(last, nn.Conv2d):
                    vars(last)["init_std"] *= depth**-0.5
    vars(prior.head)["init_std"] *= 0.1
