"""Kinds of signals; the only rooms that speak of pictures. Each module registers its modality."""

from hf_vq.modalities.base import Modality
from hf_vq.modalities.image import MODALITIES
from hf_vq.modalities.image_processor import ImageProcessor

__all__ = ["MODALITIES", "ImageProcessor", "Modality"]
