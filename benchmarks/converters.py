"""Converted checkpoints beside what their originals computed: python -m benchmarks.converters

One row for each checkpoint of tests/fixtures: whether all codes are equal, and the largest differences of latents and
of the reconstruction, after converting and again after saving and loading.
"""

import tempfile
from pathlib import Path

import torch

import hf_vq
from hf_vq.converters import convert
from tests.conftest import FIXTURES
from tests.test_converters import CASES


def compare(name, folder):
    """Class, whether codes are equal, and the largest differences before and after reloading."""
    case, get = CASES[name], CASES[name].read()
    sample, codes = get(case.image, pixels=True), get(case.codes)
    converted = convert(FIXTURES / case.system / case.source, folder / "out", license="other")
    if case.system == "rqvae":  # depth last in the original
        codes = codes.movedim(-1, 1)
    codes = codes if converted.hierarchical else codes.reshape(-1, *converted.code_shape(sample.shape[1:]))
    equal, differences = True, []
    for model in (converted, hf_vq.AutoVQModel.from_pretrained(folder / "out")):
        with torch.no_grad():
            output, latents = model(sample), model.encode(sample).latents
        pairs = [(output.sample, get(case.sample, pixels=True))]
        if case.latents is not None:
            pairs += zip(_tuple(latents), _tuple(get(case.latents)), strict=True)
        equal &= all(torch.equal(a, b) for a, b in zip(_tuple(model.tokenize(sample)), _tuple(codes), strict=True))
        differences.append([(a - b).abs().max().item() for a, b in pairs])
    return type(converted).__name__, equal, differences


def _tuple(value):
    return value if isinstance(value, tuple) else (value,)


def main():
    print("| checkpoint | class | codes | reconstruction | latents | after reloading |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            kind, equal, ((sample, *latents), again) = compare(name, Path(folder))
        words = f"{max(latents):.1e}" if latents else "not given"
        same = "the same" if again == [sample, *latents] else f"{max(again):.1e}"
        print(f"| {name} | {kind} | {'equal' if equal else 'DIFFER'} | {sample:.1e} | {words} | {same} |")


if __name__ == "__main__":
    main()
