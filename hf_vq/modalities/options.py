"""Options of the command line that several modalities have."""

from dataclasses import dataclass, field


@dataclass
class SharedOptions:
    """How samples of any kind are read."""

    channels: int | None = field(
        default=None, metadata={"help": "of images 1 (grey) or 3 (RGB), of sounds 1 (mono) or 2 (stereo)"}
    )
    caption_column: str | None = field(
        default=None,
        metadata={"help": "column of captions, none: leave them out; default: caption, text or .txt files, if any"},
    )


@dataclass
class SharedTraining:
    """How training reads samples of any kind."""

    random_crop: bool = field(
        default=False,
        metadata={"help": "crop images anywhere, not in the middle, and sounds, not at their start; training alone"},
    )
