"""An audio codec beside transformers' EncodecModel of the same weights, and a long sound piece by piece.

    python benchmarks/codec_streaming.py [--seconds 1] [--hours 0.02]

EnCodec's network for 24 kHz with random weights whose codes lie among its latents; batch 1, one thread, weight norm
folded in ours. The first table: seconds of the processor for a sound of `--seconds`, medians of pairs, and the ratio;
codes are asserted to be equal. The second: a sound of `--hours` through StreamingTokenizer and StreamingDetokenizer in
pieces, processor seconds for a second of sound, and the memory of the process after a tenth and at the end.
"""

import argparse
import resource
import statistics
import tempfile
import time

import torch
from transformers import EncodecConfig, EncodecModel

from hf_vq import AudioCodec, StreamingDetokenizer, StreamingTokenizer

RATE, BANDWIDTH = 24000, 6.0
PAIRS = 15


@torch.no_grad()
def models():
    """Stock model and ours, with the same weights."""
    torch.manual_seed(0)
    stock = EncodecModel(EncodecConfig()).eval()
    latents = stock.encoder(torch.randn(1, 1, 3 * RATE) * 0.1)[0].T
    for layer in stock.quantizer.layers:
        rows = latents[torch.randint(len(latents), (1024,))]
        layer.codebook.embed.copy_(rows + torch.randn_like(rows) * latents.std() * 0.3)
    with tempfile.TemporaryDirectory() as folder:
        stock.save_pretrained(folder)
        return stock, AudioCodec.from_single_file(folder).eval().fold_weight_norm()


def paired(one, other):
    """Medians of the processor's seconds of two functions that take turns."""
    seconds = ([], [])
    for pair in range(PAIRS + 2):
        for function, kept in zip((one, other), seconds, strict=True):
            start = time.process_time()
            function()
            if pair >= 2:
                kept.append(time.process_time() - start)
    return [statistics.median(each) for each in seconds]


def whole(stock, ours, seconds):
    sound = torch.randn(1, 1, int(seconds * RATE)) * 0.1
    codes = stock.encode(sound, bandwidth=BANDWIDTH).audio_codes
    assert torch.equal(codes[0], ours.tokenize(sound, bandwidth=BANDWIDTH))
    print(f"| {seconds:g} s of sound | transformers, s | ours, s | speed |\n| --- | --- | --- | --- |")
    total = [0.0, 0.0]
    for name, one, other in (
        (
            "tokenize",
            lambda: stock.encode(sound, bandwidth=BANDWIDTH),
            lambda: ours.tokenize(sound, bandwidth=BANDWIDTH),
        ),
        ("detokenize", lambda: stock.decode(codes, [None]), lambda: ours.detokenize(codes[0])),
    ):
        theirs, mine = paired(one, other)
        total = [total[0] + theirs, total[1] + mine]
        print(f"| {name} | {theirs:.4f} | {mine:.4f} | {theirs / mine:.2f} x |")
    print(f"| both | {total[0]:.4f} | {total[1]:.4f} | {total[0] / total[1]:.2f} x |\n")


def streamed(codec, hours, piece):
    """Processor seconds for a second of sound, and the peaks of memory in MiB after a tenth and at the end."""
    tokenizer, detokenizer = StreamingTokenizer(codec, bandwidth=BANDWIDTH), StreamingDetokenizer(codec)
    pieces, peaks = int(hours * 3600 * RATE / piece), []
    generator, start = torch.Generator().manual_seed(0), time.process_time()
    for index in range(pieces):
        detokenizer.push(tokenizer.push(torch.randn(1, piece, generator=generator) * 0.1))
        if index in (pieces // 10, pieces - 1):
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return (time.process_time() - start) / (pieces * piece / RATE), *peaks


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--hours", type=float, default=0.02)
    options = parser.parse_args()
    torch.set_num_threads(1)
    stock, ours = models()
    with torch.inference_mode():
        whole(stock, ours, options.seconds)
        del stock
        print("| pieces of | s for a second | MiB after a tenth | at the end |\n| --- | --- | --- | --- |")
        for piece in (RATE // 2, RATE // 10, RATE // 25):
            cost, early, late = streamed(ours, options.hours, piece)
            print(f"| {piece / RATE * 1000:.0f} ms | {cost:.3f} | {early:,.0f} | {late:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
