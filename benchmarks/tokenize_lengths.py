"""Rows a second of tokenizing sounds of many lengths: by length, and padded to the longest of all.

    python benchmarks/tokenize_lengths.py --data path/to/sounds

Both ways tokenize the same sounds in turn, and the bytes of their files are compared. Below a minute on one CPU core.
"""

import argparse
import hashlib
import tempfile
import time
from pathlib import Path

import torch

from hf_vq import AudioCodec
from hf_vq.data.audio import load_audio
from hf_vq.data.tokenizing import tokenize_dataset


def tokenize(codec, sounds, by_length):
    """Rows a second, and a hash of all files."""
    type(codec).lengths_alone = by_length
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        tokenize_dataset(codec, sounds, folder)
        seconds = time.perf_counter() - start
        files = b"".join(path.read_bytes() for path in sorted(Path(folder).rglob("*.parquet")))
    return len(sounds) / seconds, hashlib.sha256(files).hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="as `hf-vq tokenize` takes it")
    parser.add_argument("--split", default="train[:25%]")
    parser.add_argument("--turns", type=int, default=2, help="alternations of the two ways")
    args = parser.parse_args()
    torch.manual_seed(0)
    sounds = load_audio(args.data, split=args.split)
    codec = AudioCodec(
        sampling_rate=sounds.sampling_rate, hidden_channels=16, strides=(2, 4, 5), codebook_size=256, codebook_dim=32,
        quantizer_config={"num_levels": 8},
    )  # fmt: skip
    codec.initialize_codebook(torch.cat([sounds[row]["sample"] for row in range(20)], dim=1)[None])
    codec.eval()
    rates, hashes = {True: [], False: []}, set()
    for _ in range(args.turns):
        for by_length, found in rates.items():
            rate, files = tokenize(codec, sounds, by_length)
            found.append(rate)
            hashes.add(files)
    print(
        f"{len(sounds):,} sounds of {len(set(sounds.lengths)):,} lengths, the longest {max(sounds.lengths):,} samples"
    )
    print(f"by length {max(rates[True]):.1f} rows a second, padded to the longest {max(rates[False]):.1f}")
    print("the same files" if len(hashes) == 1 else "OTHER FILES")


if __name__ == "__main__":
    main()
