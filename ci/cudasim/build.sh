#!/bin/sh
# Builds cudasim/lib from src/ where its sources, flags or compiler changed; else does nothing.
# Needs g++ and the headers of the nvidia-cuda-runtime wheel. Usage: ./build.sh [path/to/venv/bin/python]
set -eu
cd "$(dirname "$0")"
python=${1:-python3}
CXX=${CXX:-g++}
fail() {
  echo "cudasim: $*" >&2
  exit 1
}

[ "$(uname -sm)" = "Linux x86_64" ] || fail "works on x86-64 Linux only; this is $(uname -sm)"
command -v "$CXX" >/dev/null || fail "needs a C++17 compiler and finds no $CXX (Debian, Ubuntu: apt-get install g++)"
headers=$("$python" -c 'import os, nvidia.cu13 as m; print(os.path.join(next(iter(m.__path__)), "include"))' 2>/dev/null) ||
  fail "$python has no CUDA headers; run: $python -m pip install -r $(pwd)/requirements.txt"
flags="-std=c++17 -O2 -fPIC -fvisibility=hidden -fno-strict-aliasing -ffp-contract=off -frounding-math"
flags="$flags ${CUDASIM_CXXFLAGS:-}"

lib=cudasim/lib
stamp=$({ find src -type f | LC_ALL=C sort | xargs cat; cat build.sh; echo "$flags"; "$CXX" --version; } | sha256sum)
if [ "$(cat $lib/stamp 2>/dev/null)" = "$stamp" ]; then
  echo "cudasim: $lib is up to date"
  exit 0
fi

new=$(mktemp -d "$(pwd)/build.XXXXXX")
trap 'rm -rf "$new"' EXIT
echo "cudasim: building $lib (about half a minute)"
for name in ptx rt blas rand; do
  # shellcheck disable=SC2086  # flags are words
  { "$CXX" $flags -Isrc/inc "-I$headers" -c src/$name.cpp -o "$new/$name.o" && touch "$new/$name.ok"; } &
done
wait
for name in ptx rt blas rand; do
  [ -f "$new/$name.ok" ] || fail "src/$name.cpp does not compile with $("$CXX" --version | head -n 1)"
done
rm "$new"/*.ok

cd "$new"
mkdir out
"$CXX" -shared -o out/libcudasim.so rt.o ptx.o -ldl -lpthread -Wl,-soname,libcudasim.so
echo 'int cudasim_stub_marker;' >empty.cpp
"$CXX" -fPIC -c empty.cpp -o empty.o
link() { # soname, object, then flags: a library that CuPy loads by name and that finds its functions in libcudasim.so
  soname=$1 object=$2
  shift 2
  "$CXX" -shared -o "out/$soname" "$object" "-Wl,-soname,$soname" "$@" \
    -Wl,--no-as-needed -Lout -lcudasim '-Wl,-rpath,$ORIGIN'
}
versioned() { # the same, with symbols of the version that CuPy asks for
  printf '%s { global: *; };\n' "$1" >"$1.map"
  link "$1" "$2" "-Wl,--version-script=$1.map"
}
link libcuda.so.1 empty.o
link libcudart.so.13 empty.o
link libcublasLt.so.13 empty.o
versioned libcublas.so.13 blas.o
versioned libcurand.so.10 rand.o
cd ../
echo "$stamp" >"$new/out/stamp"
rm -rf "$lib"
mv "$new/out" "$lib"
echo "cudasim: built $(pwd)/$lib"
