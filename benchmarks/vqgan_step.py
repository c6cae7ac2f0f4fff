"""A training step of a VQGAN: our loop beside a plain one that does the same, and what options give both.

    python benchmarks/vqgan_step.py

A `VQVAE` of f8 with an EMA codebook against a PatchGAN with hinge loss and adaptive weight, no perceptual term. Both
start from the same weights; after each step of ours the plain loop takes one, with the same options, and one without
any; the printed means of their losses show that they compute the same. Medians; seconds of the processor on a CPU. On
a GPU it also prints images a second and peak memory (not run).

One thread beside other work, batches of 8, 128 px but for bf16 (32 px; this CPU has no fast bfloat16):

| options of both | ours / plain | ours / plain float32 | plain / plain float32 | steps |
| --- | --- | --- | --- | --- |
| none | 1.026 | 1.025 | 0.999 | 24 |
| channels_last | 1.027 | 1.020 | 0.993 | 16 |
| torch_compile | 0.940 | 0.973 | 1.035 | 12 |
| bf16 | 1.033 | 11.6 | 11.2 | 6 |
"""

import argparse
import contextlib
import statistics
import tempfile
import time

import torch
import torch.nn.functional as F
from torch import nn
from transformers import TrainerCallback

from hf_vq import VQVAE
from hf_vq.training.autoencoder import AutoencoderTrainingArguments, make_task
from hf_vq.training.loop import TrainingLoop

OPTIONS = {
    "float32": {},
    "bf16": {"bf16": True},
    "channels_last": {"channels_last": True},
    "torch_compile": {"torch_compile": True},
}
WARM_UP = 5  # steps that are not timed: compilation, first allocations
CODES, WEIGHT, RATE = 1024, 0.4, 3e-4
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLOCK = time.perf_counter if DEVICE == "cuda" else time.process_time


class Residual(nn.Sequential):
    def __init__(self):
        super().__init__(nn.ReLU(), nn.Conv2d(96, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 96, 1))

    def forward(self, hidden):
        return hidden + super().forward(hidden)


class PlainVQVAE(nn.Module):
    """What VQVAE computes, with an EMA codebook of restarts; the last layer apart, for the adaptive weight."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(64, 96, 4, 2, 1), nn.ReLU(), nn.Conv2d(96, 96, 3, padding=1), nn.ReLU(),
            Residual(), Residual(), nn.ReLU(), nn.Conv2d(96, 8, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(8, 96, 3, padding=1), Residual(), Residual(), nn.ReLU(),
            nn.ConvTranspose2d(96, 64, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(),
        )  # fmt: skip
        self.last = nn.ConvTranspose2d(32, 3, 4, 2, 1)
        self.register_buffer("codebook", torch.zeros(CODES, 8))
        self.register_buffer("size", torch.ones(CODES))
        self.register_buffer("total", torch.zeros(CODES, 8))

    def forward(self, sample):
        """What the last layer takes, the quantizer's loss, and the latents (rows, 8) with their codes."""
        latents = self.encoder(sample).float()
        with torch.autocast(sample.device.type, enabled=False):
            rows = latents.movedim(1, -1).reshape(-1, 8)
            codes = torch.cdist(rows, self.codebook).argmin(dim=1)
            quantized = self.codebook[codes].view(*latents.movedim(1, -1).shape).movedim(-1, 1)
            loss = 0.25 * F.mse_loss(latents, quantized)
        return self.decoder(latents + (quantized - latents).detach()), loss, rows.detach(), codes

    @torch.no_grad()
    def update_codebook(self, rows, codes):
        self.size.lerp_(torch.bincount(codes, minlength=CODES).float(), 0.01)
        self.total.lerp_(torch.zeros_like(self.total).index_add_(0, codes, rows), 0.01)
        dead, mean = self.size < 0.05 * self.size.mean(), self.size.mean()
        fresh = rows[torch.randint(len(rows), (CODES,), device=rows.device)]
        self.size.copy_(torch.where(dead, mean, self.size))
        self.total.copy_(torch.where(dead[:, None], fresh * mean, self.total))
        count = self.size.sum()
        self.codebook.copy_(self.total / ((self.size + 1e-5) / (count + CODES * 1e-5) * count)[:, None])


def plain_discriminator():
    return nn.Sequential(
        nn.Conv2d(3, 32, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(32, 64, 4, 2, 1), nn.GroupNorm(32, 64), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(64, 128, 4, 1, 1), nn.GroupNorm(32, 128), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(128, 1, 4, 1, 1),
    )  # fmt: skip


class PlainLoop:
    """The training as one writes it down for one machine: two networks, two optimizers, a step.

    Args:
        task: ours before its first step, whose weights and codebook it starts from.
        images: (batch, 3, size, size).
        bf16, channels_last, torch_compile: as our options. Compiled code goes backward as a whole, so the last layer
            stays out of it, as in ours.
    """

    def __init__(self, task, images, bf16=False, channels_last=False, torch_compile=False):
        net, judge = PlainVQVAE(), plain_discriminator()
        copy_weights(task.autoencoder, net)
        copy_weights(task.discriminator, judge)
        quantizer = task.autoencoder.quantizer
        net.codebook, net.size, net.total = map(
            torch.clone, (quantizer.embedding.weight, quantizer.cluster_size, quantizer.embedding_sum)
        )
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.net = net.to(DEVICE, memory_format=memory_format)
        self.judge = judge.to(DEVICE, memory_format=memory_format)
        self.body, self.judging = (torch.compile(each) if torch_compile else each for each in (self.net, self.judge))
        self.images, self.memory_format = images, memory_format
        self.precision = torch.autocast(DEVICE, torch.bfloat16, enabled=bf16)
        self.optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.0)
        self.judges_optimizer = torch.optim.AdamW(judge.parameters(), RATE, (0.5, 0.9), weight_decay=0.0)
        self.losses = []

    def step(self):
        order = torch.randperm(len(self.images))
        sample = torch.stack([self.images[index] for index in order.tolist()]).to(DEVICE, non_blocking=True)
        sample = sample.contiguous(memory_format=self.memory_format)
        with self.precision:
            hidden, quantizer_loss, rows, codes = self.body(sample)
            output = self.net.last(hidden).float()
        loss = F.mse_loss(output, sample) + quantizer_loss
        leaf = output.detach().requires_grad_()
        with self.precision:
            (slope,) = torch.autograd.grad(-self.judging(leaf).float().mean(), leaf)
        adversarial = (output * slope).sum()
        own, other = (
            torch.autograd.grad(term, self.net.last.weight, retain_graph=True)[0].norm()
            for term in (loss, adversarial)
        )
        adaptive = (own / (other + 1e-4)).clamp(max=1e4)
        (loss + WEIGHT * adaptive * adversarial).backward()
        self.move(self.net, self.optimizer)
        self.net.update_codebook(rows, codes)
        with self.precision:
            real, fake = self.judging(torch.cat([sample, output.detach()])).float().chunk(2)
        judged = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
        judged.backward()
        self.move(self.judge, self.judges_optimizer)
        self.losses.append(torch.stack([F.mse_loss(output, sample), adaptive, judged]).detach())

    @staticmethod
    def move(module, optimizer):
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def copy_weights(source, target):
    """Parameters of one module to another that has the same in the same order."""
    for one, other in zip(source.parameters(), target.parameters(), strict=True):
        other.copy_(one)


class Images(torch.utils.data.Dataset):
    """Smooth images of one batch: in whatever order they come, a step computes the same."""

    def __init__(self, count, size):
        corners = torch.rand(count, 3, size // 8, size // 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
        self.images = F.interpolate(corners, size=size, mode="bicubic").clamp(-1, 1)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"sample": self.images[index]}


class Stopwatch:
    """Seconds, on a CPU those of this process alone, and MiB of what is done between two calls."""

    def __init__(self):
        self.begin()

    def begin(self):
        if DEVICE == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.bytes = torch.cuda.memory_allocated()
        self.begun = CLOCK()

    def end(self):
        if DEVICE == "cpu":
            return CLOCK() - self.begun, 0.0
        torch.cuda.synchronize()
        return CLOCK() - self.begun, (torch.cuda.max_memory_allocated() - self.bytes) / 2**20


class TakingTurns(TrainerCallback):
    """After each step of ours, one of every plain loop: what else the machine does meets all of them."""

    def __init__(self):
        self.others, self.watch, self.found = {}, Stopwatch(), {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.watch.begin()

    def on_step_end(self, args, state, control, **kwargs):
        self.found.setdefault("ours", []).append(self.watch.end())
        for name, loop in self.others.items():
            self.watch.begin()
            loop.step()
            self.found.setdefault(name, []).append(self.watch.end())
        self.watch.begin()


def measure(name, options):
    """Medians {who: (seconds, MiB)} of a step, and mean figures of the whole run, ours and the plain loop's."""
    torch.compiler.reset()
    torch.manual_seed(0)
    model = VQVAE(
        stage_channels=[32, 64, 96], hidden_channels=96, num_residual_layers=2, codebook_size=CODES, codebook_dim=8,
        quantizer_type="ema",
    )  # fmt: skip
    data, turns = Images(options.batch, options.size), TakingTurns()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        steps = WARM_UP + options.steps
        args = AutoencoderTrainingArguments(
            folder, per_device_train_batch_size=options.batch, max_steps=steps, learning_rate=RATE, save_steps=0,
            logging_steps=steps, adversarial_weight=WEIGHT, adversarial_ramp_steps=0, disable_tqdm=True,
            discriminator_config={"hidden_channels": 32, "num_layers": 2}, **OPTIONS[name],
        )  # fmt: skip
        task = make_task(model, args)
        loop = TrainingLoop(task, data, args, callbacks=[turns])
        turns.others["plain"] = PlainLoop(task, data.images, **OPTIONS[name])
        turns.others["plain, float32"] = PlainLoop(task, data.images)
        history = loop.train()["history"]
    names = ("reconstruction_loss", "adaptive_weight", "discriminator_loss")
    figures = [history[-1][each] for each in names], torch.stack(turns.others["plain"].losses).mean(dim=0).tolist()
    kept = {who: list(zip(*values[WARM_UP:], strict=True)) for who, values in turns.found.items()}
    return {who: tuple(map(statistics.median, values)) for who, values in kept.items()}, figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40, help="timed ones, of each loop")
    parser.add_argument("--only", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.size} px, batch {options.batch}, {options.steps} steps on {DEVICE}")
    for name in options.only:
        found, (ours, plain) = measure(name, options)
        seconds = {who: each for who, (each, _) in found.items()}
        base = seconds["plain, float32"]
        print(
            f"{name:14} ours {seconds['ours']:.4f} s, plain {seconds['plain']:.4f} s: "
            f"{seconds['ours'] / seconds['plain']:.3f}; beside plain float32: ours {seconds['ours'] / base:.3f}, "
            f"plain {seconds['plain'] / base:.3f}"
        )
        pairs = ", ".join(f"{one:.4g} and {other:.4g}" for one, other in zip(ours, plain, strict=True))
        print(f"{'':14} error, adaptive weight, discriminator's loss, ours and plain: {pairs}", flush=True)
        if DEVICE == "cuda":
            for who, (each, mib) in found.items():
                print(f"{'':14} {who}: {options.batch / each:.0f} images/s, peak {mib:.0f} MiB above what it keeps")


if __name__ == "__main__":
    main()
