#!/bin/sh
# One command on a new machine: installs the wheels and builds. Usage: ./setup.sh [path/to/venv/bin/python]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${1:-python3}
"$python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
exec "$here/build.sh" "$python"
