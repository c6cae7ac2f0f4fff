"""A prior that is not autoregressive: its codes come in any order, several at a time, and see those already there."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from hf_vq.modes import evaluating
from hf_vq.priors import Prior, PriorConfig
from hf_vq.priors.base import PriorOutput
from hf_vq.priors.sampling import draw_codes, draw_uniforms


class ToyMaskedPriorConfig(PriorConfig):
    """Config of `ToyMaskedPrior`: `hidden_size` and `num_places`, the most codes of a grid."""

    model_type = "hf_vq_toy_masked"

    hidden_size: int = 16
    num_places: int = 16


class ToyMaskedPrior(Prior, PreTrainedModel):
    """Any-order prior whose codes see the mean of all codes that are there, before and after them.

    It draws in one of two orders, from the first code on or from the last, by chance. `log_prob` is the mean over both
    orders, a bound below the logarithm of their mixture.
    """

    config_class = ToyMaskedPriorConfig
    base_model_prefix = "prior"
    likelihood = "bound"
    sampling_options = ("num_steps",)
    grid_dims = 2

    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(config.codebook_size, config.hidden_size)
        self.class_embedding = nn.Embedding(max(1, config.num_class_embeddings), config.hidden_size)
        self.position_embedding = nn.Embedding(config.num_places, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.codebook_size)
        self.post_init()

    def _init_weights(self, module):
        pass  # as torch makes them

    def forward(self, codes, class_labels=None, labels=None, return_loss=True, lengths=None):
        codes, labels, conditions = self.check_inputs(codes, labels, lengths, class_labels=class_labels)
        hidden = torch.rand(codes.shape, device=codes.device) < 0.5 if self.training else torch.ones_like(codes).bool()
        logits = self.read(codes, ~hidden, **conditions)
        targets = (codes if labels is None else labels).masked_fill(~hidden, -100)
        return PriorOutput(F.cross_entropy(logits.movedim(-1, 1), targets) if return_loss else None, logits)

    def read(self, codes, seen, class_labels=None):
        """Logits of all codes (batch, *grid) from those that are seen."""
        seen = seen.flatten(1)[..., None]
        mean = (self.embedding(codes.flatten(1)) * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp(min=1)
        features = mean + self.position_embedding.weight[: seen.shape[1]]
        if class_labels is not None:
            features = features + self.class_embedding(class_labels)[:, None]
        return self.head(features.tanh()).view(*codes.shape, -1)

    @torch.no_grad()
    def log_prob(self, codes, lengths=None, **conditions):
        with evaluating(self):
            codes, labels, conditions = self.check_inputs(codes, None, lengths, **conditions)
            real = torch.ones_like(codes).bool() if labels is None else labels != -100
            places, total = torch.arange(codes[0].numel(), device=codes.device).view(codes.shape[1:]), 0
            for place in places.flatten():
                for seen in (places < place, places > place):
                    logits = self.read(codes, seen & real, **conditions)
                    nats = F.cross_entropy(logits.movedim(-1, 1), codes, reduction="none")
                    total = total - (nats * real).flatten(1)[:, place] / 2
        return total

    @torch.no_grad()
    def sample(
        self, batch_size=None, code_shape=None, *, num_steps=4, generator=None, progress_bar=None, **conditions
    ):
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        code_shape = self._check_code_shape(code_shape)
        batch_size, conditions = self._check_batch(batch_size, conditions, code_shape)
        count = torch.Size(code_shape).numel()
        uniforms = draw_uniforms(count + 1, batch_size, generator, self.device)
        codes = torch.zeros(batch_size, *code_shape, dtype=torch.int64, device=self.device)
        order = torch.arange(count, device=self.device).expand(batch_size, -1)
        order = torch.where(uniforms[-1][:, None] < 0.5, order, order.flip(1))
        seen = torch.zeros(batch_size, count, dtype=torch.bool, device=self.device)
        with evaluating(self):
            steps = order.split(-(-count // num_steps), dim=1)
            for places in steps if progress_bar is None else progress_bar(steps):
                logits = self.read(codes, seen, **conditions).flatten(1, -2)
                drawn = draw_codes(logits.flatten(0, 1), uniforms[:-1].T.flatten()).view(batch_size, count)
                codes.view(batch_size, count).scatter_(1, places, drawn.gather(1, places))
                seen.scatter_(1, places, True)
        return codes
