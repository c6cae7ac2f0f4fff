"""Codes as the tokens of a language model: one sequence of ids and back, and a vocabulary that has them."""

from hf_vq.tokens.flat import flatten_codes, unflatten_codes
from hf_vq.tokens.vocabulary import CodeVocabulary, add_code_tokens

__all__ = ["CodeVocabulary", "add_code_tokens", "flatten_codes", "unflatten_codes"]
