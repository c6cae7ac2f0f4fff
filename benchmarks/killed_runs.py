"""The runs that `kills.py` and `full_disks.py` disturb, processes that run them, and what must be equal after that."""

import hashlib
import json
import multiprocessing
import os
import signal
import string
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

STEPS, EVERY = 25, 5
COMMON = (
    f"--max_steps {STEPS} --save_steps {EVERY} --logging_steps 3 --eval_steps 7 --use_cpu true --disable_tqdm true "
    "--weight_ema_decay 0.9"
)
AUTOENCODER = (
    "--model_config.hidden_channels 16 --model_config.stage_channels [8] --model_config.codebook_size 16 "
    f"--lr_scheduler_type cosine {COMMON}"
)
ADVERSARIAL = (  # with every kind of state that a discriminator's turn can have
    f"{AUTOENCODER} --image_size 16 --per_device_train_batch_size 32 --perceptual random --adversarial_weight 0.4 "
    "--discriminator_start_step 5 --adversarial_ramp_steps 5 --lecam_weight 0.01 --r1_weight 0.1 --r1_interval 3 "
    "--discriminator_config.hidden_channels 8 --discriminator_config.num_layers 1 --discriminator_config.norm batch"
)
KINDS = {  # the verb of each kind and the rest of its line, which may name the data and the outputs of kinds above it
    "autoencoder": ("train autoencoder", f"--data digits {AUTOENCODER}"),
    "codes": ("tokenize", "{autoencoder} --data digits --shard_size 100"),
    "prior": (
        "train prior",
        "--codes {codes} --autoencoder {autoencoder} --prior_config.hidden_channels 16 --prior_config.num_layers 1 "
        f"--prior_config.head_channels 8 {COMMON}",
    ),
    "adversarial": ("train autoencoder", f"--data digits {ADVERSARIAL}"),
    "streamed": ("train autoencoder", f"--data {{parquet}} --streaming {ADVERSARIAL}"),
}
TRAININGS = tuple(kind for kind, (verb, _) in KINDS.items() if verb.startswith("train"))
WRITES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")  # events that Python tells of
TIMED = ("trainer_state.json", "run_state.json", "report.json")  # compared but for times
TIMES = ("runtime", "per_second", "seconds", "time")  # in names of their figures
ELSEWHERE = ("checkpoint_manifest.json", "training_args.bin")  # hold hashes of files with times, paths
OF_RESUMES = ("resume_from_checkpoint",)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def at_step(number, act):
    """Act in an optimizer step, once the weights have moved; return the list of the optimizers that stepped so far."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    stepped = []

    def hook(optimizer, *_):
        stepped.append(id(optimizer))
        if len(stepped) == number:
            act()

    register_optimizer_step_post_hook(hook)
    return stepped


def at_write(place, number, act):
    """Act at an event of the files whose paths have a place in them; return the list of all events so far."""
    events = []

    def hook(event, arguments):
        if event in WRITES and place in str(arguments[0]):
            events.append(event)
            if len(events) == number:
                act()

    sys.addaudithook(hook)
    return events


def run(line, log):
    """One command of `hf-vq` in this process; its exit status."""
    import hf_vq_cli

    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    status = hf_vq_cli.main(line.split())
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def child(line, log, where=None, number=0):
    """A process that runs a command, and may die in it."""
    if where == "checkpoint":
        at_write("checkpoint-", int(number), die)
    elif where is not None:
        at_step(int(number), die)
    os._exit(run(line, log))


def counting_child(line, log, output):
    """A process that runs a command, and tells its moments: see `Runs.make_whole`."""
    of_checkpoints, of_all = (at_write(place, 0, die) for place in ("checkpoint-", output))
    stepped = at_step(0, die)
    status = run(line, log)
    between = [number for number in range(1, len(stepped)) if stepped[number] not in (stepped[0], stepped[number - 1])]
    moments = {
        "step": list(range(1, len(stepped) + 1)),
        "turn": between or list(range(1, len(stepped) + 1)),
        "checkpoint": list(range(1, len(of_checkpoints) + 1)),
        "file": list(range(1, len(of_all) * 4 // 5 + 1)),
    }
    Path(f"{log}.json").write_text(json.dumps(moments))
    os._exit(status)


def complete(folder):
    from hf_vq.training.checkpoints import list_checkpoints, why_incomplete

    return [path for _, path in list_checkpoints(folder) if why_incomplete(path) is None]


def leftovers(folder):
    """Temporary files, locks and checkpoints that are not whole."""
    whole = {path.name for path in complete(folder)}
    return sorted(
        str(path.relative_to(folder))
        for path in Path(folder).rglob("*")
        if path.name.endswith((".incomplete", ".partial", ".lock", ".tmp"))
        or (path.name.startswith("checkpoint-") and path.name not in whole)
    )


def without_times(value):
    """JSON without what may differ between two runs that are the same."""
    if isinstance(value, list):
        return [without_times(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {key: each for key, each in value.items() if key not in OF_RESUMES and not any(t in key for t in TIMES)}
    return {key: without_times(each) for key, each in kept.items()}


def contents(folder):
    """What must be equal to the bit, by file: every one of the last checkpoint and of all that is published."""
    found = {}
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        older = name.parts[0].startswith("checkpoint-") and name.parts[0] != f"checkpoint-{STEPS}"
        if older or path.name in ELSEWHERE:
            continue
        if path.name in TIMED:
            found[str(name)] = without_times(json.loads(path.read_text().replace(str(folder), "OUTPUT")))
        else:
            found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def differing(expected, found):
    """Names of what two `contents` do not share."""
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def write_images(folder):
    """Digits as Parquet, which can be streamed; passes of the training data end within a step."""
    from datasets import ClassLabel, Dataset, Features, Image
    from sklearn.datasets import load_digits

    folder.mkdir()
    digits = load_digits()
    features = Features({"image": Image(), "label": ClassLabel(10)})
    for split, rows in (("train", slice(0, 300)), ("validation", slice(300, 364))):
        images = [(image * 15).astype("uint8") for image in digits.images[rows]]
        columns = {"image": images, "label": digits.target[rows].tolist()}
        Dataset.from_dict(columns, features).to_parquet(folder / f"{split}.parquet")


class Runs:
    """Runs of some kinds in a folder, the whole ones and the disturbed ones.

    Args:
        folder: for all that they write.
        kinds: names in `KINDS`.
    """

    def __init__(self, folder, kinds):
        self.folder, self.kinds, self.context = folder, kinds, multiprocessing.get_context("forkserver")
        verbs = ("train_autoencoder", "train_prior", "tokenize")
        self.context.set_forkserver_preload([f"hf_vq.cli.{verb}" for verb in verbs])
        self.whole = {kind: folder / "whole" / kind for kind in KINDS}
        self.places = {"parquet": folder / "parquet", **self.whole}
        self.failed = []

    @property
    def trainings(self):
        return [kind for kind in self.kinds if kind in TRAININGS]

    def line(self, kind, output):
        verb, rest = KINDS[kind]
        return f"{verb} {rest.format_map(self.places)} --output {output}"

    def resuming(self, kind, output):
        return f"{KINDS[kind][0]} --resume {output}" if kind in TRAININGS else f"{self.line(kind, output)} --resume"

    def start(self, target, *arguments):
        process = self.context.Process(target=target, args=[str(one) for one in arguments])
        process.start()
        process.join()
        return process.exitcode

    def needed(self):
        """The kinds, those that they read included, in their order."""
        wanted = set(self.kinds)
        for kind, (_, rest) in reversed(KINDS.items()):
            if kind in wanted:
                wanted |= {name for _, name, _, _ in string.Formatter().parse(rest) if name}
        return [kind for kind in KINDS if kind in wanted], "parquet" in wanted

    def make_whole(self):
        """The runs that nothing disturbs.

        Returns:
            Of each the moments at which it can be disturbed, numbered from 1: optimizer steps ("step"), those after
            which the next one is another optimizer's within the same step ("turn"; all where there is one optimizer),
            events of files of checkpoints ("checkpoint"), and the first four fifths of those of all files ("file").
        """
        kinds, streamed = self.needed()
        if streamed:
            write_images(self.places["parquet"])
        moments = {}
        for kind in kinds:
            log, output = self.folder / f"whole-{kind}", self.whole[kind]
            if self.start(counting_child, self.line(kind, output), log, output):
                raise SystemExit(Path(f"{log}.err").read_text())
            moments[kind] = json.loads(Path(f"{log}.json").read_text())
        return moments

    def check(self, name, fine, why=""):
        print(f"  {'ok  ' if fine else 'LOST'}  {name}{'' if fine else f'  {why}'}", flush=True)
        if not fine:
            self.failed.append(name)
