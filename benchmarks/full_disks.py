"""Full disks and flipped bits, of `kills.py`."""

import ctypes
import json
import os
import shutil
from pathlib import Path

from killed_runs import STEPS, at_write, complete, contents, differing, leftovers, run

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 16384, 1 << 18


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


def fill(runs, name, kind, number, pages):
    """Fill the disk of a run, make room, resume, compare."""
    disk = runs.folder / name
    disk.mkdir()
    output, log = disk / kind, runs.folder / f"{name}.log"
    runs.start(full_child, runs.line(kind, output), output, number, pages, log, runs.resuming(kind, output))
    found = json.loads(Path(f"{log}.json").read_text())
    errors = [text for text in found["error"].splitlines() if text.startswith("hf-vq: error: ")]
    one_line = len(errors) == 1 and found["error"].count("\n") == 1 and "Traceback" not in found["error"]
    advised = any(words in errors[0] for words in ("resume", "start anew")) if one_line else False
    told = one_line and ("one checkpoint needs" in errors[0] or ("cannot write" in errors[0] and advised))
    differ = differing(contents(runs.whole[kind]), found["files"])
    clean = not found["left"] and not found["left again"]
    fine = found["status"] == 2 and told and clean and found["again"] == 0 and not differ
    why = f"{found['status']}, {found['again']}; {found['left']} {found['left again']}; {differ}; {found['error']}"
    runs.check(
        f"{kind}, disk full at {number}: {errors[0].removeprefix('hf-vq: error: ') if errors else ''}", fine, why
    )


def flip(runs, kind, draw):
    """Flip a bit of each file of a checkpoint in turn."""
    from hf_vq.training.checkpoints import MANIFEST, resolve_checkpoint

    checkpoint = runs.whole[kind] / f"checkpoint-{STEPS}"
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
        runs.check(f"{kind}, a bit of {path.relative_to(checkpoint)}", fine)
