"""Programs in processes of their own: for settings, which are read once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent
PREAMBLE = "import cudasim\ncudasim.install()\nimport cupy as cp\nimport numpy as np\n"


def run(program: str, preamble: str = PREAMBLE, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program with the simulator; the settings become environment variables."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("CUDASIM_")}
    env.update(settings, PYTHONPATH=str(FOLDER))
    command = [sys.executable, "-c", preamble + program]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)


def output(program: str, **settings: str) -> str:
    """Return what a program prints; it must end well."""
    done = run(program, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout
