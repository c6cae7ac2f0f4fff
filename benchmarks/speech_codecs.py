"""Speech codecs, ours and others', on the same spoken digits in one run:

    python benchmarks/speech_codecs.py --data fsdd --codec codec:2,4,8 --peers codec2 opus

The test clips of a speaker's recording, digits 0 to 9, are joined with gaps of 0.1 s. A Markdown table has, for every
codec: kbit/s of the payload, in brackets those of the file with its header; PESQ (narrow band), STOI and SI-SDR in
dB, means over utterances, each aligned by cross-correlation; in what share of the decoded clips, cut out again, a
closed-form probe hears the right digit and speaker. It learns from the clean training clips. SI-SDR says nothing about
vocoders.

Of ours it also has how many of its codes each level uses, in percent, in the frames of the digits, gaps left out. The
payload is the codes of all frames in log2(codebook_size) bits each, and 32 bits for every scale of a model that
normalises; the file has a header of 5 bytes, samples in 4 of them and levels in 1, and ends at a whole byte.

Needs `pip install 'hf_vq[bench]'`; peers the programs of Debian's packages codec2 and opus-tools.
"""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from speech_clips import RATE, Utterance, join, load_clips
from speech_measures import Probe, align, compare
from speech_peers import PEERS, Coded, check_installed

from hf_vq import AutoVQModel
from hf_vq.data.sound_rules import SoundRules
from hf_vq.grids import as_grids
from hf_vq.metrics.codebook import HierarchyUsage
from hf_vq.modalities.audio import AUDIO
from hf_vq.modalities.audio_pictures import MOST_SHOWN, save_reconstructions

HEADER_BYTES, SCALE_BITS, WAV_HEADER_BYTES = 5, 32, 44


def clean(utterance: Utterance) -> Coded:
    """What a WAV file of 16 bits takes, and nothing lost."""
    bits = 16 * len(utterance.sound)
    return Coded(utterance.sound, bits, bits + 8 * WAV_HEADER_BYTES)


class Ours:
    """A codec of ours at a number of levels; it counts codes as it works.

    Args:
        folder: of the codec, for messages.
        model: the codec.
        levels: the first so many of its residual levels, None for all.

    Raises:
        ValueError: no codec of sounds, one whose rate is not known, or levels that it does not have.
    """

    def __init__(self, folder: str, model: torch.nn.Module, levels: int | None):
        if model.modality != AUDIO.name:
            raise ValueError(f"{folder} is of {model.modality}s, not of sounds")
        self.rate = model.processor.sampling_rate
        if self.rate is None:
            raise ValueError(f"{folder} does not say at which sampling rate it works")
        if levels is not None and not hasattr(model, "levels_for"):
            raise ValueError(f"{folder}:{levels} asks for levels, which a {type(model).__name__} does not take")
        self.options = {} if levels is None else {"num_levels": model.levels_for(levels)}
        self.levels, self.model = levels or model.num_levels, model
        self.name = f"{Path(folder).name}, {self.levels} level{'s' * (self.levels > 1)}"
        self.usage = HierarchyUsage(model.codebook_sizes, self.levels)

    def __call__(self, utterance: Utterance) -> Coded:
        model = self.model
        sample = SoundRules(self.rate, model.in_channels).to_sample(utterance.sound[None].astype(np.float32), RATE)
        coded = model.tokenize(sample[None], return_dict=True, **self.options)
        grids = as_grids(coded.codes)
        self._count(utterance, grids)
        decoded = model.detokenize(coded.codes, coded.scales, coded.length)[0].numpy()
        bits = sum(grid.numel() * math.log2(size) for grid, size in zip(grids, model.codebook_sizes, strict=True))
        bits += 0 if coded.scales is None else SCALE_BITS * coded.scales.numel()
        sound = SoundRules(RATE, 1).to_sample(decoded, self.rate)[0].double().numpy()
        return Coded(sound, bits, 8 * (HEADER_BYTES + math.ceil(bits / 8)))

    def _count(self, utterance, grids):
        """Counts the codes of cells whose middle is in a clip."""
        total = self.model.decoded_space(grids[0].shape[-1:])[0] * RATE / self.rate  # samples of the utterance
        masks = []
        for grid in grids:
            middles = (torch.arange(grid.shape[-1]) + 0.5) * total / grid.shape[-1]
            inside = [(start <= middles) & (middles < end) for start, end in utterance.spans]
            masks.append(torch.stack(inside).any(dim=0)[None])
        if self.levels == 1:  # codes of the first of several levels have an axis for it
            grids = [grid.flatten(0, -2) for grid in grids]
        self.usage.update(grids, masks)

    def levels_in_use(self, entropy: bool) -> list[str]:
        """Cells of the table: usage in percent of every level, and the entropy of its codes in bits."""
        used = self.usage.compute()
        usage, perplexity = (v if isinstance(v, list) else [v] for v in (used.usage, used.perplexity))
        bits = " ".join(f"{math.log2(each):.2f}" for each in perplexity)
        return [" ".join(f"{100 * each:.3g}" for each in usage), *([bits] if entropy else [])]


def measure(codec: Callable[[Utterance], Coded], utterances: list[Utterance], probe: Probe) -> tuple[list, list]:
    """Cells of the table, and the decoded utterances."""
    coded = [codec(utterance) for utterance in utterances]
    decoded = [align(one.sound, each.decoded) for one, each in zip(utterances, coded, strict=True)]
    seconds = sum(len(one.sound) for one in utterances) / RATE
    payload, file = (
        sum(each) / seconds / 1000 for each in zip(*((c.payload_bits, c.file_bits) for c in coded), strict=True)
    )
    found = [compare(one.sound, each) for one, each in zip(utterances, decoded, strict=True)]
    quality, intelligibility, ratio = np.mean(found, axis=0)
    clips = [each[start:end] for one, each in zip(utterances, decoded, strict=True) for start, end in one.spans]
    facts = [clip for one in utterances for clip in one.clips]
    digits, speakers = probe.heard(clips, [clip.digit for clip in facts], [clip.speaker for clip in facts])
    cells = [f"{payload:.2f} ({file:.2f})", f"{quality:.2f}", f"{intelligibility:.3f}", f"{ratio:.1f}"]
    return [*cells, f"{digits:.3f}", f"{speakers:.3f}"], decoded


def save(folder: Path, name: str, utterances: list[Utterance], decoded: list[np.ndarray]) -> None:
    """First utterances of some speakers, each before its decoded one, as a WAV file, and as spectrograms."""
    firsts = {one.clips[0].speaker: row for row, one in reversed(list(enumerate(utterances)))}
    rows = sorted(firsts.values())[:MOST_SHOWN]
    lengths = [len(utterances[row].sound) for row in rows]
    pairs = ([utterances[row].sound for row in rows], [decoded[row].clip(-1, 1) for row in rows])
    originals, others = (
        torch.stack([torch.from_numpy(np.pad(one, (0, max(lengths) - len(one)))).float()[None] for one in sounds])
        for sounds in pairs
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_reconstructions(folder / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.wav", originals, others, RATE, lengths)


def split_modes(text: str) -> tuple[str, list[str]]:
    """What stands before a colon, and what stands behind it between commas."""
    name, _, modes = text.rpartition(":") if re.search(r":\w+(,\w+)*$", text) else (text, "", "")
    return name, modes.split(",") if modes else []


def make_codecs(options: argparse.Namespace) -> dict[str, Callable[[Utterance], Coded]]:
    """Every codec by its name.

    Raises:
        ValueError: one that there is not, or levels or modes that it does not have.
        RuntimeError: programs are missing.
    """
    peers = []
    for name, modes in map(split_modes, options.peers):
        if name not in PEERS or set(modes) - set(PEERS[name].modes):
            known = "; ".join(f"{each}:{','.join(peer.modes)}" for each, peer in PEERS.items())
            raise ValueError(f"--peers {':'.join([name, *modes])}: there are {known}")
        peers += [PEERS[name](mode) for mode in modes or PEERS[name].modes]
    check_installed(list(dict.fromkeys(map(type, peers))))
    codecs = {"clean": clean, **{peer.name: peer for peer in peers}}
    for folder, levels in map(split_modes, options.codec):
        if not all(level.isdecimal() for level in levels):
            raise ValueError(f"--codec {folder}:{','.join(levels)}: levels must be whole numbers")
        model = AutoVQModel.from_pretrained(folder).eval()
        for level in map(int, levels) if levels else [None]:
            ours = Ours(folder, model, level)
            if ours.name in codecs:
                raise ValueError(f"--codec {folder}: {ours.name!r} is there twice, of folders of one name")
            codecs[ours.name] = ours
    return codecs


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the Free Spoken Digit Dataset as Parquet files")
    parser.add_argument("--codec", nargs="+", default=[], metavar="FOLDER[:LEVELS,LEVELS...]")
    parser.add_argument("--peers", nargs="+", default=[], metavar="NAME[:MODE,MODE...]", help="codec2, opus")
    parser.add_argument("--entropy", action="store_true", help="of the codes of each level, order 0, gaps left out")
    parser.add_argument("--output", type=Path, help="folder of WAV files and spectrograms")
    options = parser.parse_args()
    try:
        codecs = make_codecs(options)
        utterances, training = join(load_clips(options.data, "test")), load_clips(options.data, "train")
    except (ValueError, OSError, RuntimeError) as error:
        parser.exit(1, f"{error}\n")
    digits, speakers = [clip.digit for clip in training], [clip.speaker for clip in training]
    probe = Probe([clip.sound for clip in training], digits, speakers)
    titles = ["codec", "kbit/s", "PESQ", "STOI", "SI-SDR", "digits heard", "speakers heard"]
    titles += ["usage by level, %", *(["entropy by level, bits"] if options.entropy else [])] if options.codec else []
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}")
    for name, codec in codecs.items():
        cells, decoded = measure(codec, utterances, probe)
        cells += codec.levels_in_use(options.entropy) if isinstance(codec, Ours) else []
        print(f"| {' | '.join([name, *cells, *[''] * (len(titles) - 1 - len(cells))])} |", flush=True)
        if options.output:
            save(options.output, name, utterances, decoded)


if __name__ == "__main__":
    main()
