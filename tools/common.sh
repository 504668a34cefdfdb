# Shared by the commands in this folder, which source it: the project's own virtual environment,
# and those of the peers that it is tested and measured with. Sets ROOT and VENV.

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

# Whether .venv can be used: it runs, by a Python for gwt, and was made where it is. One that somebody
# made by hand is as good.
venv_is_good() {
    "$VENV/bin/python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
        2>/dev/null &&
        "$VENV/bin/python" -m pip --version >/dev/null 2>&1 &&
        grep -q "^command = .* $VENV\$" "$VENV/pyvenv.cfg"
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
        if ! venv_is_good; then
            say "Making $VENV ..."
            make_venv || exit
        fi
        say "Installing gwt${extra:+[$extra]} into $VENV ..."
        "$VENV/bin/python" -m pip install -qq --disable-pip-version-check \
            --editable "$ROOT${extra:+[$extra]}" || exit
        printf '%s\n' "$want" >"$stamp"
    )
}

# find_peer_python NAME: what a peer's environment is made with: pywebtransport needs a later
# Python than ours may be, the others get the one that gwt has.
find_peer_python() {
    local candidate
    if [ "$1" != pywebtransport ]; then
        find_python
        return
    fi
    for candidate in ${PYWEBTRANSPORT_PYTHON:+"$PYWEBTRANSPORT_PYTHON"} python3.12 python3.13 \
        python3 "$HOME"/.pyenv/versions/3.1[2-9].*/bin/python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    say "Going on without $1: it needs Python 3.12, and PYWEBTRANSPORT_PYTHON names none."
    return 1
}

# ensure_peer NAME: make .peers/NAME hold another implementation, for the benches and the interop
# tests. GWT_NAME (GWT_GEVENT_WEBSOCKET) names the interpreter of an environment that has it
# already. Without one, says so in a line and fails.
ensure_peer() {
    local name=$1 folder=$ROOT/.peers/$1 variable packages python
    case $name in
        pywebtransport) packages="pywebtransport==0.21.1" ;;
        pywebtransport-0.6.1) packages="pywebtransport==0.6.1 aioquic==1.7.2" ;;
        gevent-websocket) packages="gevent-websocket==0.10.1 gevent==26.9.0" ;;
        websockets) packages="websockets==17.4" ;;
        aiohttp) packages="aiohttp==3.14.5" ;;
        simple-websocket) packages="simple-websocket==1.1.0 gevent==26.9.0" ;;
        *) say "There is no peer $name."; return 1 ;;
    esac
    variable=GWT_$(printf '%s' "$name" | tr a-z.- A-Z__)
    if [ -n "${!variable:-}" ]; then
        [ -x "${!variable}" ] && return
        say "$variable names no interpreter; going on without $name."
        return 1
    fi
    (
        mkdir -p "$ROOT/.peers" || exit
        if command -v flock >/dev/null; then
            exec 9>"$ROOT/.peers/lock" && flock 9
        fi
        # An environment holds the paths it was made with, so one that was moved is made anew.
        if [ "$(cat "$folder/.made-for" 2>/dev/null)" = "$folder $packages" ] &&
            "$folder/bin/python" -c '' 2>/dev/null; then
            exit 0
        fi
        python=$(find_peer_python "$name") || exit
        say "Installing $packages into $folder ..."
        # The pip of the environment itself is not there where Debian splits ensurepip off.
        # shellcheck disable=SC2086  # packages are several words
        rm -rf "$folder" && {
            "$python" -m venv "$folder" >/dev/null 2>&1 || {
                rm -rf "$folder" && "$python" -m venv --without-pip "$folder"
            }
        } && "$python" -m pip --python "$folder/bin/python" install -qq \
            --disable-pip-version-check --retries 1 $packages >"$ROOT/.peers/log" 2>&1 &&
            printf '%s\n' "$folder $packages" >"$folder/.made-for" && exit
        rm -rf "$folder"
        say "Going on without $name: it could not be installed; $ROOT/.peers/log says why."
        exit 1
    )
}

# apt_install PACKAGE...: install packages of Debian's where that is possible: as root, with apt.
apt_install() {
    command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || return
    say "Installing Debian's $* ..."
    DEBIAN_FRONTEND=noninteractive apt-get update -qq >&2 &&
        DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends "$@" >&2
}

# The Python 2.7 of this machine, which PYTHON27 may name; without any, Debian's, if there is one.
find_python27() {
    local candidate tried=$ROOT/.peers/autobahn.apt
    for candidate in ${PYTHON27:+"$PYTHON27"} python2.7 \
        "${HOME:-}"/.pyenv/versions/2.7*/bin/python debian; do
        if [ "$candidate" = debian ]; then
            # Asked once a day.
            [ -z "$(find "$tried" -mmin -1440 2>/dev/null)" ] || return
            apt_install python2.7 python2.7-dev >"$tried" 2>&1
            candidate=/usr/bin/python2.7
        fi
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (2, 7))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}

# ensure_autobahn: make .peers/autobahn hold Autobahn's test suite, which needs Python 2.7 and a C
# compiler. GWT_AUTOBAHN names the interpreter of an environment that has it already. Where it cannot
# be had, says so in a line and fails.
ensure_autobahn() {
    local folder=$ROOT/.peers/autobahn release=25.10.1 python27 python
    if [ -n "${GWT_AUTOBAHN:-}" ]; then
        [ -x "$GWT_AUTOBAHN" ] && return
        say "GWT_AUTOBAHN names no interpreter; going on without Autobahn."
        return 1
    fi
    (
        mkdir -p "$ROOT/.peers" || exit
        if command -v flock >/dev/null; then
            exec 9>"$ROOT/.peers/autobahn.lock" && flock 9
        fi
        # An environment holds the paths it was made with, so one that was moved is made anew.
        if [ "$(cat "$folder/.made-for" 2>/dev/null)" = "$folder $release" ] &&
            "$folder/bin/python" -c '' 2>/dev/null; then
            exit 0
        fi
        python27=$(find_python27) || {
            say "Going on without Autobahn: it needs Python 2.7, and PYTHON27 names none."
            exit 1
        }
        # One of its accelerators is there as C only.
        command -v cc >/dev/null || command -v gcc >/dev/null ||
            apt_install gcc libc6-dev >/dev/null 2>&1 || true
        # The last virtualenv that makes environments for 2.7, and brings a pip for them.
        python=$VENV/bin/python
        "$python" -m pip --version >/dev/null 2>&1 || python=${GWT_PYTHON:-$(find_python)} || exit
        say "Installing Autobahn's test suite $release into $folder ..."
        unset PYTHONPATH PYTHONHOME
        rm -rf "$folder" "$folder.making" &&
            {
                "$python" -m pip install -qq --disable-pip-version-check --retries 1 \
                    --target "$folder.making" "virtualenv==20.21.1" &&
                    PYTHONPATH=$folder.making VIRTUALENV_OVERRIDE_APP_DATA=$folder.making/data \
                        "$python" -m virtualenv --python "$python27" "$folder" &&
                    "$folder/bin/python" -m pip install --disable-pip-version-check --retries 1 \
                        "autobahntestsuite==$release" &&
                    "$folder/bin/python" -c 'import autobahntestsuite.fuzzing, wsaccel'
            } >"$ROOT/.peers/autobahn.log" 2>&1 &&
            rm -rf "$folder.making" &&
            printf '%s\n' "$folder $release" >"$folder/.made-for" && exit
        rm -rf "$folder" "$folder.making"
        say "Going on without Autobahn: it could not be installed; $ROOT/.peers/autobahn.log says why."
        exit 1
    )
}
