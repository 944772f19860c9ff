# Shared by ci/test.sh and ci/demo.sh: finds a Python and makes a virtual environment. To be sourced by bash.

set -eo pipefail # no -u: bash 3.2 calls empty arrays unset
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
unset PYTHONPATH PYTHONHOME

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

# Prints the first Python that is new enough and can make virtual environments; $PYTHON comes first.
find_python() {
  local candidate reason=""
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.10 python; do
    command -v "$candidate" >/dev/null || continue
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || continue
    if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
    reason=" ($(command -v "$candidate") cannot make virtual environments: on Debian and Ubuntu, apt-get install python3-venv)"
  done
  fail "needs Python 3.10 or newer$reason; install one, or name it: PYTHON=/path/to/python bash $0"
}

# make_venv DIR WHAT...: a virtual environment with `pip install WHAT...`, kept while nothing that decides it changes.
make_venv() {
  local folder=$1 python wanted
  shift
  python=$(find_python)
  wanted=$("$python" -VV; pwd; echo "$@"; cat pyproject.toml ci/cudasim/requirements.txt)
  if [ "$(cat "$folder/wanted" 2>/dev/null)" = "$wanted" ] && "$folder/bin/python" -c '' 2>/dev/null; then
    return
  fi
  echo "installing into $folder with $("$python" -V)"
  rm -rf "$folder"
  "$python" -m venv "$folder"
  "$folder/bin/python" -m pip install --quiet "$@" || fail "pip could not install $*"
  echo "$wanted" >"$folder/wanted"
}
