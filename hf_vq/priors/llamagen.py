"""LlamaGenPrior: LlamaGen's class-conditional transformer over two-dimensional grids of codes."""

from typing import Annotated, Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from hf_vq.priors.autoregressive import AutoregressivePrior
from hf_vq.priors.compiled_sampling import CompiledSampling
from hf_vq.priors.config import PriorConfig
from hf_vq.ranges import Chance, Depth, Positive, Range, Weight, Width
from hf_vq.registry import register


class LlamaGenPriorConfig(PriorConfig):
    """Config of `LlamaGenPrior`.

    Args:
        codebook_size, num_classes, code_shape, class_dropout_prob: see `PriorConfig`; there is at least one class.
        hidden_size: width of the decoder.
        num_layers: decoder layers.
        num_heads: attention heads; a head's width is a multiple of 4.
        num_key_value_heads: heads of keys and values, which divide `num_heads`; by default as many.
        intermediate_size: width inside the gated MLP; by default 8/3 of `hidden_size`, up to a multiple of 256.
        token_dropout: in training, of the embedded class and codes.
        attention_dropout: in training.
        rms_norm_eps: added to the mean square.
        rope_theta: base of the rotary frequencies.
        initializer_range: standard deviation of new weights.

    Raises:
        ValueError: a value is out of its range.
    """

    model_type = "hf_vq_llamagen"
    attribute_map = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}
    hidden_act, attention_bias, mlp_bias = "silu", False, False  # of transformers' layers

    hidden_size: Width = 768
    num_layers: Depth = 12
    num_heads: Depth = 12
    num_key_value_heads: Depth | None = None
    intermediate_size: Annotated[int, Range(1, 2**18)] | None = None
    token_dropout: Chance = 0.0
    attention_dropout: Chance = 0.0
    rms_norm_eps: Positive = 1e-5
    rope_theta: Positive = 10000.0
    initializer_range: Weight = 0.02

    def __post_init__(self, **kwargs):
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {self.num_classes}")
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError(
                f"hidden_size must be a multiple of 4 * num_heads = {4 * self.num_heads}, got {self.hidden_size}"
            )
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_heads
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads must divide num_heads={self.num_heads}, got {self.num_key_value_heads}"
            )
        if self.intermediate_size is None:
            self.intermediate_size = -(-int(8 * self.hidden_size / 3) // 256) * 256
        super().__post_init__(**kwargs)
        if self.code_shape is not None and len(self.code_shape) != 2:
            raise ValueError(f"code_shape must be (height, width), got {self.code_shape}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@register
class LlamaGenPrior(CompiledSampling, AutoregressivePrior, PreTrainedModel):
    """LlamaGen's class-conditional transformer (https://arxiv.org/abs/2406.06525, section 2.2).

    Llama layers over the class and then the codes in raster order. Half of the rotary frequencies turn with the row
    of a code, half with its column; at the class the rotation is by the number 0, so its key is 0 and every query
    gives it the score 0. LlamaGen's `cfg_interval=i` is `guidance_steps=i + 2`.

    It is no stock Llama, whose rotation has one dimension: of this package's checkpoints only those of
    `TransformerPrior` load in `AutoModelForCausalLM`, vLLM or SGLang. The original's dropout inside the residual
    branches is not kept; it takes part in training only.
    """

    config_class = LlamaGenPriorConfig
    config: LlamaGenPriorConfig
    base_model_prefix = "prior"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlamaDecoderLayer"]
    _supports_flash_attn = _supports_sdpa = _supports_flex_attn = _supports_attention_backend = True
    grid_dims = 2

    def __init__(self, config: LlamaGenPriorConfig):
        super().__init__(config)
        self.class_embedding = nn.Embedding(config.num_class_embeddings, config.hidden_size)
        self.embedding = nn.Embedding(config.codebook_size, config.hidden_size)
        self.layers = nn.ModuleList(
            [LlamaDecoderLayer(cast(Any, config), index) for index in range(config.num_layers)]
        )
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.codebook_size, bias=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, LlamaRMSNorm):
            init.ones_(module.weight)

    def rotary_angles(self, code_shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (height * width, head_dim / 2), float32, of the class and all codes but the last."""
        height, width = code_shape
        half = self.config.head_dim // 2
        powers = torch.arange(0, half, 2, device=self.device, dtype=torch.float32) / half
        frequencies = self.config.rope_theta**-powers
        rows, columns = (torch.arange(size, device=self.device)[:, None] * frequencies for size in code_shape)
        angles = torch.cat([rows[:, None].expand(-1, width, -1), columns.expand(height, -1, -1)], dim=-1).flatten(0, 1)
        cosines, sines = (F.pad(table[:-1], (0, 0, 1, 0)) for table in (angles.cos(), angles.sin()))
        return cosines, sines

    def predict(self, codes: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        inputs = self.embedding(codes.flatten(1)[:, :-1])
        features = torch.cat([self.class_embedding(class_labels)[:, None], inputs], dim=1)
        features = F.dropout(features, self.config.token_dropout, self.training)
        angles = tuple(
            torch.cat([half, half], dim=-1)[None].to(features.dtype) for half in self.rotary_angles(codes.shape[1:])
        )
        mask = create_causal_mask(
            config=self.config, inputs_embeds=features, attention_mask=None, past_key_values=None, position_ids=None
        )
        for layer in self.layers:
            features = layer(features, attention_mask=mask, position_embeddings=angles)
        return self.head(self.norm(features)).view(*codes.shape, -1)

    def start_sampling(
        self, num_grids: int, code_shape: tuple[int, ...], class_labels: torch.Tensor
    ) -> "LlamaGenSamplingState":
        return LlamaGenSamplingState(self, code_shape, class_labels)


class LlamaGenSamplingState:
    """The `SamplingState` of a `LlamaGenPrior`.

    Args:
        prior: in eval mode and without gradients.
        code_shape: (height, width).
        class_labels: (grids,).
    """

    def __init__(self, prior: LlamaGenPrior, code_shape: tuple[int, ...], class_labels: torch.Tensor):
        angles = prior.rotary_angles(code_shape)
        self.decoder = prior.make_decoder(prior.layers, prior.norm, prior.head.weight, *angles, len(class_labels))
        self.embedding, self.newest = prior.embedding.weight, prior.class_embedding(class_labels)[:, None]

    def prefill(self, codes: torch.Tensor) -> None:
        self.newest = torch.cat([self.newest, F.embedding(codes, self.embedding)], dim=1)

    def next_logits(self) -> torch.Tensor:
        self.decoder.advance(self.newest)
        return self.decoder.logits()

    def append(self, codes: torch.Tensor) -> None:
        self.newest = F.embedding(codes[:, None], self.embedding)
