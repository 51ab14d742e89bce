#!/usr/bin/env bash
# Sourced by demo.sh and run_tests.sh: makes .venv beside the sources if there is none, and enters it.
# PYTHON (python3) makes it; STACK (onedl) is the set of OpenMMLab distributions in requirements/ to install.
environment() {
    local root=$1 venv=$1/.venv stamp
    stamp=$venv/.installed-$(cat "$root"/setup.py "$root"/requirements/*.txt | cksum | cut -d' ' -f1)
    if [[ ! -f $stamp ]]; then
        [[ -d $venv ]] || "${PYTHON:-python3}" -m venv "$venv"
        echo "Installing into $venv"
        # Without a GPU the CPU build does, and is ten times smaller; an index may offer it under the same name.
        "$venv/bin/pip" install --quiet "${TORCH:-torch==2.13.0}"
        "$venv/bin/pip" install --quiet -r "$root/requirements/${STACK:-onedl}.txt" -r "$root/requirements/tests.txt"
        "$venv/bin/pip" install --quiet --no-deps --editable "$root"
        touch "$stamp"
    fi
    source "$venv/bin/activate"
}
