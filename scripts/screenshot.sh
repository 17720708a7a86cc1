#!/usr/bin/env bash
# A picture of the top of a run's report, in light colours: scripts/screenshot.sh RUN OUT.png [WIDTH,HEIGHT]
set -euo pipefail
if [ $# -lt 2 ] || [ ! -f "$1/report.html" ]; then
  echo "usage: $0 RUN OUT.png [WIDTH,HEIGHT]    RUN is the folder of a run that has ended (with report.html); found: ${1:-nothing}" >&2
  exit 2
fi
page="$(realpath "$1")/report.html" picture="$(realpath -m "$2")" size="${3:-1200,1500}"
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ -x .venv/bin/python ] || { echo "No .venv here yet: run scripts/quickstart.sh or scripts/test.sh first." >&2; exit 2; }
ensure_chromium
find_chromium || exit 2

profile="$(mktemp -d)"
trap 'rm -rf "$profile"' EXIT
address="$(.venv/bin/python -c 'import pathlib, sys; print(pathlib.Path(sys.argv[1]).as_uri())' "$page")"
# --no-sandbox: as root Chromium does not start otherwise; the page runs no script. No host can be found, so the browser keeps to itself.
timeout 120 "$chromium" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars \
  --disable-background-networking --disable-component-update --disable-default-apps --disable-sync \
  --host-resolver-rules="MAP * ~NOTFOUND" --blink-settings=preferredColorScheme=1 \
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
