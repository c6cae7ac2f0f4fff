"""`hf-vq convert`: a checkpoint of another project in, a folder of ours out."""

from dataclasses import dataclass, field
from pathlib import Path

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from hf_vq.cli.manual import Manual
from hf_vq.cli.options import parse_options
from hf_vq.converters import FORMATS, convert
from hf_vq.hub import CONVERSION
from hf_vq.saved import read_json

MANUAL = Manual(
    "convert",
    "Convert a checkpoint of another project into a folder that from_pretrained loads.",
    """
hf-vq convert last.ckpt vqgan --license mit
""",
    ("source", "out"),
)


@dataclass
class ConvertOptions:
    """What to convert, where to, and under which licence."""

    source: str = field(metadata={"help": "file of weights, or a folder with one (DALL-E: with encoder and decoder)"})
    out: str = field(metadata={"help": "folder to write"})
    format: str | None = field(
        default=None, metadata={"help": f"one of {', '.join(sorted(FORMATS))}; default: recognised"}
    )
    license: str | None = field(
        default=None,
        metadata={"help": "id of the weights' licence on the Hub, such as mit; default: that of a card beside them"},
    )
    config: str | None = field(
        default=None,
        metadata={"help": "the original's config file (YAML or JSON); default: the one beside the weights"},
    )
    first_stage: str | None = field(
        default=None,
        metadata={"help": "of a prior that needs code vectors: checkpoint or folder of its autoencoder"},
    )
    weights: str | None = field(
        default=None,
        metadata={
            "help": "of several state dicts or models in a file, the name of the one to take, such as params_ema"
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "replace an existing folder of a model or pipeline"})


def main(argv: list[str]) -> None:
    """Run the verb."""
    options, _ = parse_options(
        [ConvertOptions],
        argv,
        MANUAL,
        aliases={"output": "out"},
    )
    model = convert(**vars(options), require_license=True)
    parts = model.components.values() if isinstance(model, DiffusionPipeline) else [model]
    models = [part for part in parts if hasattr(part, "parameters")]  # a pipeline may have a tokenizer as well
    words = ", ".join(f"{type(part).__name__}, {part.num_parameters():,} parameters" for part in models)
    print(f"Wrote {options.out}: {words}.")
    facts = read_json(Path(options.out) / CONVERSION)
    for note in (*facts.get("read", ()), *facts.get("notes", ())):
        print(note)
