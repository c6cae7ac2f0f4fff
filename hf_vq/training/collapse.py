"""A codebook of which little is used: told once, early, with the options that help."""

import logging
from typing import Any

from hf_vq.quantizers import Quantizer
from hf_vq.training.arguments import AutoencoderTrainingArguments

logger = logging.getLogger(__name__)

COLLAPSE_USAGE = 0.25  # share of the codes that could have occurred below which a codebook collapses
NARROW = 16  # axes of a code above which fewer help


class CollapseWatch:
    """Warns once in a run: of an evaluation that uses too few codes, or of batches that do, and not more with time.

    (Many a codebook starts with few codes and gains others.)

    Args:
        model: an autoencoder of this package, which trains.
        args: the training's options.
    """

    def __init__(self, model: Any, args: AutoencoderTrainingArguments):
        self.model, self.args, self.told = model, args, False
        self.before = 0  # codes in use in the batch before

    def look_at_batch(self, step: int, dead_codes: int, positions: list[int], perplexity: float) -> None:
        """Warn where few codes are in use, and no more than in the batch before.

        Args:
            step: finished optimizer steps.
            dead_codes: of all levels and grids, how many did not occur.
            positions: of each grid, how many had a code; no more codes can have occurred.
            perplexity: of them.
        """
        sizes = self.model.codebook_sizes
        possible = sum(map(min, sizes, positions)) * self.model.num_levels
        used = sum(sizes) * self.model.num_levels - dead_codes
        if used <= self.before:
            self.look(step, dead_codes, possible, perplexity)
        self.before = used

    def look(self, step: int, dead_codes: int, possible: int, perplexity: float) -> None:
        """Warn where the codebook has collapsed.

        Args:
            step: finished optimizer steps.
            dead_codes: of all levels and grids, how many never occurred.
            possible: how many of them can have occurred at most.
            perplexity: of them.
        """
        size = sum(self.model.codebook_sizes) * self.model.num_levels
        used = size - dead_codes
        if self.told or used >= COLLAPSE_USAGE * min(size, possible):
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
