"""Kinds of signals; the only rooms that speak of pictures and sounds."""

from hf_vq.modalities.audio import AUDIO
from hf_vq.modalities.audio_processor import AudioProcessor
from hf_vq.modalities.base import Modality
from hf_vq.modalities.image import IMAGE
from hf_vq.modalities.image_processor import ImageProcessor
from hf_vq.registry import MODALITIES, register

for modality in (IMAGE, AUDIO):  # in the order of the command line's options
    register(modality)

__all__ = ["AUDIO", "IMAGE", "MODALITIES", "AudioProcessor", "ImageProcessor", "Modality"]
