"""Speech codecs of others, through their command-line programs: Codec 2 and Opus."""

import io
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from speech_clips import RATE, Utterance

SIXTEEN_BITS = 2**15


@dataclass(frozen=True)
class Coded:
    """One utterance through a codec.

    Attributes:
        decoded: (length,) float64 in [-1, 1] at 8 kHz.
        payload_bits: what carries the sound.
        file_bits: what a file takes that can be decoded by itself.
    """

    decoded: np.ndarray
    payload_bits: float
    file_bits: float


@dataclass(frozen=True)
class Codec2:
    """A mode of Codec 2 (https://github.com/drowe67/codec2), a vocoder; a .c2 file has 7 bytes of header."""

    mode: str
    programs = ("c2enc", "c2dec")
    package = "codec2"
    modes = ("3200", "2400", "1600", "1200", "700C")
    frames = {"3200": (160, 64), "2400": (160, 48), "1600": (320, 64), "1200": (320, 48), "700C": (320, 28)}

    @property
    def name(self) -> str:
        return f"codec2 {self.mode}"

    def __call__(self, utterance: Utterance) -> Coded:
        samples, bits = self.frames[self.mode]  # of a frame
        padded = np.pad(utterance.sound, (0, -len(utterance.sound) % samples))
        with tempfile.TemporaryDirectory() as folder:
            raw, coded, back = (Path(folder) / name for name in ("speech.raw", "speech.c2", "decoded.raw"))
            raw.write_bytes(as_int16(padded).tobytes())
            run("c2enc", self.mode, raw, coded)
            run("c2dec", self.mode, coded, back)
            decoded = np.frombuffer(back.read_bytes(), "<i2") / SIXTEEN_BITS
            size = coded.stat().st_size
        return Coded(decoded, len(padded) // samples * bits, size * 8)


@dataclass(frozen=True)
class Opus:
    """A bitrate of Opus (RFC 6716), in kbit/s as `opusenc` takes it, in an Ogg file with no room for more comments."""

    mode: str
    programs = ("opusenc", "opusdec")
    package = "opus-tools"
    modes = ("6", "9", "12")

    @property
    def name(self) -> str:
        return f"opus {self.mode}"

    def __call__(self, utterance: Utterance) -> Coded:
        with tempfile.TemporaryDirectory() as folder:
            raw, coded, back = (Path(folder) / name for name in ("speech.raw", "speech.opus", "decoded.raw"))
            raw.write_bytes(as_int16(utterance.sound).tobytes())
            form = ("--raw", "--raw-rate", RATE, "--raw-chan", 1)
            run("opusenc", "--quiet", *form, "--bitrate", self.mode, "--padding", 0, raw, coded)
            run("opusdec", "--quiet", "--rate", RATE, coded, back)
            decoded = np.frombuffer(back.read_bytes(), "<i2") / SIXTEEN_BITS
            file = coded.read_bytes()
        return Coded(decoded, 8 * sum(ogg_packets(file)[2:]), 8 * len(file))


PEERS = {peer.__name__.lower(): peer for peer in (Codec2, Opus)}


def check_installed(peers: Sequence[type]) -> None:
    """Raise a RuntimeError that names the Debian packages of missing programs."""
    missing = [peer for peer in peers if not all(shutil.which(program) for program in peer.programs)]
    if missing:
        programs = ", ".join(program for peer in missing for program in peer.programs)
        packages = " ".join(peer.package for peer in missing)
        raise RuntimeError(f"{programs} not found: apt-get install {packages} (Debian's names)")


def as_int16(values: np.ndarray) -> np.ndarray:
    """Floats in [-1, 1] as 16-bit integers."""
    return (values * SIXTEEN_BITS).round().clip(-SIXTEEN_BITS, SIXTEEN_BITS - 1).astype("<i2")


def run(*command: str | int | Path) -> None:
    """Run a program; a RuntimeError with what it says where it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip() or done.returncode}")


def ogg_packets(file: bytes) -> list[int]:
    """Bytes of every packet of an Ogg file (RFC 3533); the first two of Opus are headers."""
    reader, sizes, size = io.BytesIO(file), [], 0
    while head := reader.read(27):
        if head[:4] != b"OggS":
            raise ValueError(f"no page of Ogg at byte {reader.tell() - len(head)}")
        lacing = reader.read(head[26])
        for segment in lacing:
            size += segment
            if segment < 255:
                sizes.append(size)
                size = 0
        reader.seek(sum(lacing), io.SEEK_CUR)
    return sizes
