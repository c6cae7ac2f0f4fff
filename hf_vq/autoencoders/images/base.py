"""What autoencoders of images share."""

from hf_vq.autoencoders.base import AutoencoderMixin
from hf_vq.modalities.image import IMAGE


class ImageAutoencoderMixin(AutoencoderMixin):
    """An autoencoder of samples (batch, channels, height, width)."""

    modality = IMAGE.name
    space_dims = 2
