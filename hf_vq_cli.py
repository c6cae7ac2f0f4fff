"""Entry point of `hf-vq`: outside the package, so that --help needs neither torch nor diffusers."""

import contextlib
import importlib
import io
import os
import sys
import warnings
from importlib import metadata

VERBS = {
    "quickstart": ("hf_vq.cli.quickstart", "train on bundled digits, sample every class, save a pipeline"),
    "train autoencoder": ("hf_vq.cli.train_autoencoder", "train a tokenizer"),
    "train prior": ("hf_vq.cli.train_prior", "train a prior on the codes of a tokenizer"),
    "tokenize": ("hf_vq.cli.tokenize", "write the codes of a data set as Parquet"),
    "sample": ("hf_vq.cli.sample", "draw new samples from a pipeline"),
    "reconstruct": ("hf_vq.cli.reconstruct", "show samples beside what a tokenizer makes of them"),
    "evaluate": ("hf_vq.cli.evaluate", "measure a tokenizer, a prior or a pipeline on held-out data"),
    "compare": ("hf_vq.cli.compare", "show figures of evaluations side by side, where they were measured alike"),
    "convert": ("hf_vq.cli.convert", "turn a checkpoint of another project into a folder of ours"),
    "push": ("hf_vq.cli.push", "publish a folder on the Hugging Face Hub"),
    "inspect": ("hf_vq.cli.inspect", "tell what a folder is, without loading its weights"),
}
HELP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hf_vq", "cli", "help")
EXPECTED = ("DivergenceError", "OutOfMemoryError")  # RuntimeErrors that are no bugs
TRAIN_EXTRA = ("datasets", "matplotlib", "sklearn", "torchmetrics", "yaml")


def usage(verbs=VERBS):
    """The text of `hf-vq --help`."""
    width = max(map(len, verbs))
    lines = [f"  {name:{width}}  {summary}" for name, (_, summary) in verbs.items()]
    return "\n".join(
        [
            "usage: hf-vq VERB [options]",
            "",
            "Train vector-quantized autoencoders and priors, sample from them, share them.",
            "",
            *lines,
            "",
            "`hf-vq VERB --help` lists the options of a verb; `--quiet` (or HF_VQ_QUIET=1) says nothing but errors,",
            "warnings and the last line; `--traceback` (or HF_VQ_TRACEBACK=1) shows where an error came from;",
            "`--version` prints the version.",
        ]
    )


def find_verb(arguments):
    """Split arguments in (verb, the rest).

    Raises:
        ValueError: no such verb; names the nearest.
    """
    for words in (2, 1):
        verb = " ".join(arguments[:words])
        if verb in VERBS:
            return verb, arguments[words:]
    if arguments[0] == "train":
        raise ValueError("train what? `hf-vq train autoencoder` or `hf-vq train prior`")
    from difflib import get_close_matches

    nearest = get_close_matches(arguments[0], VERBS, n=1)
    raise ValueError(f"unknown verb {arguments[0]!r}" + (f", did you mean {nearest[0]!r}?" if nearest else ""))


def help_file(verb, folder=HELP):
    """The file with the help of a verb."""
    return os.path.join(folder, f"{verb.replace(' ', '-')}.txt")


def write_help(folder=HELP):
    """Write the help of every verb, from its options."""
    os.makedirs(folder, exist_ok=True)
    for verb, (module, _) in VERBS.items():
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            importlib.import_module(module).main(["--help"])
        with open(help_file(verb, folder), "w", encoding="utf-8") as file:
            file.write(shown.getvalue())


def written_help(verb):
    """The help of a verb; None where an installed package registers classes, which it does not know of."""
    if metadata.entry_points(group="hf_vq"):
        return None
    with open(help_file(verb), encoding="utf-8") as file:
        return file.read()


def one_line(error):
    """The message of an error in one line; of one that a worker process sent, the last line, which says it all."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if any(line.startswith("Traceback") for line in lines) else " ".join(lines)


def show_warning(message, category, filename, lineno, file=None, line=None):
    """As `warnings.showwarning`, but a warning of this package is one line that says nothing of its source."""
    here = os.path.abspath(__file__)
    if os.path.abspath(filename).startswith((here, os.path.join(os.path.dirname(here), "hf_vq") + os.sep)):
        text = f"warning: {one_line(message)}\n"
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
    (file or sys.stderr).write(text)


def main(argv=None):
    """Run one verb; return the exit code: 0, 2 for an error of the user's making, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in arguments or os.environ.get("HF_VQ_TRACEBACK", "") not in ("", "0")
    silent = "--quiet" in arguments or os.environ.get("HF_VQ_QUIET", "") not in ("", "0")
    arguments = [argument for argument in arguments if argument not in ("--traceback", "--quiet")]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "train" and arguments[1:] in ([], ["-h"], ["--help"]):
        print(usage({name: entry for name, entry in VERBS.items() if name.startswith("train")}))
        return 0 if arguments[1:] else 2
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")  # seconds: progress bars should not flood a log file
    try:
        if arguments[0] == "--version":
            print(metadata.version("hf_vq"))
            return 0
        verb, rest = find_verb(arguments)
        if {"-h", "--help"} & set(rest) and (text := written_help(verb)) is not None:
            print(text, end="")
            return 0
        with warnings.catch_warnings(), contextlib.ExitStack() as stack:
            warnings.showwarning = show_warning
            with contextlib.redirect_stdout(io.StringIO()) if silent else contextlib.nullcontext():
                module = importlib.import_module(VERBS[verb][0])
            if silent:  # now that the libraries are here whose bars it switches off
                stack.enter_context(importlib.import_module("hf_vq.quiet").quiet())
            module.main(rest)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if traceback or (isinstance(error, RuntimeError) and type(error).__name__ not in EXPECTED):
            raise
        missing = isinstance(error, ImportError) and error.name in TRAIN_EXTRA
        advice = " (pip install 'hf_vq[train]')" if missing else ""
        print(f"hf-vq: error: {one_line(error)}{advice}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hf-vq: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
