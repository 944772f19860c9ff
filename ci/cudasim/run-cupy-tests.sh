#!/bin/sh
# Runs files of CuPy's own tests (they are in CuPy's sdist), one process each, and keeps a log of each.
# Usage: ./run-cupy-tests.sh PYTHON TESTS_DIR LOG_DIR file...   (files relative to TESTS_DIR)
set -u
python=$1 tests=$2 logs=$3
shift 3
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$logs"
logs=$(cd "$logs" && pwd)
cd "$tests" || exit 1
for file in "$@"; do
  log="$logs/$(echo "$file" | tr / _).log"
  start=$(date +%s)
  timeout "${LIMIT:-240}" nice -n 5 "$here/with-cuda-sim" "$python" -X faulthandler -m pytest -q --maxfail=5000 \
    --tb=short -p no:cacheprovider -W ignore -m "not slow and not multi_gpu" -k "${KEXPR:-not zzz}" "$file" >"$log" 2>&1
  status=$?
  echo "$file rc=$status $(($(date +%s) - start))s $(tail -n 1 "$log" | cut -c1-160)" | tee -a "$logs/summary.txt"
done
