"""What autoencoders of images share."""

from hf_vq.autoencoders.base import AutoencoderMixin


class ImageAutoencoderMixin(AutoencoderMixin):
    """An autoencoder of samples (batch, channels, height, width)."""

    modality = "image"
    space_dims = 2
