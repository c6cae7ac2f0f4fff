"""Nothing is lost: trainings that are killed (SIGKILL) or whose disk is full go on to the bits of one that was not.

    python benchmarks/kills.py            # 20 kills, half of them in a checkpoint's files; 10 full disks; flipped bits

About five minutes on two cores. A kill "in a step" comes after the optimizer has moved the weights; one "in a
checkpoint" at one of the moments at which a file of a checkpoint is opened, made, renamed or removed. Full disks are
file systems in memory, which a process mounts in a namespace of its own (Linux, as root); another file fills them up
to a few pages at one of the moments at which the run opens a file, so that a writer of any kind is the first to fail.
"""

import argparse
import ctypes
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

STEPS, EVERY = 25, 5
COMMON = (
    f"--max_steps {STEPS} --save_steps {EVERY} --logging_steps 3 --eval_steps 7 --use_cpu true --disable_tqdm true"
)
TRAIN = {
    "autoencoder": "train autoencoder --data digits --model_config.hidden_channels 16 "
    "--model_config.stage_channels [8] --model_config.codebook_size 16 --weight_ema_decay 0.9 "
    f"--lr_scheduler_type cosine {COMMON}",
    "prior": "train prior --codes {codes} --autoencoder {autoencoder} --prior_config.hidden_channels 16 "
    f"--prior_config.num_layers 1 --prior_config.head_channels 8 --weight_ema_decay 0.9 {COMMON}",
    "codes": "tokenize {autoencoder} --data digits --shard_size 100",
}
WRITES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")  # events that Python tells of
TIMES = ("runtime", "per_second")  # in names of figures of the history
ELSEWHERE = (
    "trainer_state.json",
    "run_state.json",
    "training_args.bin",
    "checkpoint_manifest.json",
)  # hold paths, times
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 16384, 1 << 18


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_step(number):
    """Die in an optimizer step, once the weights have moved."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    steps = []

    def count(*_):
        steps.append(0)
        if len(steps) == number:
            die()

    register_optimizer_step_post_hook(count)


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
    if where == "step":
        kill_in_step(int(number))
    elif where is not None:
        at_write("checkpoint-", int(number), die)
    os._exit(run(line, log))


def counting_child(line, log, output):
    """A process that runs a command, and counts what files of checkpoints, and of all, it opens, makes and so on."""
    events = [at_write(place, 0, die) for place in ("checkpoint-", output)]
    status = run(line, log)
    Path(f"{log}.json").write_text(json.dumps([len(each) for each in events]))
    os._exit(status)


def full_child(line, output, number, pages, log, again):
    """A process that runs a command on a disk that fills up; then, with room, `again`. The log tells both."""
    libc = ctypes.CDLL(None, use_errno=True)
    disk = Path(output).parent
    if (
        libc.unshare(CLONE_NEWNS)
        or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        or libc.mount(b"tmpfs", os.fsencode(disk), b"tmpfs", 0, b"size=64m")
    ):
        raise OSError(ctypes.get_errno(), "no file system of its own")

    def fill():
        with open(disk / "ballast", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, (shutil.disk_usage(disk).free // 4096 - int(pages)) * 4096)

    at_write(output, int(number), fill)
    found = {"status": run(line, log), "error": Path(f"{log}.err").read_text()}
    found["left"], checkpoints = leftovers(output), complete(output)
    (disk / "ballast").unlink()
    anew = not checkpoints and line.startswith("train")
    found["again"] = run(f"{line} --overwrite" if anew else again, f"{log}.again")
    found["files"], found["left again"] = contents(output), leftovers(output)
    Path(f"{log}.json").write_text(json.dumps(found))
    os._exit(0)


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


def contents(folder):
    """What must be equal to the bit: hashes of all files of the last checkpoint and of what is published; history."""
    import hashlib

    folder, found = Path(folder), {}
    published = [*folder.glob("*.safetensors"), *folder.glob("*.yaml"), *folder.glob("data/*"), folder / "config.json"]
    for path in [*(folder / f"checkpoint-{STEPS}").glob("*"), *published]:
        if path.name not in ELSEWHERE and path.is_file():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    if (folder / "report.json").is_file():
        history = json.loads((folder / "report.json").read_text())["history"]
        found["history"] = [{k: v for k, v in entry.items() if not any(t in k for t in TIMES)} for entry in history]
    return found


class Runs:
    def __init__(self, folder):
        self.folder, self.context = folder, multiprocessing.get_context("forkserver")
        verbs = ("train_autoencoder", "train_prior", "tokenize")
        self.context.set_forkserver_preload([f"hf_vq.cli.{verb}" for verb in verbs])
        self.whole = {kind: folder / "whole" / kind for kind in TRAIN}
        self.lines = {
            kind: line.format(**{name: str(path) for name, path in self.whole.items()}) for kind, line in TRAIN.items()
        }
        self.failed = []

    def start(self, target, *arguments):
        process = self.context.Process(target=target, args=[str(one) for one in arguments])
        process.start()
        process.join()
        return process.exitcode

    def make_whole(self):
        """The runs that nothing disturbs; how many events each has of files of checkpoints, and of all its files."""
        events = {}
        for kind in ("autoencoder", "codes", "prior"):
            log = self.folder / f"whole-{kind}"
            output = self.whole[kind]
            if self.start(counting_child, f"{self.lines[kind]} --output {output}", log, output):
                raise SystemExit(Path(f"{log}.err").read_text())
            events[kind] = json.loads(Path(f"{log}.json").read_text())
        return events

    def check(self, name, fine, why=""):
        print(f"  {'ok  ' if fine else 'LOST'}  {name}{'' if fine else f'  {why}'}", flush=True)
        if not fine:
            self.failed.append(name)

    def kill(self, name, kind, where, number):
        """Kill a run, resume it, compare; a run that had no whole checkpoint starts anew."""
        output, log = self.folder / name / kind, self.folder / f"{name}.log"
        status = self.start(child, f"{self.lines[kind]} --output {output}", log, where, number)
        had = [path.name for path in complete(output)]
        line = f"train {kind} --resume {output}" if had else f"{self.lines[kind]} --output {output} --overwrite"
        again = self.start(child, line, f"{log}.again")
        expected, found = contents(self.whole[kind]), contents(output)
        differ = sorted(name for name in expected if found.get(name) != expected[name])
        fine = status == -signal.SIGKILL and again == 0 and not differ and not leftovers(output)
        error = Path(f"{log}.again.err").read_text()[-300:]
        self.check(
            f"{kind}, killed in a {where} ({number}), resumed from {had[-1] if had else 'the start'}",
            fine,
            f"status {status}, {again}; other: {differ}; left: {leftovers(output)}; {error}",
        )

    def fill(self, name, kind, number, pages):
        """Fill the disk of a run, make room, resume, compare."""
        disk = self.folder / name
        disk.mkdir()
        output, log = disk / kind, self.folder / f"{name}.log"
        line = f"{self.lines[kind]} --output {output}"
        again = f"train {kind} --resume {output}" if kind != "codes" else f"{line} --resume"
        self.start(full_child, line, output, number, pages, log, again)
        found = json.loads(Path(f"{log}.json").read_text())
        errors = [text for text in found["error"].splitlines() if text.startswith("hf-vq: error: ")]
        one_line = len(errors) == 1 and found["error"].count("\n") == 1 and "Traceback" not in found["error"]
        advised = any(words in errors[0] for words in ("resume", "start anew")) if one_line else False
        told = one_line and ("one checkpoint needs" in errors[0] or ("cannot write" in errors[0] and advised))
        expected = contents(self.whole[kind])
        differ = sorted(name for name in expected if found["files"].get(name) != expected[name])
        clean = not found["left"] and not found["left again"]
        fine = found["status"] == 2 and told and clean and found["again"] == 0 and not differ
        why = f"{found['status']}, {found['again']}; {found['left']} {found['left again']}; {differ}; {found['error']}"
        self.check(
            f"{kind}, disk full at {number}: {errors[0].removeprefix('hf-vq: error: ') if errors else ''}", fine, why
        )

    def flip(self, kind, draw):
        """Flip a bit of each file of a checkpoint in turn."""
        from hf_vq.training.checkpoints import MANIFEST, resolve_checkpoint

        checkpoint = self.whole[kind] / f"checkpoint-{STEPS}"
        for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
            content = path.read_bytes()
            damaged = bytearray(content)
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            try:
                resolve_checkpoint(checkpoint.parent, checkpoint)
                fine = False
            except ValueError as error:
                fine = path.name in str(error) or path.name == MANIFEST  # of a changed hash the file is named
            finally:
                path.write_bytes(content)
            self.check(f"{kind}, a bit of {path.relative_to(checkpoint)}", fine)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--disks", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, started = random.Random(options.seed), time.monotonic()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder))
        events = runs.make_whole()
        print(f"{options.kills} kills", flush=True)
        for number in range(options.kills):
            kind = ("autoencoder", "prior")[number % 2]
            where = ("step", "checkpoint")[number // 2 % 2]
            at = draw.randint(1, STEPS if where == "step" else events[kind][0])
            runs.kill(f"kill-{number}", kind, where, at)
        print(f"{options.disks} full disks", flush=True)
        for number in range(options.disks):
            kind = ("autoencoder", "prior", "autoencoder", "prior", "codes")[number % 5]
            runs.fill(f"disk-{number}", kind, draw.randint(1, events[kind][1] * 4 // 5), draw.randrange(6))
        print("flipped bits", flush=True)
        for kind in ("autoencoder", "prior"):
            runs.flip(kind, draw)
    failed = f"{len(runs.failed)} failed" if runs.failed else "nothing lost"
    print(f"{failed}, {time.monotonic() - started:.0f} s")
    sys.exit(bool(runs.failed))


if __name__ == "__main__":
    main()
