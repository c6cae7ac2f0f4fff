"""The runs that test_resume.py interrupts, each in a process of its own."""

import os
import signal

import torch

from hf_vq.training.autoencoder import AutoencoderTrainingArguments, train_autoencoder
from hf_vq.training.prior import PriorTrainingArguments, train_prior

from .tiny_codecs import SignalCodec, Waves
from .tiny_models import Codes, Images, tiny_autoencoder, tiny_prior

OPTIONS = {  # 100 samples, 16 a step: the passes end in the middle of a step, checkpoints fall in the middle of a pass
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "max_steps": 25,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 3,
    "weight_ema_decay": 0.9,
    "save_steps": 5,
    "save_total_limit": 3,
    "eval_steps": 7,
    "logging_steps": 3,
    "use_cpu": True,
    "disable_tqdm": True,
}


ADVERSARIAL = {  # with every kind of state that a discriminator's turn can have
    "perceptual": "random",
    "adversarial_weight": 0.5,
    "adversarial_ramp_steps": 5,
    "discriminator_start_step": 4,
    "discriminator_config": {"hidden_channels": 4, "num_layers": 1, "norm": "batch", "spectral_norm": True},
    "lecam_weight": 0.1,
    "lecam_decay": 0.9,
    "r1_weight": 1.0,
    "r1_interval": 3,
}

CODEC = {  # terms of signals, all weighed by the balancer
    "mel_weight": 2.0,
    "mel_config": {"sampling_rate": 8000, "window_lengths": [16, 8], "num_mels": 4},
    "adversarial_weight": 3.0,
    "adversarial_loss": "least_squares",
    "adversarial_ramp_steps": 5,
    "adaptive_weight": False,
    "discriminator_start_step": 2,
    "discriminator_type": "combined",
    "discriminator_config": {
        "parts": {
            "multi_period": {"hidden_channels": 1, "periods": [3]},
            "multi_scale_stft": {"hidden_channels": 2, "window_lengths": [16, 32]},
        }
    },
    "feature_matching_weight": 3.0,
    "loss_balancer": True,
    "balancer_decay": 0.9,
}


def run(kind, output_dir, resume=None, dataset_wrapper=lambda dataset: dataset, **more):
    torch.manual_seed(0)
    more = {**OPTIONS, **(ADVERSARIAL if kind == "adversarial" else {}), **more}
    if kind != "prior":
        args = AutoencoderTrainingArguments(output_dir=output_dir, resume_from_checkpoint=resume, **more)
        size = 16 if kind == "adversarial" else 4
        return train_autoencoder(tiny_autoencoder(), dataset_wrapper(Images(100, size)), args, Images(20, size))
    args = PriorTrainingArguments(output_dir=output_dir, resume_from_checkpoint=resume, **more)
    return train_prior(tiny_prior(), dataset_wrapper(Codes(100)), args, Codes(20))


class KilledAfter(torch.utils.data.Dataset):
    """A data set that kills its process when it has given `count` items."""

    def __init__(self, dataset, count):
        self.dataset, self.left, self.codebook_size = dataset, count, getattr(dataset, "codebook_size", None)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.dataset[index]


def run_killed_in_a_step(kind, output_dir):
    run(kind, output_dir, dataset_wrapper=lambda dataset: KilledAfter(dataset, 16 * 13))


def run_killed_in_a_checkpoint(kind, output_dir):
    """Resume, and die when half of the optimizer's state of checkpoint 20 is written."""
    whole_save = torch.save

    def save(state, path, *args, **kwargs):
        whole_save(state, path, *args, **kwargs)
        if "checkpoint-20" in str(path) and "optimizer" in str(path):
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save
    run(kind, output_dir, resume=True)


def run_as_rank(rank, port, kind, output_dir):
    """One of two processes that share each batch of `train_on_whole_batches`."""
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()}, ACCELERATE_USE_CPU="true")
    train_on_whole_batches(kind, output_dir, batch_size=8)


def train_on_whole_batches(kind, output_dir, batch_size=16):
    torch.manual_seed(0)
    options = {**OPTIONS, "gradient_accumulation_steps": 1, "per_device_train_batch_size": batch_size, "max_steps": 10}
    del options["logging_steps"]
    terms, model, data = {
        "adversarial": (ADVERSARIAL, tiny_autoencoder(dropout=0.0), (Images(100, 16), Images(21, 16))),
        "codec": (CODEC, signal_codec(), (Waves(SignalCodec, 100), Waves(SignalCodec, 21))),
    }[kind]
    args = AutoencoderTrainingArguments(output_dir=output_dir, **options, **terms, logging_steps=1)
    return train_autoencoder(model, data[0], args, data[1])


def signal_codec():
    return SignalCodec(strides=(4,), codebook_size=8)
