# Shared by the commands in this folder, which source it: the project's own virtual environment.
# Sets ROOT and VENV.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv

say() { printf '%s\n' "$*" >&2; }

# The first Python that gwt runs on. PYTHON chooses another one.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
            2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    say "gwt needs Python 3.11 to 3.13, and finds none; PYTHON=/path/to/python names one."
    return 1
}

make_venv() {
    local python
    python=$(find_python) || return
    rm -rf "$VENV"
    # Debian splits ensurepip off; then the pip that is there installs into the environment.
    "$python" -m venv "$VENV" >/dev/null 2>&1 && return
    rm -rf "$VENV"
    "$python" -m venv --without-pip "$VENV" &&
        "$python" -m pip --python "$VENV/bin/python" install --quiet pip
}

# ensure_venv [EXTRA]: make .venv hold gwt, editable, with what EXTRA of pyproject.toml adds.
# Does nothing, and needs no network, when pyproject.toml and the folder are those of last time.
ensure_venv() {
    local extra=${1:-} stamp want
    stamp=$VENV/.stamp${extra:+-$extra}
    want="$ROOT $(cksum <"$ROOT/pyproject.toml")"
    # An environment holds the paths it was made with, so one that was moved is made anew.
    (
        # Two commands at once must not both build it.
        if command -v flock >/dev/null; then
            exec 9>"$ROOT/.venv.lock" && flock 9
        fi
        if "$VENV/bin/python" -c '' 2>/dev/null && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
            exit 0
        fi
        if ! "$VENV/bin/python" -c '' 2>/dev/null ||
            [ "$(cat "$VENV/.made-for" 2>/dev/null)" != "$ROOT" ]; then
            say "Making $VENV ..."
            make_venv || exit
            printf '%s\n' "$ROOT" >"$VENV/.made-for"
        fi
        say "Installing gwt${extra:+[$extra]} into $VENV ..."
        "$VENV/bin/python" -m pip install -qq --disable-pip-version-check \
            --editable "$ROOT${extra:+[$extra]}" || exit
        printf '%s\n' "$want" >"$stamp"
    )
}
