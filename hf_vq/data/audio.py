"""Sounds for training: one function that loads them from anywhere."""

from pathlib import Path

from hf_vq.arguments import checked
from hf_vq.data.audio_dataset import AudioDataset
from hf_vq.data.finding import find_source
from hf_vq.data.sample_dataset import CACHE_BYTES
from hf_vq.data.sound_files import SOUNDS, require
from hf_vq.data.sources import Columns
from hf_vq.ranges import Chance, Count, Positive, Rate, Size, Width


@checked
def load_audio(
    source: str | Path | list | tuple,
    *,
    split: str = "train",
    sampling_rate: Rate | None = None,
    channels: Width | None = None,
    audio_length: Size | None = None,
    audio_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
    speaker_column: str | None = None,
    config_name: str | None = None,
    validation_fraction: Chance = 0.1,
    skip_bad: bool = False,
    cache_bytes: Count = CACHE_BYTES,
    trim_silence: Positive | None = None,
    random_crop: bool = False,
) -> AudioDataset:
    """Load one split of a data set of sounds.

    Where the source has no validation split, the same random `validation_fraction` of its training sounds is held out
    on every call. The header of every sound is read here, and whatever fits the cache is decoded, so that a bad file
    is reported before any work. What a rate and channels make of a sound is in `SoundRules`.

    Args:
        source: a folder of sounds (wav, flac, ogg, mp3 and what else libsndfile reads), see `folder_source`; a Parquet
            file, a folder or glob of them; a folder of `save_to_disk` of `datasets`; an id of a data set of the Hub;
            or a list of sound files.
        split: "train", "validation", or another that the source has; or rows of one of the source's own splits as
            `datasets` names them, such as "train[:90%]": nothing is held out of it first.
        sampling_rate: of samples in Hz, to which sounds are resampled; None keeps theirs, which must then be equal.
        channels: of samples; None takes the most that any sound has.
        audio_length: samples that all sounds have: of longer ones the rest is left out, shorter ones end in silence.
            None: each has its own length, and the data set `variable_length`.
        audio_column: column of the sounds; None takes the one of type Audio.
        label_column: column of the classes (class labels, integers, truth values or strings); None takes the one of
            type ClassLabel, else one called "label" or the like, if any; "none": no classes, neither of sub-folders.
        caption_column: column of the captions, strings; None takes one called "caption", "text" or the like, and of
            folders .txt files beside the sounds; "none": no captions.
        speaker_column: column of the speakers, of the same types as `label_column`; None: no speakers.
        config_name: configuration of a data set of the Hub.
        validation_fraction: in [0, 1), see above.
        skip_bad: leave out sounds that cannot be decoded (all of them are decoded here to find out) and list them in
            `skipped`.
        cache_bytes: keep the decoded sounds in memory if they take no more bytes than this.
        trim_silence: dB below the loudest sample of a sound; what is softer at both its ends is cut off. None: nothing
            is.
        random_crop: what `train_autoencoder` sees of longer sounds is `audio_length` from anywhere, not from the
            start. Items are as they are.

    Returns:
        `AudioDataset`.

    Raises:
        ImportError: soundfile or soxr is missing.
        ValueError: unknown source, split or column, bad sound (names the file), rates that differ (names two), or
            channels that cannot be mixed.
    """
    if random_crop and audio_length is None:
        raise ValueError("random_crop=True needs audio_length, how much of a sound is seen at once")
    if str(source) == "digits":
        raise ValueError("data='digits' holds images, no sounds")
    for library in ("soundfile", "soxr"):
        require(library)
    columns = Columns(SOUNDS, audio_column, label_column, caption_column, speaker_column)
    return AudioDataset(
        find_source(source, split, validation_fraction, columns, config_name),
        sampling_rate=sampling_rate,
        channels=channels,
        audio_length=audio_length,
        random_crop=random_crop,
        trim_silence=trim_silence,
        skip_bad=skip_bad,
        cache_bytes=cache_bytes,
    )
