"""The cases of `silent_faults.py`, run with one checkout: their verdicts as JSON."""

import json
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

import fault_codes  # noqa: F401  each registers its kinds
import fault_files  # noqa: F401
import fault_learning  # noqa: F401
import fault_loading  # noqa: F401
import fault_numbers  # noqa: F401
import fault_pictures  # noqa: F401
import fault_training  # noqa: F401
import torch
import transformers
from checkouts import check_origin
from fault_kinds import KINDS, draw_cases, judge_apart
from fault_models import check_covered


def main(checkout, target, seed, *kinds):
    check_origin(checkout)
    check_covered()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    unknown = [name for name in kinds if name not in KINDS]
    if unknown:
        raise SystemExit(f"no kind {unknown[0]!r}: there are {', '.join(KINDS)}")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # cases make their files here
        for name in kinds or KINDS:
            cases = {case.name: judge_apart(case) for case in draw_cases(name, int(seed))}
            found[name] = {"title": KINDS[name][0], "cases": cases}
    Path(target).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
