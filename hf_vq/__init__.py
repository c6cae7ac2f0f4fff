"""hf_vq: vector-quantized models behind Hugging Face interfaces."""

__version__ = "0.1.0"
