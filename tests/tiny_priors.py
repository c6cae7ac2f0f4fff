"""A prior of a user's own, over grids of any number of axes."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from hf_vq import AutoregressivePrior
from hf_vq.priors import PriorConfig
from hf_vq.priors.sampling import positions_first


class RasterConvPriorConfig(PriorConfig):
    model_type = "test_raster_conv"

    hidden_channels: int = 16
    num_levels: int = 1


class RasterConvPrior(AutoregressivePrior, PreTrainedModel):
    """PixelCNN's idea on any grid: causal convolutions over codes in raster order, cached as a window.

    Residual levels of a place are drawn in a row.
    """

    config_class = RasterConvPriorConfig
    base_model_prefix = "prior"
    kernel_size = 4

    def __init__(self, config):
        super().__init__(config)
        width = config.hidden_channels
        self.embedding = nn.Embedding(config.codebook_size, width)
        self.class_embedding = nn.Embedding(max(1, config.num_class_embeddings), width)
        self.convolution, self.head = nn.Conv1d(width, width, self.kernel_size), nn.Linear(width, config.codebook_size)
        self.post_init()

    def _init_weights(self, module):
        """torch's own initialisation is good enough."""

    @property
    def grid_dims(self):
        return len(self.config.code_shape)

    @property
    def has_levels(self):
        return self.config.num_levels > 1

    def code_order(self, code_shape):
        return positions_first(code_shape) if self.has_levels else None

    def forward(self, codes, class_labels=None, labels=None, return_loss=True, lengths=None):
        return self.run_forward(codes, labels, return_loss, lengths=lengths, class_labels=class_labels)

    def predict(self, codes, class_labels=None):
        places = self.drawing_places(codes.shape[1:])
        before = self.embedding(codes.flatten(1)[:, places[:-1]])
        hidden = torch.cat([self.start(len(codes), class_labels), before], dim=1)
        hidden = F.pad(hidden.transpose(1, 2), (self.kernel_size - 1, 0))
        logits = self.head(self.convolution(hidden).relu().transpose(1, 2))
        return logits[:, places.argsort()].view(*codes.shape, -1)

    def start(self, num_grids, class_labels):
        labels = torch.zeros(num_grids, dtype=torch.int64) if class_labels is None else class_labels
        return self.class_embedding(labels)[:, None]

    def start_sampling(self, num_grids, code_shape, class_labels=None):
        return RasterConvState(self, self.start(num_grids, class_labels))


class RasterConvState:
    def __init__(self, prior, start):
        self.prior = prior
        self.window = F.pad(start, (0, 0, prior.kernel_size - 1, 0))

    def next_logits(self):
        hidden = self.prior.convolution(self.window.transpose(1, 2)).relu()
        return self.prior.head(hidden[..., 0])

    def append(self, codes):
        self.window = torch.cat([self.window[:, 1:], self.prior.embedding(codes)[:, None]], dim=1)
