#!/usr/bin/env bash
# accelerate 1.15.0: `accelerate launch --cpu --num_processes 2` on a machine without MPI starts ONE process. It exits
# with 0 and does not say so: the script sees WORLD_SIZE unset and trains on all of the data by itself, with half of the
# batch that was asked for. torchrun starts two from the same script.
#
# Seen, on a CPU:
#   accelerate launch --cpu --num_processes 2: "process 0 of 1" once
#   torchrun --nproc_per_node 2: "process 0 of 2" and "process 1 of 2"
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" "accelerate==1.15.0" "numpy==2.4.6"
cat > "$work/script.py" <<'PY'
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
print(f"process {accelerator.process_index} of {accelerator.num_processes}", flush=True)
PY
cd "$work"
launched=$(OMP_NUM_THREADS=1 venv/bin/accelerate launch --cpu --num_processes 2 --num_machines 1 \
  --mixed_precision no --dynamo_backend no script.py | grep '^process')
run=$(OMP_NUM_THREADS=1 venv/bin/torchrun --nproc_per_node 2 script.py | grep '^process' | sort)
echo "accelerate launch: $launched"
echo "torchrun: $run"
[ "$launched" = "process 0 of 1" ]
[ "$run" = "$(printf 'process 0 of 2\nprocess 1 of 2')" ]
