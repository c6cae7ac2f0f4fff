"""Kinds of signals; the only rooms that speak of pictures. Each module registers its modality."""

from hf_vq.modalities.base import Modality
from hf_vq.modalities.image import IMAGE
from hf_vq.modalities.image_processor import ImageProcessor
from hf_vq.registry import MODALITIES

__all__ = ["IMAGE", "MODALITIES", "ImageProcessor", "Modality"]
