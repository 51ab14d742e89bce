# Sourced by demo.sh, run_tests.sh and run_stack_tests.sh: environment ROOT makes ROOT/.venv if there is none, and enters
# it. PYTHON (default: python3) creates it. STACK (onedl or openmmlab) selects the OpenMMLab distributions, TORCH
# (default: torch==2.13.0) the torch to install, VENV another folder. With OPERATORS=1, onedl-mmcv's are compiled too.
environment() {
    local root=$1 venv=${VENV:-$1/.venv} stack=${STACK:-onedl} torch=${TORCH:-torch==2.13.0} stamp
    if [[ -f $venv/.stack && $(<"$venv/.stack") != "$stack" ]]; then
        echo "$venv holds the $(<"$venv/.stack") distributions; delete it to install $stack" >&2
        exit 1
    fi
    stamp=$venv/.installed-$(cat "$root/setup.py" "$root"/wsbcn_mmseg/ops/csrc/* "$root/requirements/$stack.txt" - <<< "$torch" | cksum | cut -d' ' -f1)
    if [[ ! -f $stamp ]]; then
        [[ -d $venv ]] || "${PYTHON:-python3}" -m venv "$venv"
        echo "Installing into $venv"
        echo "$stack" > "$venv/.stack"
        "$venv/bin/pip" install --quiet "$torch"
        if [[ $stack == openmmlab || ${OPERATORS:-0} == 1 ]]; then  # mmcv is compiled against the installed torch
            "$venv/bin/pip" install --quiet 'setuptools<81' wheel ninja psutil
            # Not from the cache, where a wheel without operators may lie
            "$venv/bin/pip" install --quiet --no-build-isolation --no-cache-dir --no-binary mmcv,onedl-mmcv \
                "$(grep '^[a-z-]*mmcv==' "$root/requirements/$stack.txt")"
        fi
        "$venv/bin/pip" install --quiet -r "$root/requirements/$stack.txt"
        "$venv/bin/pip" install --quiet 'setuptools>=68'
        # Without isolation it sees torch, for which it compiles the C++ kernels where there is a compiler
        "$venv/bin/pip" install --quiet --no-deps --no-build-isolation --editable "$root"
        touch "$stamp"
    fi
    source "$venv/bin/activate"
}
