"""A quantizer of a user's own."""

import torch

from hf_vq.quantizers import Quantizer


class SignQuantizer(Quantizer):
    """A bit for the sign of each channel: 2^dim codes, nothing to learn."""

    quantizer_type = "sign"

    def residual_scale(self, index):
        return 2.0**-index

    def _codes(self, rows):
        return ((rows > 0) * 2 ** torch.arange(self.dim)).sum(1)

    def _vectors(self, codes):
        return (codes[:, None] >> torch.arange(self.dim) & 1) * 2.0 - 1


# as `quantizer_variants.VARIANTS`: alone, as a level and as a group
SIGNS = {
    "sign": ("sign", 64, {}),
    "residual sign": ("residual", 64, {"num_levels": 2, "level_type": "sign"}),
    "product sign": ("product", 8, {"groups": 2, "group_type": "sign"}),
}
