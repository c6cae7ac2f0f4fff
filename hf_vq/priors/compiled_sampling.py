"""Sampling of Llama decoders where a step is one compiled graph, on a GPU a CUDA graph."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hf_vq.priors.decoder_sampling import DecoderState, LayerWeights

FIRST_LENGTH = 64  # positions that attention reads at first; then twice as many, and so on
MOST_GRAPHS = 256  # for all batch sizes and lengths of a process


class CompiledDecoderState(DecoderState):
    """A `DecoderState` whose step is a graph compiled for 64 positions, then for 128, 256, ...

    Attention reads as many positions as the graph was compiled for; a mask hides those without a token. The memory
    stays the same from call to call, since CUDA graphs are bound to it: `restart` fills it with weights anew.

    Args:
        layers, norm, head, cosines, sines, num_rows: see `DecoderState`.
        compiled_step: `decoder_step`, compiled.
    """

    def __init__(
        self,
        layers: nn.ModuleList,
        norm: nn.Module,
        head: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        num_rows: int,
        compiled_step: Callable[..., torch.Tensor],
    ):
        super().__init__(layers, norm, head, cosines, sines, num_rows)
        self.compiled_step, self.num_positions = compiled_step, len(cosines)
        self.angles = torch.view_as_real(self.rotations).contiguous()
        self.cache = [torch.zeros_like(layer) for layer in self.cache]  # graphs write whole tensors, not parts of one
        self.matrices = [[w.attention_in, w.attention_out, w.mlp_in, w.mlp_out] for w in self.layers]
        self.place = torch.zeros(1, dtype=torch.int64, device=head.device)
        self.inputs = head.new_empty(num_rows, self.hidden_size)  # strides are part of what a graph is compiled for
        for tensors in ((self.place, self.inputs, self.head, self.angles), self.cache, *self.matrices):
            for tensor in tensors:
                torch._dynamo.mark_static_address(tensor)

    def fits(self, head: torch.Tensor, cosines: torch.Tensor, num_rows: int) -> bool:
        """Whether `restart` can serve a call of these sizes (layers stay those of the prior)."""
        mine = (self.num_rows, self.num_positions, self.head.dtype, self.head.device, self.head.is_inference())
        return mine == (num_rows, len(cosines), head.dtype, head.device, torch.is_inference_mode_enabled())

    def restart(
        self, layers: nn.ModuleList, norm: nn.Module, head: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor
    ) -> None:
        """Forget all tokens and take the weights anew, in the same memory."""
        for layer, matrices, cache in zip(layers, self.matrices, self.cache, strict=True):
            new = LayerWeights.of(layer)
            fresh = (new.attention_in, new.attention_out, new.mlp_in, new.mlp_out)
            for matrix, values in zip(matrices, fresh, strict=True):
                matrix.copy_(values)
            cache.zero_()  # what the mask hides must be finite
        self.head.copy_((head * norm.weight).T)
        self.angles.copy_(torch.stack([cosines, sines], dim=-1))
        self.rotations.copy_(torch.view_as_complex(self.angles))
        self.position = 0

    def step(self, features: torch.Tensor) -> None:
        length = min(max(FIRST_LENGTH, 1 << self.position.bit_length()), self.num_positions)
        self.place.fill_(self.position)
        self.inputs.copy_(features)
        torch.compiler.cudagraph_mark_step_begin()
        with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):
            self.next_logits = self.compiled_step(
                self.inputs,
                self.place,
                self.matrices,
                self.cache,
                self.angles,
                self.head,
                length,
                self.scaling,
                self.epsilon,
            )
        self.position += 1

    def logits(self) -> torch.Tensor:
        return self.next_logits


def decoder_step(
    features: torch.Tensor,
    place: torch.Tensor,
    matrices: list[list[torch.Tensor]],
    cache: list[torch.Tensor],
    angles: torch.Tensor,
    head: torch.Tensor,
    length: int,
    scaling: float,
    epsilon: float,
) -> torch.Tensor:
    """Logits (rows, num_logits) after one more token of every row, in operations that compile into one graph.

    Args:
        features: (rows, hidden_size), embedded.
        place: (1,) int64, the position of the token.
        matrices: of each layer, as in `LayerWeights`.
        cache: of each layer, (2, rows * key heads, positions, head_dim); takes the token's keys and values.
        angles: (positions, head_dim / 2, 2), cosines and sines.
        head: (hidden_size, num_logits).
        length: positions that attention reads, above `place`.
        scaling: of the attention scores.
        epsilon: of the norms.
    """
    rows, hidden_size = features.shape
    head_dim = cache[0].shape[3]
    num_keys = cache[0].shape[1] // rows
    seen = torch.arange(length, device=features.device)[None] <= place
    cosine, sine = angles.index_select(0, place)[:, None].unbind(-1)
    for (attention_in, attention_out, mlp_in, mlp_out), states in zip(matrices, cache, strict=True):
        heads = (F.rms_norm(features, (hidden_size,), eps=epsilon) @ attention_in).unflatten(1, (-1, head_dim))
        first, second = heads[:, :-num_keys].to(angles.dtype).unflatten(2, (-1, 2)).unbind(3)
        rotated = torch.stack([first * cosine - second * sine, first * sine + second * cosine], dim=3)
        rotated = rotated.flatten(2).to(heads.dtype)
        new = torch.stack([rotated[:, -num_keys:], heads[:, -num_keys:]])  # (2, rows, key heads, head_dim)
        states.index_copy_(2, place, new.flatten(1, 2)[:, :, None])
        keys, values = states[:, :, :length].unflatten(1, (rows, num_keys)).unbind(0)
        queries = rotated[:, :-num_keys, None]  # (rows, heads, 1, head_dim)
        attended = F.scaled_dot_product_attention(queries, keys, values, seen, scale=scaling, enable_gqa=True)
        features = features + attended.flatten(1) @ attention_out
        gate, up = (F.rms_norm(features, (hidden_size,), eps=epsilon) @ mlp_in).chunk(2, dim=1)
        features = features + (F.silu(gate) * up) @ mlp_out
    return F.rms_norm(features, (hidden_size,), eps=epsilon) @ head


class StepCompiler:
    """What `compile_sampling` keeps: compiled steps, and the decoder of the last call, for the next one of its sizes.

    Args:
        options: of `torch.compile`; without any, "reduce-overhead" on a GPU.
    """

    def __init__(self, options: dict):
        self.options, self.state, self.compiled = options, None, {}

    def start(
        self,
        layers: nn.ModuleList,
        norm: nn.Module,
        head: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        num_rows: int,
    ) -> CompiledDecoderState:
        if self.state is not None and self.state.fits(head, cosines, num_rows):
            self.state.restart(layers, norm, head, cosines, sines)
            return self.state
        kind, self.state = head.device.type, None  # not two at once in memory
        if kind not in self.compiled:
            options = {"mode": "reduce-overhead"} if kind == "cuda" and not self.options else self.options
            self.compiled[kind] = torch.compile(decoder_step, fullgraph=True, dynamic=False, **options)
        self.state = CompiledDecoderState(layers, norm, head, cosines, sines, num_rows, self.compiled[kind])
        return self.state

    def __getstate__(self):
        return self.options  # copies and pickles compile for themselves

    def __setstate__(self, options):
        self.__init__(options)


class CompiledSampling:
    """The part of a prior of Llama layers that lets its sampling be compiled."""

    step_compiler: StepCompiler | None = None

    def compile_sampling(self, **options: Any) -> None:
        """Compile the steps of `sample` from now on; its codes stay the same up to the rounding of sums.

        Meant for GPUs: on a CPU the steps are about 1.2 times faster uncompiled (benchmarks/sampling.py --compile).
        Every new batch size or length of the sequence compiles, which takes a minute or so; weights may change between
        calls. Calls share one cache: not for two at a time. It stays in memory with a copy of the weights.

        Args:
            options: of `torch.compile`, such as `mode` or `backend`; none is "reduce-overhead" on a GPU, which is CUDA
                graphs, and inductor's defaults elsewhere.
        """
        self.step_compiler = StepCompiler(options)

    def make_decoder(
        self,
        layers: nn.ModuleList,
        norm: nn.Module,
        head: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        num_rows: int,
    ) -> DecoderState:
        start = DecoderState if self.step_compiler is None else self.step_compiler.start
        return start(layers, norm, head, cosines, sines, num_rows)
