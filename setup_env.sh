#!/usr/bin/env bash
# Makes or reuses the virtual environment that every make target runs in.
#
#   ./setup_env.sh               make it, or do nothing when it is up to date
#   ./setup_env.sh list          print the supported interpreters found, newest first
#   ./setup_env.sh parity        the same as without, and PyTorch for the parity tests
#   ./setup_env.sh alpaca_eval   likewise, and the alpaca_eval package for its tests
#   ./setup_env.sh plan          likewise, and libtpu, which compiles for TPUs without one
#   ./setup_env.sh lock          resolve setup.cfg anew into constraints.txt
#
# Read from the environment:
#   PYTHON   interpreter to build on; default: the newest supported one that runs
#   VENV     where it goes; default: .venv
#   EXTRA    accelerator: tpu, cuda12 or cuda13; default: what VENV has, else the CPU
#   EPA_PIP  1 installs with pip even where uv could be had
#   TORCH    version for the parity tests, such as torch==2.13.0; default: the newest

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

MINORS='13 12 11' # of Python 3, newest first, as in setup.cfg
PYTHON=${PYTHON:-}
VENV=${VENV:-.venv}
EPA_PIP=${EPA_PIP:-}
TOOLS=.venv-uv
STAMP=$VENV/.epa_jax_installed

die() {
  printf 'setup_env.sh: %s\n' "$*" >&2
  exit 1
}

say() { printf 'setup_env.sh: %s\n' "$*" >&2; }

# Prints the real path of $1 if it runs (a pyenv shim may not) and is supported.
probe() {
  "$1" - "$MINORS" 2>/dev/null <<'PY'
import sys
if sys.version_info[0] != 3 or str(sys.version_info[1]) not in sys.argv[1].split():
    sys.exit(1)
print(sys.executable)
PY
}

# Prints one interpreter for each supported minor version, newest first.
list_pythons() {
  local minor candidate found
  for minor in $MINORS; do
    for candidate in "python3.$minor" python3 python \
      "${PYENV_ROOT:-$HOME/.pyenv}/versions/3.$minor".*/bin/python; do
      found=$(MINORS=$minor probe "$candidate") || continue
      printf '%s\n' "$found"
      break
    done
  done
}

find_python() {
  if [ -n "$PYTHON" ]; then printf '%s\n' "$PYTHON"; else list_pythons | sed -n 1p; fi
}

# Prints the uv to use, or nothing: from PATH, or from a small environment of its own.
find_uv() {
  if [ "$EPA_PIP" = 1 ] || command -v uv; then return; fi
  if [ ! -x "$TOOLS/bin/uv" ]; then
    local python
    python=$(find_python)
    [ -n "$python" ] || return 0
    say "installing uv into $TOOLS"
    if ! { "$python" -m venv "$TOOLS" && "$TOOLS/bin/python" -m pip install -q uv; } >&2; then
      say 'uv could not be installed; using pip'
      return 0
    fi
  fi
  printf '%s\n' "$TOOLS/bin/uv"
}

need_uv() { [ -n "${UV+set}" ] || UV=$(find_uv); }

# An environment that runs is kept; one whose interpreter is gone is made again.
make_venv() {
  if [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -c '' 2>/dev/null; then
    check_venv
    return
  fi
  local python
  need_uv
  python=$(find_python)
  if [ -z "$python" ]; then
    [ -n "$UV" ] || die 'found no Python 3.11 to 3.13; install one or set PYTHON=/path/to/it'
    python=3.${MINORS%% *} # uv fetches it
  fi
  say "making $VENV with $python"
  rm -rf "$VENV"
  if [ -n "$UV" ]; then
    "$UV" venv -q --seed --python "$python" "$VENV" # with pip, for what is added by hand
  else
    "$python" -m venv "$VENV" || die "$python cannot make environments;" \
      'on Debian apt install python3-venv, or install uv (https://docs.astral.sh/uv/)'
  fi
}

# An environment made earlier must be what is asked for now.
check_venv() {
  local has wants
  probe "$VENV/bin/python" >/dev/null ||
    die "$VENV has an unsupported Python; remove it (make clean) or set VENV=another"
  [ -n "$PYTHON" ] || return 0
  has=$(version "$VENV/bin/python")
  wants=$(version "$(find_python)")
  [ "$has" = "$wants" ] || die "$VENV has Python $has, PYTHON=$PYTHON is $wants;" \
    "remove it (make clean) or set VENV=another"
}

version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

has_pip() { "$VENV/bin/python" -c 'import pip' 2>/dev/null; }

install() {
  need_uv
  if [ -n "$UV" ]; then
    "$UV" pip install -q --python "$VENV/bin/python" "$@"
  else
    has_pip || "$VENV/bin/python" -m ensurepip >/dev/null
    "$VENV/bin/python" -m pip install -q "$@"
  fi
}

install_package() {
  local extras=test before='' now
  [ -f "$STAMP" ] && before=$(cat "$STAMP")
  EXTRA=${EXTRA:-${before#* extra=}}
  case $EXTRA in
    '') ;;
    tpu | cuda12 | cuda13) extras=test,$EXTRA ;;
    *) die "EXTRA=$EXTRA: expected tpu, cuda12 or cuda13" ;;
  esac
  now="$(cat setup.cfg pyproject.toml constraints.txt | cksum) $PWD extra=$EXTRA"
  [ "$before" = "$now" ] && return
  need_uv
  say "installing epa_jax[$extras] into $VENV with ${UV:-pip}"
  install -c constraints.txt -e ".[$extras]"
  printf '%s\n' "$now" >"$STAMP"
}

# By pip even where uv is used: wheels for the CPU alone are found through pip's settings.
install_torch() {
  [ -f "$VENV/.epa_jax_parity" ] && return
  has_pip || install pip
  say "installing ${TORCH:-torch} into $VENV with pip"
  "$VENV/bin/python" -m pip install -q -e '.[parity]' "${TORCH:-torch}"
  touch "$VENV/.epa_jax_parity"
}

install_alpaca_eval() {
  [ -f "$VENV/.epa_jax_alpaca_eval" ] && return
  say "installing alpaca_eval into $VENV"
  install -c constraints.txt -e '.[alpaca_eval]'
  touch "$VENV/.epa_jax_alpaca_eval"
}

install_plan() {
  [ -f "$VENV/.epa_jax_plan" ] && return
  say "installing libtpu into $VENV"
  install -c constraints.txt -e '.[plan]'
  touch "$VENV/.epa_jax_plan"
}

lock() {
  need_uv
  [ -n "$UV" ] || die 'make lock needs uv'
  "$UV" pip compile -q --universal --upgrade --python-version 3.11 --no-annotate \
    --custom-compile-command 'make lock' --extra test --extra tpu --extra cuda12 \
    --extra cuda13 --extra plan --no-emit-package setuptools -o constraints.txt setup.cfg
}

if [ -n "$PYTHON" ]; then
  PYTHON=$(probe "$PYTHON") || die 'PYTHON does not run or is not Python 3.11 to 3.13'
fi
case ${1:-} in
  list) list_pythons ;;
  lock) lock ;;
  '')
    make_venv
    install_package
    ;;
  parity)
    make_venv
    install_package
    install_torch
    ;;
  alpaca_eval)
    make_venv
    install_package
    install_alpaca_eval
    ;;
  plan)
    make_venv
    install_package
    install_plan
    ;;
  *) die "$1: expected list, parity, alpaca_eval, plan, lock or nothing" ;;
esac
