#!/usr/bin/env bash
# Tests the built wheel with the source tree out of sight: bash ci/test_wheel.sh
usage() {
  cat <<'EOF'
usage: bash ci/test_wheel.sh [--available] [--wheel FILE] [PYTHON NUMPY]

Installs the wheel with its extras into a virtual environment (.venv-wheel-*), copies the tests to a temporary folder and
runs there those of functions, layers, optimizers, data, file formats and the command line, on NumPy.

  PYTHON NUMPY     a version (3.10) or an interpreter, and a version of NumPy (2.0) or the word newest; without them the
                   oldest and the newest that xpcnn is tested on, one after the other
  --wheel FILE     test this wheel; without it, one that is built from the working tree
  --available      do not fail because a Python is not there, as long as one is
  PYTHON310=...    the interpreter for 3.10 (PYTHON313 for 3.13, and so on), if it is not python3.10 on the PATH
EOF
}

pairs=("3.10 2.0" "3.13 newest") # docs/releases.md names them, .github/workflows run them
available=no wheel=""
while [ $# -gt 0 ]; do
  case $1 in
    --available) available=yes ;;
    --wheel)
      [ $# -gt 1 ] || { usage >&2 && exit 2; }
      shift
      wheel=$1
      ;;
    -h | --help) usage && exit 0 ;;
    -*) usage >&2 && exit 2 ;;
    *) break ;;
  esac
  shift
done
case $# in
  0) ;;
  2) pairs=("$1 $2") ;;
  *) usage >&2 && exit 2 ;;
esac
case $wheel in
  "" | /*) ;;
  *) wheel=$PWD/$wheel ;; # common.sh changes the folder
esac
source "$(dirname "$0")/common.sh"
[ -z "$wheel" ] || [ -f "$wheel" ] || fail "there is no wheel $wheel"

# interpreter VERSION|COMMAND: prints one that runs and has that version
interpreter() {
  local name="PYTHON${1/./}" candidate
  case $1 in
    [0-9]*.[0-9]*)
      for candidate in "${!name}" "python$1" python3; do
        if [ "$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$1" ]; then
          command -v "$candidate"
          return
        fi
      done
      return 1
      ;;
    *) command -v "$1" ;;
  esac
}

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT

# test_on PYTHON NUMPY: 0 if all passed
test_on() {
  local version numpy="numpy==$2.*" file=$wheel folder python seen
  version=$("$1" -c 'import platform; print(platform.python_version())') || return 1
  folder=.venv-wheel-$version-$2
  if [ "$2" = newest ]; then numpy=numpy; fi
  PYTHON=$1 make_venv "$folder" "$numpy" hypothesis pytest scipy
  python=$PWD/$folder/bin/python
  if [ -z "$file" ]; then
    "$python" -m pip wheel --quiet --no-deps -w "$temporary/wheel" . || return 1
    file=$(ls "$temporary"/wheel/xpcnn-*.whl)
  fi
  "$python" -m pip install --quiet --force-reinstall --no-deps "$file" || return 1
  "$python" -m pip install --quiet "$file[keras,onnx,report,serve,sklearn,viz]" "$numpy" || return 1

  rm -rf "$temporary/run" && mkdir "$temporary/run"
  cp -R tests pyproject.toml "$temporary/run/"
  cat >"$temporary/run/tests/test_installed.py" <<'EOF'
import sys
import sysconfig
from pathlib import Path

import xpcnn


def test_xpcnn_is_the_installed_one():
    places = [Path(place) for place in sys.path if Path(place, "xpcnn").exists()]
    assert places == [Path(sysconfig.get_path("purelib"))] == [Path(xpcnn.__file__).parent.parent]
EOF
  seen=$("$python" -c 'import platform, numpy; print(platform.python_version(), "with NumPy", numpy.__version__)')
  case $seen in
    "$version "*) seen="Python $seen" ;;
    *) fail "$1 is Python $version and cannot make a virtual environment (Debian, Ubuntu: apt-get install python3-venv)" ;;
  esac
  printf '\n=== %s: %s\n' "$seen" "$(basename "$file")"
  (cd "$temporary/run" && "$python" -m pytest -q -p no:cacheprovider --backend numpy \
    -m "not slow and not outside and not browser" --no-skips-except "XPCNN_TEST_DATA does not name a folder" \
    tests/test_installed.py tests/functional tests/layers tests/data tests/formats/test_formats.py \
    tests/test_backend.py tests/test_optim.py tests/test_cli.py \
    --deselect tests/data/test_sources.py::test_embedded_mnist_can_be_made_again) || return 1 # it runs a script of ci/
  passed+=("$seen")
}

passed=() failed=() missing=()
for pair in "${pairs[@]}"; do
  read -r version numpy <<<"$pair"
  if python=$(interpreter "$version"); then
    test_on "$python" "$numpy" || failed+=("Python $version with NumPy $numpy")
  else
    hint=""
    case $version in [0-9]*) hint="; if there is one, name it: PYTHON${version/./}=/path/to/python$version" ;; esac
    missing+=("Python $version with NumPy $numpy: there is no such Python here$hint")
  fi
done

echo
for line in "${passed[@]}"; do echo "ci/test_wheel.sh: passed on $line"; done
for line in "${failed[@]}"; do echo "ci/test_wheel.sh: FAILED on $line" >&2; done
for line in "${missing[@]}"; do echo "ci/test_wheel.sh: NOT RUN on $line" >&2; done
[ ${#failed[@]} -eq 0 ] && [ ${#passed[@]} -gt 0 ] && { [ ${#missing[@]} -eq 0 ] || [ $available = yes ]; }
