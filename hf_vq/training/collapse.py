"""A codebook of which little is used: told once, early, with the options that help."""

import logging
from typing import Any

from hf_vq.quantizers import Quantizer
from hf_vq.training.arguments import AutoencoderTrainingArguments

logger = logging.getLogger(__name__)

COLLAPSE_USAGE = 0.25  # share of the codes that could have occurred below which a codebook collapses
NARROW = 16  # axes of a code above which fewer help


class CollapseWatch:
    """Warns once in a run, with the first batch or evaluation that uses too few codes.

    Args:
        model: an autoencoder of this package, which trains.
        args: the training's options.
    """

    def __init__(self, model: Any, args: AutoencoderTrainingArguments):
        self.model, self.args, self.told = model, args, False

    def look(self, step: int, dead_codes: int, num_codes: int, perplexity: float) -> None:
        """Warn where the codebook has collapsed.

        Args:
            step: finished optimizer steps.
            dead_codes: of all levels and grids, how many never occurred.
            num_codes: that were counted; no more can have occurred.
            perplexity: of them.
        """
        size = sum(self.model.codebook_sizes) * self.model.num_levels
        used = size - dead_codes
        if self.told or used >= COLLAPSE_USAGE * min(size, num_codes):
            return
        self.told = True
        logger.warning(
            "Step %d: the codebook is collapsing, %d of %d codes are in use (perplexity %.1f). What helps: %s.",
            *(step, used, size, perplexity, ", ".join(self.remedies(step))),
        )

    def remedies(self, step: int) -> list[str]:
        """What helps against it that is not yet there, by the names of options."""
        quantizers = [module for module in self.model.modules() if isinstance(module, Quantizer)]
        found = []
        for name, without, better in (
            ("kmeans_init", False, "kmeans_init=True"),
            ("restart_threshold", 0, "restart_threshold=0.05"),
            ("entropy_weight", 0, "an entropy_weight such as 0.01"),
        ):
            if any(getattr(quantizer, name, None) == without for quantizer in quantizers):
                found.append(better)
        if "codebook_dim" in self.model.config and any(quantizer.code_dim > NARROW for quantizer in quantizers):
            found.append("a smaller codebook_dim such as 8")
        if "codebook_size" in self.model.config:
            found.append("a smaller codebook_size")
        found.append("a lower learning_rate")
        if self.args.adversarial_weight and step > self.args.discriminator_start_step:
            found.append("a later discriminator_start_step or more adversarial_ramp_steps")
        return found
