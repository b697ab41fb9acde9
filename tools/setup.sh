#!/usr/bin/env bash
# Build the environment of a checkout in .venv: this package, editable, with everything that its tests need.
# Needs Python >= 3.11 and a package registry. PYTHON=... chooses the interpreter.
#
# torch comes from where pip would take it: a folder of CPU builds in pip's find-links goes first; otherwise the registry,
# whose Linux build brings its CUDA packages along.
set -euo pipefail
cd "$(dirname "$0")/.."
trap 'exit 130' INT # not the installer alone: the next command would start

venv=.venv
unfinished=$venv/.unfinished

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "setup: no Python >= 3.11 among: ${PYTHON:-python3 python3.13 python3.12 python3.11}; set PYTHON=/path/to/python" >&2
    return 1
}

# One setting of pip, from the environment (listed first) or from its configuration files; several values on one line.
pip_setting() {
    "$venv/bin/python" -m pip config list 2>/dev/null |
        sed -n -E "s/^(:env:|global|install)\.$1='(.*)'\$/\2/p" | head -n 1 | sed 's/\\n/ /g' | xargs
}

# uv takes seconds where pip takes a minute, but reads none of pip's settings: without them it would miss a local torch.
install_with_uv() {
    "$venv/bin/uv" --version >/dev/null 2>&1 || "$venv/bin/python" -m pip install --quiet --force-reinstall uv || return 1
    local links index more authorities
    links=$(pip_setting find-links | tr ' ' ',')
    index=$(pip_setting index-url)
    more=$(pip_setting extra-index-url)
    authorities=$(pip_setting cert)
    if [ -n "$authorities" ]; then
        export SSL_CERT_FILE="${SSL_CERT_FILE:-$authorities}"
    fi
    # the best version of all sources, as pip takes it; uv alone stops at the first source that knows the name
    UV_FIND_LINKS="${UV_FIND_LINKS:-$links}" UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}" UV_INDEX="${UV_INDEX:-$more}" \
        UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}" \
        "$venv/bin/uv" pip install --python "$venv/bin/python" "$@"
}

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    "$python" -m venv --clear "$venv"
fi
repair=
if [ -e "$unfinished" ]; then
    repair=yes # an earlier run was stopped, any package may be half written
fi
touch "$unfinished"

# --compile-bytecode (pip always does it): with PYTHONDONTWRITEBYTECODE every start would take seconds longer without it
install_with_uv --compile-bytecode ${repair:+--reinstall} --constraint tools/constraints.txt --editable ".[dev]" || {
    echo "setup: uv could not install; trying pip" >&2
    "$venv/bin/python" -m pip install ${repair:+--force-reinstall} --constraint tools/constraints.txt --editable ".[dev]"
}

site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
add_torchvision_shim() {
    cp tools/torchvision_cpu.py "$site/"
    echo "import torchvision_cpu" >"$site/torchvision_cpu.pth"
}
if [ -e "$site/torchvision_cpu.pth" ]; then
    add_torchvision_shim # the newest one
fi
if ! failure=$("$venv/bin/python" -c 'import torchvision' 2>&1); then
    if [[ $failure != *torchvision::* ]]; then
        echo "$failure" >&2
        exit 1
    fi
    echo "setup: torchvision was built for CUDA and torch was not; adding tools/torchvision_cpu.py to $venv"
    add_torchvision_shim
    "$venv/bin/python" -c 'import torchvision'
fi

rm "$unfinished"
