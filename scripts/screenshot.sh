#!/usr/bin/env bash
# A picture of the top of a run's report, or of the live page, in light colours:
#   scripts/screenshot.sh RUN OUT.png [WIDTH,HEIGHT]
#   scripts/screenshot.sh http://127.0.0.1:8765/ OUT.png [WIDTH,HEIGHT]     the address that `jaxtune watch` has printed
set -euo pipefail
live=; case "${1:-}" in http://127.0.0.1:*) live=yes ;; esac
if [ $# -lt 2 ] || { [ -z "$live" ] && [ ! -f "$1/report.html" ]; }; then
  echo "usage: $0 RUN OUT.png [WIDTH,HEIGHT]    RUN is the folder of a run that has ended (with report.html), or the address of" >&2
  echo "the live page; found: ${1:-nothing}" >&2
  exit 2
fi
page="$1"; [ -n "$live" ] || page="$(realpath "$1")/report.html"
picture="$(realpath -m "$2")" size="${3:-1200,1500}"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ -x .venv/bin/python ] || { echo "No .venv here yet: run scripts/quickstart.sh or scripts/test.sh first." >&2; exit 2; }
ensure_chromium
find_chromium || exit 2

profile="$(mktemp -d)"
trap 'rm -rf "$profile"' EXIT
address="$page"
[ -n "$live" ] || address="$(.venv/bin/python -c 'import pathlib, sys; print(pathlib.Path(sys.argv[1]).as_uri())' "$page")"
# --no-sandbox: as root Chromium does not start otherwise; the page runs no script, or ours. No other host can be found, so the browser keeps
# to itself. The live page is given five seconds of its own time to ask for its numbers.
timeout 120 "$chromium" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars \
  --disable-background-networking --disable-component-update --disable-default-apps --disable-sync \
  --host-resolver-rules="MAP * ~NOTFOUND, EXCLUDE 127.0.0.1" ${live:+--virtual-time-budget=5000} --blink-settings=preferredColorScheme=1 \
  --user-data-dir="$profile" --window-size="$size" --screenshot="$profile/page.png" "$address" 2>"$profile/log" || {
  cat "$profile/log" >&2
  exit 1
}
# A palette shows text and lines as they are, at a fraction of the bytes; "max coverage" keeps colours that are rare.
.venv/bin/python - "$profile/page.png" "$picture" <<'EOF'
import sys
from pathlib import Path

from PIL import Image

source, target = map(Path, sys.argv[1:])
with Image.open(source) as image:
    image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(target, "PNG", optimize=True)
print(f"{target}: {target.stat().st_size / 1024:.0f} kB")
EOF
