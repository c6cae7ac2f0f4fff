"""Options of the losses beside the reconstruction's: perceptual and adversarial."""

from dataclasses import dataclass, field, fields
from typing import Annotated

from hf_vq.losses.adversarial import ADVERSARIAL_LOSSES
from hf_vq.ranges import Chance, Count, OneOf, Positive, Size, Weight

PERCEPTUAL = "none, random, vgg or alex (LPIPS), a file of their weights, a folder or repo id of a trained network"
DISCRIMINATOR_INIT = "folder or repo id of a trained discriminator, or a checkpoint such as taming-transformers'"

NEEDS = {  # options by the one without which they do nothing
    "perceptual": ("perceptual_weight",),
    "adversarial_weight": (
        "adversarial_loss", "adaptive_weight", "adaptive_weight_maximum", "discriminator_start_step",
        "adversarial_ramp_steps", "discriminator_config", "discriminator_init", "discriminator_learning_rate",
        "discriminator_adam_beta1", "discriminator_adam_beta2", "lecam_weight", "lecam_decay", "r1_weight",
        "r1_interval",
    ),
    "adaptive_weight": ("adaptive_weight_maximum",),
    "lecam_weight": ("lecam_decay",),
    "r1_weight": ("r1_interval",),
}  # fmt: skip


@dataclass(kw_only=True)
class AdversarialArguments:
    """What VQGAN (https://arxiv.org/abs/2012.09841) adds to a reconstruction's loss; by default nothing.

    Raises:
        ValueError: an option out of its range, or one that does nothing beside the others.
    """

    perceptual: str = field(default="none", metadata={"help": PERCEPTUAL})
    perceptual_weight: Weight = field(default=1.0, metadata={"help": "of the perceptual loss"})
    adversarial_weight: Weight = field(
        default=0.0, metadata={"help": "of the adversarial loss, VQGAN's is 0.8; 0: no discriminator"}
    )
    adversarial_loss: Annotated[str, OneOf(ADVERSARIAL_LOSSES)] = field(
        default="hinge", metadata={"help": "of discriminator and autoencoder: hinge, vanilla or non_saturating"}
    )
    adaptive_weight: bool = field(
        default=True, metadata={"help": "weigh the adversarial gradient by the others' at the last layer, as VQGAN"}
    )
    adaptive_weight_maximum: Positive = field(default=1e4, metadata={"help": "bound on that weight"})
    discriminator_start_step: Count = field(default=0, metadata={"help": "optimizer steps before it trains"})
    adversarial_ramp_steps: Count = field(
        default=500, metadata={"help": "the adversarial loss sets in linearly over so many steps; 0: at once"}
    )
    discriminator_config: dict | str | None = field(
        default=None, metadata={"help": "arguments of PatchDiscriminator; --discriminator_config.norm batch sets one"}
    )
    discriminator_init: str | None = field(default=None, metadata={"help": DISCRIMINATOR_INIT})
    discriminator_learning_rate: Positive | None = field(default=None, metadata={"help": "none: learning_rate"})
    discriminator_adam_beta1: Chance = field(default=0.5, metadata={"help": "its AdamW's first decay"})
    discriminator_adam_beta2: Chance = field(default=0.9, metadata={"help": "its AdamW's second decay"})
    lecam_weight: Weight = field(default=0.0, metadata={"help": "of LeCam regularisation"})
    lecam_decay: Chance = field(default=0.999, metadata={"help": "of LeCam's averages of logits"})
    r1_weight: Weight = field(default=0.0, metadata={"help": "of the R1 gradient penalty, gamma"})
    r1_interval: Size = field(default=16, metadata={"help": "R1 every so many steps, so many times as heavy"})

    def check_adversarial(self) -> None:
        """Raise a ValueError for options that do not fit each other."""
        self.discriminator_adam_beta1 = float(self.discriminator_adam_beta1)  # torch wants floats
        self.discriminator_adam_beta2 = float(self.discriminator_adam_beta2)
        if not isinstance(self.discriminator_config, dict | None):
            raise ValueError(
                f"discriminator_config={self.discriminator_config!r} must be a mapping of names to values"
            )
        defaults = {each.name: each.default for each in fields(self)}
        for needed, names in NEEDS.items():
            without = getattr(self, needed)
            if without not in (0, "none"):
                continue
            for name in names:
                given = getattr(self, name)
                if given and given != defaults[name]:  # switched off is no fault
                    raise ValueError(f"{name}={given!r} is given for nothing beside {needed}={without!r}")
        if self.discriminator_init is not None and self.discriminator_config:
            raise ValueError(
                f"discriminator_config={self.discriminator_config!r} given beside "
                f"discriminator_init={self.discriminator_init!r}, which has its own"
            )
