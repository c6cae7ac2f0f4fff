"""The options of every verb that reads images, and the splits that they give."""

import sys
from dataclasses import dataclass, field

from hf_vq.data.images import load_images
from hf_vq.data.sources import MissingSplitError


@dataclass
class DataOptions:
    """Which images, and how to read them; see `hf_vq.data.images.load_images`."""

    data: str | None = field(
        default=None,
        metadata={"help": "digits, an image folder, Parquet (file, folder or glob), or a data set id of the Hub"},
    )
    image_size: int | None = field(default=None, metadata={"help": "centre-crop and resize to this side, in pixels"})
    channels: int | None = field(default=None, metadata={"help": "1 (grey) or 3 (RGB)"})
    image_column: str | None = field(default=None, metadata={"help": "column of the images"})
    label_column: str | None = field(default=None, metadata={"help": "column of the classes"})
    data_config_name: str | None = field(default=None, metadata={"help": "configuration of a data set of the Hub"})
    validation_fraction: float = field(
        default=0.1, metadata={"help": "held out for validation where the data has no validation split"}
    )
    train_split: str = field(
        default="train", metadata={"help": "what to train on: a split, or rows of one such as train[:45000]"}
    )
    validation_split: str = field(
        default="validation", metadata={"help": "what to hold out: a split, or rows of one such as train[45000:50000]"}
    )
    skip_bad: bool = field(default=False, metadata={"help": "leave out images that cannot be read, and list them"})

    def load(self, split="train", channels=None, **options):
        """Load one split; bad images that were left out are listed on stderr.

        Args:
            split: "train" or "validation", which `train_split` and `validation_split` explain, or another split.
            channels: what the model takes, where that is known.
            options: further arguments of `load_images`.
        """
        if self.data is None:
            raise ValueError("data is missing: give --data (try digits)")
        if channels is not None and self.channels not in (None, channels):
            raise ValueError(f"channels={self.channels}, but the model takes {channels}")
        images = load_images(
            self.data,
            split=self.resolve(split),
            image_size=self.image_size,
            channels=channels or self.channels,
            image_column=self.image_column,
            label_column=self.label_column,
            config_name=self.data_config_name,
            validation_fraction=self.validation_fraction,
            skip_bad=self.skip_bad,
            **options,
        )
        for line in images.skipped:
            print(f"skipped: {line}", file=sys.stderr)
        return images

    def resolve(self, split):
        """What a split stands for, see `load`."""
        return {"train": self.train_split, "validation": self.validation_split}.get(split, split)

    def load_train_and_validation(self, channels=None):
        """The training images and the validation images, None where the data has none and none were asked for.

        Raises:
            ValueError: some images are in both.
        """
        train = self.load("train", channels)
        try:
            validation = self.load("validation", train.sample_shape[0])
        except MissingSplitError:
            if self.validation_fraction > 0 or self.validation_split != "validation":
                raise
            return train, None
        shared = len(train) - len(train.without(validation))
        if shared:
            raise ValueError(
                f"train_split={self.train_split!r} and validation_split={self.validation_split!r} have {shared:,} "
                "images in common: give both as rows of one split, such as train[:90%] and train[90%:]"
            )
        return train, validation
