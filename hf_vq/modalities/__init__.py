"""Kinds of signals; the only rooms that speak of pictures and sounds. Each module registers its modality."""

from hf_vq.modalities.audio import AUDIO
from hf_vq.modalities.audio_processor import AudioProcessor
from hf_vq.modalities.base import Modality
from hf_vq.modalities.image import IMAGE
from hf_vq.modalities.image_processor import ImageProcessor
from hf_vq.registry import MODALITIES

__all__ = ["AUDIO", "IMAGE", "MODALITIES", "AudioProcessor", "ImageProcessor", "Modality"]
