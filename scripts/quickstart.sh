#!/usr/bin/env bash
# The main job: fine-tunes MiniLM on BBC News on this machine, evaluates, exports, and says where everything lies.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install ""
say "Fine-tuning all-MiniLM-L6-v2 on BBC News (configs/quickstart.yaml)"
exec .venv/bin/jaxtune train configs/quickstart.yaml "$@"
