#!/usr/bin/env bash
# Lint, format, types and tests, from nothing. Arguments go to pytest: ./scripts/test.sh tests/data -k plan
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install test
ensure_chromium
if [ $# -eq 0 ]; then
  say "Lint and format"
  .venv/bin/ruff check .
  .venv/bin/ruff format --check .
  say "Types"
  .venv/bin/pyright
fi
say "Tests"
export JAX_PLATFORMS=cpu
exec .venv/bin/python -m pytest -n 2 --dist worksteal "$@"
