"""The smallest task of two networks: an autoencoder, and a discriminator that tells samples from reconstructions."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import get_scheduler

from hf_vq.training.loop import TrainingLoop
from hf_vq.training.tasks import Reconstruction, Turn


def tiny_discriminator(channels=4):
    return nn.Sequential(nn.Conv2d(1, channels, 2), nn.LeakyReLU(0.2), nn.Dropout(0.1), nn.Conv2d(channels, 1, 2))


class Adversarial(Reconstruction):
    """Hinge losses (https://arxiv.org/abs/1705.02894); the autoencoder's has VQGAN's adaptive weight.

    Args:
        weight: of the discriminator's word in the autoencoder's loss.
        start_step: the discriminator trains, and is asked, from then on.
    """

    def __init__(self, model, discriminator, args, weight=0.5, start_step=4):
        super().__init__(model, args)
        self.discriminator, self.weight, self.start_step = discriminator, weight, start_step
        self.modules["discriminator"] = discriminator

    def make_turns(self, max_steps):
        optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=2e-3)
        schedule = get_scheduler("linear", optimizer, 0, max_steps - self.start_step)
        second = Turn("discriminator", self.discriminator, optimizer, schedule, self.judge, self.start_step)
        return [*super().make_turns(max_steps), second]

    def before_turn(self, turn, step):
        super().before_turn(turn, step)
        self.asked = step >= self.start_step

    def loss(self, batch, output):
        loss, terms = super().loss(batch, output)
        adversarial = -self.discriminator(output.sample).mean()
        last_layer = self.autoencoder.last_layer
        own, other = (
            torch.autograd.grad(term, last_layer, retain_graph=True)[0].norm()
            for term in (output.reconstruction_loss, adversarial)
        )
        weight = self.weight * self.asked * (own / (other + 1e-6)).detach()
        return loss + weight * adversarial, terms | {"loss_adversarial": adversarial, "adaptive_weight": weight}

    def judge(self, module, batch):
        with torch.no_grad():
            reconstruction = self.autoencoder(batch["sample"]).sample
        real, fake = module(torch.cat([batch["sample"], reconstruction])).chunk(2)
        terms = {"real": F.relu(1 - real).mean(), "fake": F.relu(1 + fake).mean()}
        return sum(terms.values()), terms


def train_adversarial(model, discriminator, dataset, args, eval_dataset=None, callbacks=(), **options):
    task = Adversarial(model, discriminator, args, **options)
    return TrainingLoop(task, dataset, args, eval_dataset, callbacks).train()
