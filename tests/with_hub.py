"""Runs a command beside the tests' Hub: `python -m tests.with_hub examples/own_pictures.sh FOLDER me/name`."""

import os
import subprocess
import sys
import tempfile

from tests.hub_server import TOKEN, Hub


def main(command):
    hub = Hub()
    try:
        with tempfile.TemporaryDirectory() as home:
            about = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": home, "HF_HUB_OFFLINE": "0"}
            about |= {"HF_HUB_DISABLE_XET": "1"}  # it takes files by LFS
            return subprocess.run(command, env=os.environ | about).returncode
    finally:
        hub.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
