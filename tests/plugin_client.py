"""What a user of a plug-in does: tasks of `python -m tests.plugin_client`, as those of tests/hub_client.py.

Where hf_vq was not imported before, neither was the plug-in; where it was, hf_vq has imported it.
"""

import contextlib
import io
import os
import pickle
import sys
import warnings
from pathlib import Path

import torch
import transformers
from diffusers import AutoModel, DiffusionPipeline
from huggingface_hub import ModelCard

from .hub_client import main, same


def cli(arguments, folder):
    """`hf-vq`: its exit code and what it wrote."""
    from hf_vq_cli import main

    os.chdir(folder)
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            code = main(arguments)
        except SystemExit as end:  # of --help
            code = end.code
    return code, output.getvalue(), errors.getvalue()


def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe(class_labels=[3, 1], generator=torch.Generator().manual_seed(3), output_type="pt").images


def sample(prior):
    return prior.sample(class_labels=[3, 1], generator=torch.Generator().manual_seed(3))


def digits(count=2):
    return torch.linspace(-1, 1, count * 64).sin().view(count, 1, 8, 8)


def load(work):
    """Folders of both models and the pipeline, by every class of ours; what they compute is written down."""
    import hf_vq

    work = Path(work)
    model = hf_vq.AutoVQModel.from_pretrained(work / "codec")
    prior = hf_vq.AutoVQPrior.from_pretrained(work / "prior")
    names = [type(each).__name__ for each in (model, model.quantizer, prior)]
    face = transformers.AutoModel.from_pretrained(work / "codec")
    names.append(type(face).__name__)
    names.append(type(transformers.AutoModel.from_pretrained(work / "prior")).__name__)
    pipe = hf_vq.VQPipeline.from_pretrained(work / "prior" / "pipeline")
    names += [type(pipe.autoencoder).__name__, type(pipe.prior).__name__]
    codes = model.tokenize(digits())
    same(face.tokenize(digits()), codes)
    same(pickle.loads(pickle.dumps(face)).tokenize(digits()), codes)
    torch.save({"codes": codes, "sampled": sample(prior), "images": draw(pipe)}, work / "expected.pt")
    return names


def load_again(work):
    """From the Hub, by our classes; nothing is trusted."""
    import hf_vq

    wanted = torch.load(Path(work) / "expected.pt")
    same(hf_vq.AutoVQModel.from_pretrained("me/codec").tokenize(digits()), wanted["codes"])
    same(transformers.AutoModel.from_pretrained("me/codec").tokenize(digits()), wanted["codes"])
    same(sample(hf_vq.AutoVQPrior.from_pretrained("me/prior")), wanted["sampled"])
    same(draw(hf_vq.VQPipeline.from_pretrained("me/pipeline")), wanted["images"])


def load_stock(work, what):
    """From the Hub by one stock class, trusted: the repository's files are what imports hf_vq and the plug-in."""
    wanted = torch.load(Path(work) / "expected.pt")
    trust = {"trust_remote_code": True}
    if what == "transformers":
        same(transformers.AutoModel.from_pretrained("me/codec", **trust).tokenize(digits()), wanted["codes"])
    elif what == "diffusers":
        same(AutoModel.from_pretrained("me/codec", **trust).tokenize(digits()), wanted["codes"])
    elif what == "prior":
        same(sample(transformers.AutoModel.from_pretrained("me/prior", **trust)), wanted["sampled"])
    else:
        same(draw(DiffusionPipeline.from_pretrained("me/pipeline", **trust)), wanted["images"])
    return "hf_vq_example" in sys.modules


def without_the_entry_point(work):
    """As `load_stock` where the plug-in is only a module on the path; and what our own classes say then."""
    from importlib import metadata

    found = metadata.entry_points
    metadata.entry_points = lambda group: [] if group == "hf_vq" else found(group=group)
    import hf_vq

    words = []
    for load in (
        lambda: hf_vq.AutoVQModel.from_pretrained(Path(work) / "codec"),
        lambda: hf_vq.AutoVQPrior.from_pretrained(Path(work) / "prior"),
        lambda: hf_vq.VQPipeline.from_pretrained(Path(work) / "prior" / "pipeline"),
    ):
        try:
            load()
        except (AttributeError, ValueError) as error:
            words.append(str(error))
    load_stock(work, "transformers")
    load_stock(work, "prior")
    load_stock(work, "pipeline")
    return words


def import_beside(folder):
    """`import hf_vq` with another folder of distributions: what it warns, and whether the example is there."""
    sys.path.insert(0, folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import hf_vq
    words = [str(warning.message) for warning in caught if "plug-in" in str(warning.message)]
    return words, hf_vq.PatchCodec.__module__


def read_card(repo_id):
    return ModelCard.load(repo_id).text


def run_card(repo_id, folder):
    """Runs the first block of a card: that for hf_vq."""
    os.chdir(folder)
    block = ModelCard.load(repo_id).text.split("```python\n")[1].split("```")[0]
    exec(compile(block, repo_id, "exec"), {})
    return block


if __name__ == "__main__":
    main(globals(), fresh=("load_stock", "without_the_entry_point", "import_beside"))
