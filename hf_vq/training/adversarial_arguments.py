"""Options of the losses beside the reconstruction's: perceptual, of spectra, adversarial."""

from dataclasses import dataclass, field, fields
from typing import Annotated

from hf_vq.losses import ADVERSARIAL_LOSSES, DISCRIMINATORS
from hf_vq.ranges import Chance, Count, OneOf, Positive, Size, Weight

PERCEPTUAL = "none, random, vgg or alex (LPIPS), a file of their weights, a folder or repo id of a trained network"
MEL_CONFIG = "arguments of MelLoss; --mel_config.num_mels 64 sets one"
DISCRIMINATOR_TYPE = "{}; none: patch, or multi_scale_stft for signals".format(", ".join(DISCRIMINATORS))
DISCRIMINATOR_CONFIG = "arguments of the discriminator; --discriminator_config.hidden_channels 32 sets one"
FEATURE_MATCHING = "of the distance of the discriminator's features; EnCodec's is 3, DAC's 2 with features summed"
BALANCER = "weigh terms by the norms of their gradients at the reconstruction, EnCodec's balancer"
DISCRIMINATOR_INIT = "folder or repo id of a trained discriminator, or a checkpoint such as taming-transformers'"

NEEDS = {  # options by the one without which they do nothing
    "perceptual": ("perceptual_weight",),
    "mel_weight": ("mel_config",),
    "spectral_weight": ("spectral_config",),
    "loss_balancer": ("balancer_norm", "balancer_decay"),
    "adversarial_weight": (
        "adversarial_loss", "adaptive_weight", "adaptive_weight_maximum", "discriminator_start_step",
        "adversarial_ramp_steps", "discriminator_type", "discriminator_config", "discriminator_init",
        "discriminator_learning_rate", "discriminator_adam_beta1", "discriminator_adam_beta2", "lecam_weight",
        "lecam_decay", "r1_weight", "r1_interval", "feature_matching_weight",
    ),
    "adaptive_weight": ("adaptive_weight_maximum",),
    "feature_matching_weight": ("feature_matching_loss",),
    "lecam_weight": ("lecam_decay",),
    "r1_weight": ("r1_interval",),
}  # fmt: skip


@dataclass(kw_only=True)
class AdversarialArguments:
    """Losses beside the reconstruction's, by default none.

    VQGAN (https://arxiv.org/abs/2012.09841) has a perceptual and an adversarial one, codecs of signals more.

    Raises:
        ValueError: an option out of its range, or one that does nothing beside the others.
    """

    perceptual: str = field(default="none", metadata={"help": PERCEPTUAL})
    perceptual_weight: Weight = field(default=1.0, metadata={"help": "of the perceptual loss"})
    mel_weight: Weight = field(default=0.0, metadata={"help": "of signals: of the distance of mels"})
    mel_config: dict | str | None = field(default=None, metadata={"help": MEL_CONFIG})
    spectral_weight: Weight = field(default=0.0, metadata={"help": "of signals: of the distance of spectra"})
    spectral_config: dict | str | None = field(default=None, metadata={"help": "arguments of SpectralLoss"})
    loss_balancer: bool = field(default=False, metadata={"help": BALANCER})
    balancer_norm: Positive = field(default=1.0, metadata={"help": "of all balanced gradients together, an item"})
    balancer_decay: Chance = field(default=0.999, metadata={"help": "of the balancer's averages of norms"})
    adversarial_weight: Weight = field(
        default=0.0, metadata={"help": "of the adversarial loss, VQGAN's is 0.8; 0: no discriminator"}
    )
    adversarial_loss: Annotated[str, OneOf(ADVERSARIAL_LOSSES)] = field(
        default="hinge", metadata={"help": "of both: " + ", ".join(ADVERSARIAL_LOSSES)}
    )
    adaptive_weight: bool = field(
        default=True, metadata={"help": "weigh the adversarial gradient by the others' at the last layer, as VQGAN"}
    )
    adaptive_weight_maximum: Positive = field(default=1e4, metadata={"help": "bound on that weight"})
    discriminator_start_step: Count = field(default=0, metadata={"help": "optimizer steps before it trains"})
    adversarial_ramp_steps: Count = field(
        default=500, metadata={"help": "the adversarial loss sets in linearly over so many steps; 0: at once"}
    )
    discriminator_type: Annotated[str, OneOf(DISCRIMINATORS)] | None = field(
        default=None, metadata={"help": DISCRIMINATOR_TYPE}
    )
    discriminator_config: dict | str | None = field(default=None, metadata={"help": DISCRIMINATOR_CONFIG})
    discriminator_init: str | None = field(default=None, metadata={"help": DISCRIMINATOR_INIT})
    discriminator_learning_rate: Positive | None = field(default=None, metadata={"help": "none: learning_rate"})
    discriminator_adam_beta1: Chance = field(default=0.5, metadata={"help": "its AdamW's first decay"})
    discriminator_adam_beta2: Chance = field(default=0.9, metadata={"help": "its AdamW's second decay"})
    lecam_weight: Weight = field(default=0.0, metadata={"help": "of LeCam regularisation"})
    lecam_decay: Chance = field(default=0.999, metadata={"help": "of LeCam's averages of logits"})
    r1_weight: Weight = field(default=0.0, metadata={"help": "of the R1 gradient penalty, gamma"})
    r1_interval: Size = field(default=16, metadata={"help": "R1 every so many steps, so many times as heavy"})

    feature_matching_weight: Weight = field(default=0.0, metadata={"help": FEATURE_MATCHING})
    feature_matching_loss: Annotated[str, OneOf(("relative", "absolute"))] = field(
        default="relative", metadata={"help": "relative to the size of the features, EnCodec's, or absolute"}
    )

    def check_adversarial(self) -> None:
        """Raise a ValueError for options that do not fit each other."""
        self.discriminator_adam_beta1 = float(self.discriminator_adam_beta1)  # torch wants floats
        self.discriminator_adam_beta2 = float(self.discriminator_adam_beta2)
        for name in ("discriminator_config", "mel_config", "spectral_config"):
            if not isinstance(getattr(self, name), dict | None):
                raise ValueError(f"{name}={getattr(self, name)!r} must be a mapping of names to values")
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
        terms = ("adversarial_weight", "mel_weight", "spectral_weight")
        if self.loss_balancer and self.perceptual == "none" and not any(getattr(self, name) for name in terms):
            raise ValueError(f"loss_balancer=True balances nothing without perceptual, {' or '.join(terms)}")
        if self.loss_balancer and self.adversarial_weight and self.adaptive_weight:
            raise ValueError(
                "loss_balancer=True and adaptive_weight=True exclude each other: both weigh by norms of gradients"
            )
