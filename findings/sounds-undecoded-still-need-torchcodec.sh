#!/usr/bin/env bash
# datasets 5.2.0: a column `Audio(decode=False)`, by which paths or bytes are to pass as they are, needs torchcodec as
# soon as a value is encoded, even a path to a WAV file: `Dataset.from_dict` and the audiofolder builder raise
# ImportError. Parquet files whose column is already a struct of bytes and path load and read without it.
#
# Seen, without torchcodec:
#   Dataset.from_dict with Audio(decode=False): ImportError, To support encoding audio data, please install 'torchcodec'
#   the same bytes in a Parquet file, cast to Audio(decode=False): read
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "datasets==5.2.0"
cd "$work"
"$work/venv/bin/python" - <<'PY'
import io
import wave
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Dataset, Features, load_dataset

file = io.BytesIO()
with wave.open(file, "wb") as sound:
    sound.setnchannels(1)
    sound.setsampwidth(2)
    sound.setframerate(8000)
    sound.writeframes(bytes(1600))
Path("a.wav").write_bytes(file.getvalue())
try:
    Dataset.from_dict({"audio": ["a.wav"]}, features=Features({"audio": Audio(decode=False)}))
    made = "made"
except ImportError as error:
    assert "torchcodec" in str(error), error
    made = "ImportError"
print("from a path:", made)
pq.write_table(pa.table({"audio": [{"bytes": file.getvalue(), "path": "a.wav"}]}), "a.parquet")
rows = load_dataset("parquet", data_files="a.parquet", split="train", cache_dir="cache")
read = rows.cast_column("audio", Audio(decode=False))[0]["audio"]["bytes"] == file.getvalue()
print("from Parquet:", "read" if read else "changed")
assert made == "ImportError" and read
print("as described")
PY
