#!/usr/bin/env bash
# From a fresh machine to a trained network: bash ci/demo.sh
usage() {
  cat <<'EOF'
usage: bash ci/demo.sh [FOLDER]

Makes a virtual environment (.venv-demo), trains a small CNN on the 10,000 real MNIST digits that come with xpcnn, and
leaves the model, its history and a picture of what it has learned, gallery.png, in FOLDER (default runs/demo).

  PYTHON=...   the Python to use
EOF
}

case ${1:-} in
  -h | --help) usage && exit 0 ;;
  -*) usage >&2 && exit 2 ;;
esac
out=${1:-runs/demo}
source "$(dirname "$0")/common.sh"

make_venv .venv-demo -e ".[viz]"
.venv-demo/bin/xpcnn train mnist --model lenet --epochs 8 --batch-size 100 --optimizer adam --lr 3e-3 \
  --schedule onecycle --augment light --workers 2 --seed 0 --out "$out"

.venv-demo/bin/python ci/gallery.py "$out"

.venv-demo/bin/python - "$out" "$SECONDS" <<'EOF'
import json, pathlib, sys

folder = pathlib.Path(sys.argv[1])
result = json.loads((folder / "run.json").read_text())["result"]["best"]
print(f"""
accuracy on 1,000 digits it has not seen: {100 * result["val_accuracy"]:.1f} %
model:    {folder / "best.safetensors"}    try: .venv-demo/bin/xpcnn predict {folder / "best.safetensors"} IMAGE...
ci/demo.sh: done in {sys.argv[2]} s; see {folder / "gallery.png"}""")
EOF
