#!/bin/sh
# Makes a virtual environment with the packages that the tools/parity_*.py compare with, and prints the path of its python.
#
#     python=$(tools/install_torch.sh [FOLDER])      # FOLDER is target/oracle unless given
#
# A folder that has them already is left as it is. PYTHON names the interpreter to start from; pip's own settings
# (PIP_INDEX_URL, pip.conf) say where packages come from.
set -eu

folder=${1:-target/oracle}
start=${PYTHON:-python3}
packages="torch torchvision numpy safetensors"
# Without what they depend on, which is what is here already and what the comparison does not need. The scripts do without them, aloud.
light="timm==1.0.31 torchinfo==1.8.0"

fail() {
    echo "install_torch.sh: $1" >&2
    exit 1
}

has_all() {
    "$1" -c "$(for package in $packages; do echo "import $package"; done)" >/dev/null 2>&1
}

command -v "$start" >/dev/null 2>&1 || fail "no interpreter is called '$start'"
python=$folder/bin/python
if ! { [ -x "$python" ] && has_all "$python"; }; then
    "$start" -m venv "$folder" >/dev/null 2>&1 || fail "'$start -m venv $folder' failed"
    # One attempt, and its log only on failure: the output of this script is the path and nothing else.
    log=$folder/pip.log
    # shellcheck disable=SC2086
    "$python" -m pip install --quiet --disable-pip-version-check --retries 2 --timeout 60 $packages >"$log" 2>&1 ||
        fail "pip could not install $packages: $(grep -m 1 '^ERROR' "$log" || tail -n 1 "$log")"
    has_all "$python" || fail "$packages were installed in '$folder' and cannot be imported"
fi
for package in $light; do
    "$python" -c "import ${package%%=*}" >/dev/null 2>&1 ||
        "$python" -m pip install --quiet --disable-pip-version-check --no-deps --retries 2 --timeout 60 "$package" >/dev/null 2>&1 ||
        echo "install_torch.sh: pip could not install $package, which some comparisons need" >&2
done
case $python in
/*) echo "$python" ;;
*) echo "$PWD/$python" ;;
esac
