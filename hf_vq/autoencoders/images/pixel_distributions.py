"""Decoders that give every pixel a distribution over its 256 values: a softmax, a discretised logistic, or both."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook

from hf_vq.autoencoders.grids import mean_of_real
from hf_vq.autoencoders.outputs import AutoencoderOutput, ReconstructionOutput
from hf_vq.metrics.pixels import discretized_logistic_log_prob, discretized_logistic_log_probs, pixel_values
from hf_vq.processes import sum_over_processes
from hf_vq.quantizers.base import QuantizerOutput

NUM_VALUES = 256
START_LOG_SCALE = -1.5  # of an output of 0: training that had to move there from 0 would lose its first steps
MIN_LOG_SCALE = -7.0  # PixelCNN++'s: 0.12 pixel values, below which pixels that never vary would gain for ever


class SoftmaxPixels:
    """A logit for each of the 256 values of each channel of a pixel, as the VQ-VAE paper's CIFAR-10 model."""

    num_parameters = NUM_VALUES
    description = "256-way softmax for each channel of each pixel"

    @staticmethod
    def evaluate(
        parameters: torch.Tensor, sample: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The mean of the distribution and the log-probability of a sample.

        Args:
            parameters: (batch, channels x 256, height, width), the logits of a channel side by side.
            sample: (batch, channels, height, width) in [-1, 1], taken as the nearest 8-bit values; or None.

        Returns:
            The mean, (batch, channels, height, width) in [-1, 1], and nats of the same shape, None without a sample.
        """
        return evaluate_logits(parameters.movedim(1, -1).unflatten(-1, (-1, NUM_VALUES)), sample, parameters.dtype)


class LogisticPixels:
    """A logistic cut at the 8-bit values (PixelCNN++, https://arxiv.org/abs/1701.05517, eq. 2, one component).

    The decoder predicts location and log scale + 1.5 of each channel of each pixel. The sample is the location, the
    median.
    """

    num_parameters = 2
    description = "discretised logistic, location and scale predicted for each channel of each pixel"

    @staticmethod
    def evaluate(
        parameters: torch.Tensor, sample: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `SoftmaxPixels.evaluate`, but the parameters of a channel are two: location and log scale + 1.5."""
        location, log_scale = parameters.unflatten(1, (-1, 2)).unbind(2)
        median = location.clamp(-1, 1)
        if sample is None:
            return median, None
        log_scale = (log_scale.float() + START_LOG_SCALE).clamp_min(MIN_LOG_SCALE)
        return median, discretized_logistic_log_prob(sample, location.float(), log_scale, NUM_VALUES)

    @staticmethod
    @torch.no_grad()
    def start_scale(bias: torch.Tensor, error: torch.Tensor) -> None:
        """Sets the bias of a last layer such that scales start at those of an error.

        Args:
            bias: (channels x parameters of a channel,).
            error: (batch, channels, *space) of this process, location minus sample; all processes together count.
        """
        total = sum_over_processes(error.float().abs().transpose(0, 1).flatten(1).sum(dim=1))
        count = sum_over_processes(total.new_tensor(error.numel() / error.shape[1]))
        scale = total / count / (2 * math.log(2))  # of a logistic, whose mean absolute value is 2 ln 2 of them
        bias.unflatten(0, (error.shape[1], -1))[:, 1] = scale.log().clamp_min(MIN_LOG_SCALE) - START_LOG_SCALE


class LogisticSoftmaxPixels(LogisticPixels):
    """A softmax whose logits are the log-probabilities of a discretised logistic, plus 256 free ones.

    Free logits of 0 leave the logistic; they learn what it lacks, such as values that data prefers. A softmax alone
    has to learn that neighbouring values are alike.
    """

    num_parameters = 2 + NUM_VALUES
    description = "256-way softmax for each channel of each pixel, around a discretised logistic"

    @staticmethod
    def evaluate(
        parameters: torch.Tensor, sample: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `SoftmaxPixels.evaluate`; the parameters of a channel: location, log scale + 1.5 and 256 logits."""
        each = parameters.movedim(1, -1).unflatten(-1, (-1, 2 + NUM_VALUES)).float()
        location, log_scale, free = each.split([1, 1, NUM_VALUES], dim=-1)
        log_scale = (log_scale + START_LOG_SCALE).clamp_min(MIN_LOG_SCALE)
        logits = discretized_logistic_log_probs(location, log_scale, NUM_VALUES) + free
        return evaluate_logits(logits, sample, parameters.dtype)


def evaluate_logits(
    logits: torch.Tensor, sample: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`SoftmaxPixels.evaluate` of logits (batch, height, width, channels, 256), the mean in this dtype."""
    log_probs = logits.float().log_softmax(dim=-1)
    values = torch.linspace(-1, 1, NUM_VALUES, device=logits.device)
    mean = (log_probs.exp() * values).sum(dim=-1)  # not a product of matrices, which autocast would round
    mean = mean.movedim(-1, 1).to(dtype)
    if sample is None:
        return mean, None
    pixels = pixel_values(sample).movedim(1, -1)[..., None]
    return mean, log_probs.gather(-1, pixels)[..., 0].movedim(-1, 1)


PIXEL_DISTRIBUTIONS: dict[str, Any] = {
    "logistic": LogisticPixels,
    "logistic_softmax": LogisticSoftmaxPixels,
    "softmax": SoftmaxPixels,
}
BY_VALUE = (SoftmaxPixels, LogisticSoftmaxPixels)  # with a logit for each value


if TYPE_CHECKING:  # what it stands before
    from hf_vq.autoencoders.base import AutoencoderMixin as Host
else:
    Host = object


class PixelDecoder(Host):
    """For an autoencoder whose `reconstruction_loss` may be one of `PIXEL_DISTRIBUTIONS`; stands before its mixin.

    It gives `decode_parameters(latents)`, what its decoder ends in, and `vectors(codes)`, the latents of codes.
    """

    decode_parameters: Callable
    vectors: Callable

    @property
    def pixel_distribution(self) -> Any:
        """The distribution of a decoded pixel, None where the decoder gives the pixel alone."""
        return PIXEL_DISTRIBUTIONS.get(self.config.reconstruction_loss)

    @apply_forward_hook
    def decode(
        self, latents: torch.Tensor | tuple[torch.Tensor, ...], return_dict: bool = True
    ) -> ReconstructionOutput | tuple[torch.Tensor]:
        """Latents as given to samples (batch, channels, height, width) in [-1, 1].

        Args:
            latents: (batch, dim, *grid); of a hierarchy a tuple of them, coarse to fine.
        """
        sample, _ = self._evaluate(latents)
        return ReconstructionOutput(sample=sample) if return_dict else (sample,)

    @torch.no_grad()
    @apply_forward_hook
    def reconstruction_log_prob(self, sample: torch.Tensor, codes: Any) -> torch.Tensor:
        """Log-probability of samples given their codes, exact over the 256 values of every 8-bit pixel.

        Args:
            sample: (batch, channels, height, width) in [-1, 1], taken as the nearest 8-bit values.
            codes: (batch, *grid) or (batch, levels, *grid); of a hierarchy a tuple.

        Returns:
            (batch,) nats, at most 0.

        Raises:
            ValueError: a decoder without a distribution, or codes of another shape.
        """
        if self.pixel_distribution is None:
            raise ValueError(
                f"reconstruction_loss={self.config.reconstruction_loss!r} gives pixels no distribution, "
                f"{' or '.join(PIXEL_DISTRIBUTIONS)} does"
            )
        self.check_sample(sample)
        self.check_codes(codes)
        _, log_prob = self._evaluate(self.vectors(codes), sample)
        return log_prob.flatten(1).sum(dim=1)

    def decode_codes(self, codes: Any) -> torch.Tensor:
        return self.decode(self.vectors(codes)).sample

    def decoded_output(
        self, sample: torch.Tensor, latents: Any, quantized: QuantizerOutput, padding_mask: torch.Tensor | None
    ) -> AutoencoderOutput:
        """The output of `forward`: the sample decoded from latents, and as its loss the nats of a pixel's channel."""
        reconstruction, log_prob = self._evaluate(latents, sample)
        loss = None if log_prob is None else -mean_of_real(log_prob, padding_mask)
        return self.training_output(sample, reconstruction, quantized, padding_mask, reconstruction_loss=loss)

    @torch.no_grad()
    def with_reconstruction_loss(self, reconstruction_loss: str, reconstruction_weight: float | None = None) -> Self:
        """A copy whose pixels have another distribution, or for the first time one; its codes are the same.

        What the last layer gave for a pixel stays, further parameters start at 0: a decoder trained with "mse" becomes
        the location of a logistic, a "logistic" one the "logistic_softmax" with the same probabilities.

        Args:
            reconstruction_loss: as of the constructor.
            reconstruction_weight: the same; None: it stays.

        Raises:
            ValueError: to or from "softmax", which shares nothing with the others; what the constructor refuses.
        """
        losses = (self.config.reconstruction_loss, reconstruction_loss)
        if "softmax" in losses and losses[0] != losses[1]:
            raise ValueError(f"a decoder of reconstruction_loss={losses[0]!r} cannot become one of {losses[1]!r}")
        config = {name: value for name, value in self.config.items() if not name.startswith("_")}
        config["reconstruction_loss"] = reconstruction_loss
        if reconstruction_weight is not None:
            config["reconstruction_weight"] = reconstruction_weight
        model = type(self)(**config).to(self.device)
        factor, shift = 1.0, 0.0  # of the network's pixels, to what the last layer gives for them
        if self.pixel_distribution is None and model.pixel_distribution is not None:
            factor, shift = 1 / config["input_scale"], -config["input_shift"] / config["input_scale"]
        elif self.pixel_distribution is not None and model.pixel_distribution is None:
            factor, shift = config["input_scale"], config["input_shift"]
        state = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        for name, tensor in model.state_dict().items():  # those of the last layer differ, along one axis
            if name not in state:  # of a codebook that is yet to start
                continue
            for axis in [axis for axis, size in enumerate(tensor.shape) if state[name].shape[axis] != size]:
                given = state[name].movedim(axis, 0).unflatten(0, (self.config.in_channels, -1))
                state[name] = torch.zeros_like(tensor, dtype=given.dtype)
                taken = state[name].movedim(axis, 0).unflatten(0, (self.config.in_channels, -1))
                shared = min(given.shape[1], taken.shape[1])
                taken[:, :shared] = given[:, :shared]
                taken[:, 0] = taken[:, 0] * factor + (shift if name.endswith("bias") else 0)
        model.load_state_dict(state, assign=True)
        model.processor = self._processor
        return model.train(self.training)

    def _evaluate(self, latents, sample=None):
        parameters = self.decode_parameters(latents)
        if self.pixel_distribution is None:
            return parameters, None
        return self.pixel_distribution.evaluate(parameters, sample)


def decoder_channels(in_channels: int, reconstruction_loss: str) -> int:
    """Channels that a decoder ends in: those of the sample, times the parameters of a pixel's distribution."""
    distribution = PIXEL_DISTRIBUTIONS.get(reconstruction_loss)
    return in_channels * (1 if distribution is None else distribution.num_parameters)
