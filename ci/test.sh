#!/usr/bin/env bash
# All checks, on a machine with nothing but Python 3.10+ (and g++ for the CuPy half): bash ci/test.sh
usage() {
  cat <<'EOF'
usage: bash ci/test.sh [--slow] [--outside] [--browser] [--without-cupy] [-- PYTEST ARGUMENTS]

Makes a virtual environment (.venv-test) and runs: ruff, mypy, the tests on NumPy with their coverage, the built wheel,
the tests on CuPy with a simulated GPU (ci/cudasim), and training steps with that GPU as late as it may be.

  --slow           also the tests marked slow
  --outside        also compare with PyTorch and ONNX Runtime, which are installed into .venv-outside
  --browser        also open the HTML report and the page of `xpcnn serve` in a headless Chromium, which must be there (and chromedriver)
  --without-cupy   leave the CuPy half out (no g++, or not x86-64 Linux)
  -- ARGUMENTS     go to every run of pytest, for example -- -k conv -x; coverage is then not measured
  PYTHON=...       the Python to use; XPCNN_HYPOTHESIS=dev|ci|intense sets how many cases hypothesis tries
EOF
}

slow="not slow and " cupy=yes outside=no browser=no
while [ $# -gt 0 ]; do
  case $1 in
    --slow) slow="" ;;
    --outside) outside=yes ;;
    --browser) browser=yes ;;
    --without-cupy) cupy=no ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    *) usage >&2 && exit 2 ;;
  esac
  shift
done
source "$(dirname "$0")/common.sh"

passed=() failed=()
step() { # NAME COMMAND...: runs it and remembers how it went; later steps run all the same
  local name=$1 start=$SECONDS status=0
  shift
  printf '\n=== %s: %s\n' "$name" "$*"
  "$@" || status=$?
  if [ $status -eq 5 ] && [ $selected = yes ]; then status=0; fi # pytest: the arguments leave nothing to run here
  if [ $status -eq 0 ]; then
    passed+=("$name $((SECONDS - start)) s")
  else
    failed+=("$name")
    return 1
  fi
}
selected=yes coverage=()
if [ $# -eq 0 ]; then
  selected=no coverage=(--cov --cov-report=term-missing:skip-covered --cov-fail-under=95)
fi
skips=()
if [ "${CI:-}" = true ]; then skips=(--no-skips-except "XPCNN_TEST_DATA does not name a folder"); fi

packages=(-e ".[dev]")
if [ $cupy = yes ]; then packages+=(-r ci/cudasim/requirements.txt); fi
make_venv .venv-test "${packages[@]}"
python=.venv-test/bin/python
export CUPY_CACHE_DIR="$PWD/.cache/cupy"
export CUDASIM_RACECHECK=1 # the simulated GPU stops a kernel whose threads race
simulator=ci/cudasim/with-cuda-sim
tests() { # MARKERS OPTIONS...
  "$python" -m pytest -m "$1 ${slow}not outside and not browser" "${skips[@]}" "${@:2}"
}
simulated() { "$simulator" "$python" "$@"; }
tests_on_simulator() { simulated -m pytest -m "$1 ${slow}not outside and not browser" --backend cupy "${skips[@]}" "${@:2}"; }
late() { CUDASIM_ASYNC=1 tests_on_simulator "$@"; }

step lint "$python" -m ruff check . || true
step format "$python" -m ruff format --check . || true
if "$python" -c 'import sys, numpy; sys.exit(tuple(map(int, numpy.__version__.split(".")[:2])) < (2, 3))'; then
  step types "$python" -m mypy || true
else
  echo "types: not checked here, since the annotations of this old NumPy lack what mypy --strict needs (2.3 or newer)"
fi
step wheel "$python" ci/check_wheel.py || true
step docs env NO_MKDOCS_2_WARNING=1 "$python" -m mkdocs build --strict --quiet --site-dir .cache/site || true
if [ $cupy = yes ]; then
  if step cudasim ci/cudasim/build.sh "$PWD/$python"; then
    step "cudasim self-test" simulated ci/cudasim/selftest.py || true
    step CuPy tests_on_simulator "" "$@" || true
    step "CuPy, late" late "cuda_async and" "$@" || true
  else
    echo "ci/test.sh: the simulated GPU cannot be built, so nothing ran on CuPy; see above, or use --without-cupy" >&2
  fi
fi
if [ $outside = yes ]; then
  make_venv .venv-outside -e ".[dev]" torch==2.13.0 onnxruntime
  step "outside judges" .venv-outside/bin/python -m pytest -m "${slow}outside" --backend numpy tests/outside "$@" || true
fi
if [ $browser = yes ]; then
  step browser "$python" -m pytest -m browser --backend numpy tests/browser || true
fi
# last, since the closing line of this run says most
step NumPy tests "" --backend numpy "${coverage[@]}" "$@" || true

echo
join() { local text; text=$(printf ', %s' "$@"); echo "${text:2}"; }
without=""
if [ $cupy = no ]; then without="; WITHOUT CUPY: nothing ran on CuPy, because --without-cupy was given"; fi
if [ ${#failed[@]} -gt 0 ]; then
  echo "ci/test.sh: FAILED: $(join "${failed[@]}") (after $SECONDS s)$without"
  exit 1
fi
echo "ci/test.sh: all passed in $SECONDS s: $(join "${passed[@]}")$without"
