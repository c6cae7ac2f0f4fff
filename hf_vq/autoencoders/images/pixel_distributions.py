"""Decoders that give every pixel a distribution over its 256 values: a softmax, or a discretised logistic."""

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook

from hf_vq.autoencoders.base import ReconstructionOutput
from hf_vq.metrics.pixels import discretized_logistic_log_prob, pixel_values

NUM_VALUES = 256
START_LOG_SCALE = -1.5  # of an output of 0: training that had to move there from 0 would lose its first steps
MIN_LOG_SCALE = -7.0  # PixelCNN++'s: 0.12 pixel values, below which pixels that never vary would gain for ever


class SoftmaxPixels:
    """A logit for each of the 256 values of each channel of a pixel, as the VQ-VAE paper's CIFAR-10 model."""

    num_parameters = NUM_VALUES
    description = "256-way softmax for each channel of each pixel"

    @staticmethod
    def evaluate(parameters, sample=None):
        """The mean of the distribution and the log-probability of a sample.

        Args:
            parameters: (batch, channels x 256, height, width), the logits of a channel side by side.
            sample: (batch, channels, height, width) in [-1, 1], taken as the nearest 8-bit values; or None.

        Returns:
            The mean, (batch, channels, height, width) in [-1, 1], and nats of the same shape, None without a sample.
        """
        logits = parameters.movedim(1, -1).unflatten(-1, (-1, NUM_VALUES)).float()
        log_probs = logits.log_softmax(dim=-1)  # (batch, height, width, channels, 256)
        values = torch.linspace(-1, 1, NUM_VALUES, device=logits.device)
        mean = (log_probs.exp() * values).sum(dim=-1)  # not a product of matrices, which autocast would round
        mean = mean.movedim(-1, 1).to(parameters.dtype)
        if sample is None:
            return mean, None
        pixels = pixel_values(sample).movedim(1, -1)[..., None]
        return mean, log_probs.gather(-1, pixels)[..., 0].movedim(-1, 1)


class LogisticPixels:
    """A logistic cut at the 8-bit values (PixelCNN++, https://arxiv.org/abs/1701.05517, eq. 2, one component).

    The decoder predicts location and log scale + 1.5 of each channel of each pixel. The sample is the location, the
    median.
    """

    num_parameters = 2
    description = "discretised logistic, location and scale predicted for each channel of each pixel"

    @staticmethod
    def evaluate(parameters, sample=None):
        """As `SoftmaxPixels.evaluate`, but the parameters of a channel are two: location and log scale + 1.5."""
        location, log_scale = parameters.unflatten(1, (-1, 2)).unbind(2)
        median = location.clamp(-1, 1)
        if sample is None:
            return median, None
        log_scale = (log_scale.float() + START_LOG_SCALE).clamp_min(MIN_LOG_SCALE)
        return median, discretized_logistic_log_prob(sample, location.float(), log_scale, NUM_VALUES)


PIXEL_DISTRIBUTIONS = {"logistic": LogisticPixels, "softmax": SoftmaxPixels}


class PixelDecoder:
    """For an autoencoder whose `reconstruction_loss` may be "logistic" or "softmax"; stands before its mixin.

    It gives `decode_parameters(latents)`, what its decoder ends in, and `vectors(codes)`, the latents of codes.
    """

    @property
    def pixel_distribution(self):
        """The distribution of a decoded pixel, None where the decoder gives the pixel alone."""
        return PIXEL_DISTRIBUTIONS.get(self.config.reconstruction_loss)

    @apply_forward_hook
    def decode(self, latents, return_dict=True):
        """Latents as given to samples (batch, channels, height, width) in [-1, 1].

        Args:
            latents: (batch, dim, *grid); of a hierarchy a tuple of them, coarse to fine.
        """
        sample, _ = self._evaluate(latents)
        return ReconstructionOutput(sample=sample) if return_dict else (sample,)

    @torch.no_grad()
    @apply_forward_hook
    def reconstruction_log_prob(self, sample, codes):
        """Log-probability of samples given their codes, exact over the 256 values of every 8-bit pixel.

        Args:
            sample: (batch, channels, height, width) in [-1, 1], taken as the nearest 8-bit values.
            codes: (batch, *grid) or (batch, levels, *grid); of a hierarchy a tuple.

        Returns:
            (batch,) nats, at most 0.

        Raises:
            ValueError: a decoder without a distribution.
        """
        if self.pixel_distribution is None:
            raise ValueError(
                f"reconstruction_loss={self.config.reconstruction_loss!r} gives pixels no distribution, "
                f"{' or '.join(PIXEL_DISTRIBUTIONS)} does"
            )
        self.check_sample(sample)
        _, log_prob = self._evaluate(self.vectors(codes), sample)
        return log_prob.flatten(1).sum(dim=1)

    def decoded_output(self, sample, latents, quantized):
        """The output of `forward`: the sample decoded from latents, and as its loss the nats of a pixel's channel."""
        reconstruction, log_prob = self._evaluate(latents, sample)
        loss = None if log_prob is None else -log_prob.mean()
        return self.training_output(sample, reconstruction, quantized, reconstruction_loss=loss)

    def _evaluate(self, latents, sample=None):
        parameters = self.decode_parameters(latents)
        if self.pixel_distribution is None:
            return parameters, None
        return self.pixel_distribution.evaluate(parameters, sample)


def decoder_channels(in_channels, reconstruction_loss):
    """Channels that a decoder ends in: those of the sample, times the parameters of a pixel's distribution."""
    distribution = PIXEL_DISTRIBUTIONS.get(reconstruction_loss)
    return in_channels * (1 if distribution is None else distribution.num_parameters)
