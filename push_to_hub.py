"""Publish a trained folder on the Hugging Face Hub; the same as `hf-vq push`.

python push_to_hub.py FOLDER user/repo --license apache-2.0 [--card model_cards/NAME] [--private]
"""

import sys

from hf_vq_cli import main

if __name__ == "__main__":
    sys.exit(main(["push", *sys.argv[1:]]))
