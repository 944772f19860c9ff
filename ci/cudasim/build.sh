#!/bin/sh
# Builds cudasim/lib from src/ where its sources, flags or compiler changed; else does nothing.
# Needs g++ and the headers of the nvidia-cuda-runtime wheel. Usage: ./build.sh [path/to/venv/bin/python]
# CUDASIM_CXXFLAGS adds flags of the compiler and the linker, for example -fsanitize=undefined.
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
# IEEE arithmetic as written: no fused multiply-add of the compiler's own making, and no constants folded as if numbers
# were always rounded to nearest (instructions with .rz and the like change the mode).
arithmetic="-ffp-contract=off -frounding-math"
flags="-std=c++17 -O2 -Wall -Wextra -fPIC -fvisibility=hidden -fno-strict-aliasing $arithmetic ${CUDASIM_CXXFLAGS:-}"

lib=cudasim/lib
stamp=$({ find src -type f | LC_ALL=C sort | xargs cat; cat build.sh; echo "$flags"; "$CXX" --version; } | sha256sum)
if [ "$(cat $lib/stamp 2>/dev/null)" = "$stamp" ]; then
  echo "cudasim: $lib is up to date"
  exit 0
fi

here=$(pwd)
mkdir -p build  # on the same disk as lib, and ignored by git
new=$(mktemp -d "$here/build/XXXXXX")
trap 'rm -rf "$new"; rmdir "$here/build" 2>/dev/null || true' EXIT
mkdir "$new/out"
echo "cudasim: building $lib (about half a minute)"
# shellcheck disable=SC2016,SC2086  # the inner shell expands $0 and $1; flags are words
printf '%s\n' src/*/*.cpp |
  xargs -I FILE -P "$(nproc)" sh -c '
    object=$0/$(echo "$1" | tr / .).o && file=$1 && shift
    "$@" -c "$file" -o "$object"' "$new" FILE "$CXX" $flags -Isrc -Isrc/inc "-I$headers" ||
  fail "src does not compile with $("$CXX" --version | head -n 1)"

link() { # soname, objects and flags...: a library that CuPy loads by name
  soname=$1
  shift
  # shellcheck disable=SC2086
  "$CXX" -shared ${CUDASIM_CXXFLAGS:-} -o "out/$soname" "$@" "-Wl,-soname,$soname"
}
with_libcudasim() { # the same, where its functions are found in libcudasim.so
  link "$@" -Wl,--no-as-needed -Lout -lcudasim '-Wl,-rpath,$ORIGIN'
}
versioned() { # the same, with symbols of the version that CuPy asks for
  printf '%s { global: *; };\n' "$1" >"$1.map"
  with_libcudasim "$@" "-Wl,--version-script=$1.map"
}
cd "$new"
link libcudasim.so src.common.*.o src.ptx.*.o src.runtime.*.o -ldl -lpthread
echo 'int cudasim_marker;' >empty.cpp
"$CXX" -fPIC -c empty.cpp -o empty.o
with_libcudasim libcuda.so.1 empty.o
with_libcudasim libcudart.so.13 empty.o
with_libcudasim libcublasLt.so.13 empty.o
versioned libcublas.so.13 src.blas.*.o
versioned libcurand.so.10 src.rand.*.o
cd "$here"
echo "$stamp" >"$new/out/stamp"
rm -rf "$lib"
mv "$new/out" "$lib"
echo "cudasim: built $here/$lib"
