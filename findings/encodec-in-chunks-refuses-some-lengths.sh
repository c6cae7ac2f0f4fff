#!/usr/bin/env bash
# transformers 5.23.0: `EncodecModel.encode` of a model with chunks (as facebook/encodec_48khz: 1 s, 1 % overlap) raises
# for sounds that end in the first samples of the overlap of their last chunk: the last two chunks then both are short,
# but only the last one is padded before all are stacked. At 48 kHz that is one length in about 300.
#
# Seen, 48 kHz, chunks of 48,000 samples every 47,520:
#   95,340 samples: 3 chunks of 150 frames
#   95,140 samples: RuntimeError, stack expects each tensor to be equal size, 150 and 149 frames
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" "numpy==2.4.6" "transformers==5.23.0"
"$work/venv/bin/python" - <<'PY'
import torch
from transformers import EncodecConfig, EncodecModel

torch.manual_seed(0)
config = EncodecConfig(
    sampling_rate=48_000, audio_channels=2, chunk_length_s=1.0, overlap=0.01, normalize=True, use_causal_conv=False,
    norm_type="time_group_norm", target_bandwidths=[3.0, 6.0], num_filters=4, hidden_size=8,
)  # the published model's, narrower
model, seen = EncodecModel(config).eval(), {}
for samples in (95_340, 95_140):
    sound = torch.randn(1, 2, samples) * 0.1
    try:
        seen[samples] = tuple(model.encode(sound, bandwidth=6.0).audio_codes.shape)
    except RuntimeError as error:
        assert "stack expects each tensor to be equal size" in str(error), error
        seen[samples] = "error"
    print(samples, seen[samples])
assert seen == {95_340: (3, 1, 4, 150), 95_140: "error"}, seen
print("as described")
PY
