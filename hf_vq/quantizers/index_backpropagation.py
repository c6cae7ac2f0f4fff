"""A codebook whose every vector learns from every latent."""

from typing import Annotated, Any

import torch

from hf_vq.quantizers.distances import distance_logits, mean_distance
from hf_vq.quantizers.entropy import in_chunks
from hf_vq.quantizers.gradients import masked_mse
from hf_vq.quantizers.vector import VectorQuantizer
from hf_vq.ranges import Codebook, OneOf, Positive, Share, Weight, Width
from hf_vq.registry import register


@register("index_backpropagation")
class IndexBackpropagationQuantizer(VectorQuantizer):
    """IBQ (https://arxiv.org/abs/2412.02692): the most probable code, with the gradient of all their probabilities.

    The value is the code's vector e; the gradient is that of the mixture softmax(logits) E, so that it reaches all
    codes. loss = ||q - z||^2 + ||sg[e] - z||^2 + beta ||e - sg[z]||^2, where q is e with that gradient.

    Args:
        codebook_size: number of codes.
        dim: width of the latents.
        metric: "euclidean": the logits are -|z - e|^2 over the mean of that of the batch's latents and their
            codes, neither flat nor certain at any size of the latents. "dot": they are z.e, as in the
            paper's code, where long vectors win: without an entropy penalty few codes come into use, and with it the
            first hundreds of steps bring little. Configs that were saved without it mean "dot".
        beta: weight of the codebook term, 0 or more.
        entropy_weight: of the entropy penalty, 0 or more.
        kmeans_init, restart_threshold: see `CodebookQuantizer`. Configs that were saved without them mean False and
            0, a random codebook that gradients alone move.
        code_dim, entropy_temperature, entropy_offset, diversity: see `CodebookQuantizer`.

    Raises:
        ValueError: an argument out of its range.
    """

    stock_compatible = False  # its parameters have other names than stock's in a VQModel
    can_be_level = False

    def __init__(
        self,
        codebook_size: Codebook,
        dim: Width,
        *,
        metric: Annotated[str, OneOf(("euclidean", "dot"))] = "euclidean",
        beta: Weight = 0.25,
        kmeans_init: bool = True,
        restart_threshold: Share = 0.05,
        code_dim: Width | None = None,
        entropy_weight: Weight = 0.0,
        entropy_temperature: Positive = 0.01,
        entropy_offset: Share = 0.0,
        diversity: Weight = 1.0,
    ):
        super().__init__(
            codebook_size,
            dim,
            beta=beta,
            kmeans_init=kmeans_init,
            restart_threshold=restart_threshold,
            code_dim=code_dim,
            entropy_weight=entropy_weight,
            entropy_temperature=entropy_temperature,
            entropy_offset=entropy_offset,
            diversity=diversity,
        )
        self.metric = metric

    @classmethod
    def earlier_defaults(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Dot products with a random codebook that gradients alone moved."""
        return {"metric": "dot", "kmeans_init": False, "restart_threshold": 0.0}

    def _pass_gradient(self, rows, compared, quantized, codebook, counted):
        vectors = codebook.clone()  # restarts change the codebook before the gradient comes back
        euclidean = self.metric == "euclidean"
        temperature = mean_distance(compared, quantized, counted, self.training) if euclidean else None

        def mix(rows):
            logits = rows @ vectors.T if temperature is None else distance_logits(rows, vectors, temperature)
            return (logits.softmax(dim=1) @ vectors.detach(),)

        mixtures = [mixture for (mixture,) in in_chunks(mix, compared, width=self.codebook_size)]
        mixture = torch.cat(mixtures)
        return quantized + (mixture - mixture.detach())

    def _losses(self, rows, quantized, passed, valid):
        losses = {
            "commitment": masked_mse(rows, quantized.detach(), valid),
            "codebook": masked_mse(quantized, rows.detach(), valid),
            "index": masked_mse(passed, rows, valid),
        }
        return losses["index"] + losses["commitment"] + self.beta * losses["codebook"], losses
