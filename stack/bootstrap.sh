#!/bin/sh
# Installs what the project needs: the server programs and a browser for the tests by the system's package manager, the
# Python packages, pinned by hash, into .venv. Does nothing when all is there. Needs root or sudo only for the first two.
# Arguments name what else is needed: `faults` (a library that fakes clocks), `model` (the model checker), `bench` (a
# load generator, and what is measured beside the mesh, with Python packages in .venv-peers), `screenshots` (a typeface).
set -eu
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*"; }
fail() { printf '%s\n' "$*" >&2; exit 1; }

has_postgres() { command -v postgres >/dev/null 2>&1 || ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1; }
has_rabbitmq() { [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null 2>&1; }

# For the tests of the pages. Chromium brings a font with it.
has_chromium() {
    for name in chromium chromium-browser google-chrome; do
        command -v "$name" >/dev/null 2>&1 && return
    done
    return 1
}

# The first Python from 3.11 on; PYTHON=... names another. The system's comes first: it was built with profile-guided
# optimization, which one that somebody compiled by hand, or pyenv did, mostly lacks (measured: 1.6 times as slow).
find_python() {
    for candidate in ${PYTHON:-} /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
}

can_make_environment() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

missing=""
command -v redis-server >/dev/null 2>&1 || missing="$missing redis-server"
has_postgres || missing="$missing postgresql"
has_rabbitmq || missing="$missing rabbitmq-server"
command -v setpriv >/dev/null 2>&1 || missing="$missing util-linux"
has_chromium || missing="$missing chromium"
for wanted in "$@"; do
    case $wanted in
        faults) ls /usr/lib/*/faketime/libfaketime.so.1 >/dev/null 2>&1 || missing="$missing faketime" ;;
        model)
            command -v spin >/dev/null 2>&1 || missing="$missing spin"
            command -v gcc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
            ;;
        screenshots) fc-list 2>/dev/null | grep -q 'Inter:' || missing="$missing fontconfig fonts-inter" ;;
        bench)
            command -v wrk >/dev/null 2>&1 || missing="$missing wrk"
            command -v nginx >/dev/null 2>&1 || missing="$missing nginx-light"
            ;;
    esac
done
python=$(find_python)
if [ -z "$python" ]; then
    missing="$missing python3 python3-venv"
elif [ ! -x .venv/bin/python ] && ! can_make_environment "$python"; then
    missing="$missing python3-venv"
fi

if [ -n "$missing" ]; then
    command -v apt-get >/dev/null 2>&1 || fail "missing:$missing. Install these (Debian's names) and try again."
    if [ "$(id -u)" -eq 0 ]; then
        as_root="env"
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        as_root="sudo env"
    else
        fail "missing:$missing. Run: sudo apt-get install --no-install-recommends$missing"
    fi
    say "installing$missing ..."
    log=$(mktemp)
    # Own instances of the servers are started later on other ports; the system's are not our business.
    if ! { $as_root DEBIAN_FRONTEND=noninteractive apt-get update &&
        $as_root DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        fail "apt-get failed; the whole log is in $log"
    fi
    rm -f "$log"
    python=$(find_python)
    [ -n "$python" ] || fail "Python 3.11 or newer is needed; this system offers an older one. Set PYTHON=/path/to/python."
fi

# Makes an environment from a lock. Another lock, another Python or a moved checkout makes it anew.
environment() {
    wanted=$(sha256sum <"$2" | cut -d ' ' -f 1)" $python $(pwd)"
    if [ ! -f "$1/.installed" ] || [ "$(cat "$1/.installed")" != "$wanted" ]; then
        say "installing the Python packages into $1 (about a minute) ..."
        rm -rf "$1"
        "$python" -m venv "$1"
        "$1/bin/python" -m pip install -qq --disable-pip-version-check --no-input --require-hashes -r "$2"
        printf '%s' "$wanted" >"$1/.installed"
    fi
}

environment .venv requirements.lock
for wanted_too in "$@"; do
    [ "$wanted_too" != bench ] || environment .venv-peers bench/peers/requirements.lock
done
