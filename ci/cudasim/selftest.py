"""Runs the tests of the simulator. Usage: ./with-cuda-sim python selftest.py [arguments of pytest, e.g. -k atomic]"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    try:
        import pytest
    except ImportError:
        sys.exit(f"the tests need pytest: {sys.executable} -m pip install pytest")
    os.chdir(Path(__file__).resolve().parent)  # pytest.ini is here, and names the folder with the tests
    sys.exit(pytest.main(["-q", "-c", "pytest.ini", *sys.argv[1:]]))
