"""Compile the Triton kernels for GPUs that need not be present, and analyze the compiled code."""
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from wsbcn_mmseg.ops import triton_kernels

TARGETS = {'sm_75': GPUTarget('cuda', 75, 32), 'sm_80': GPUTarget('cuda', 80, 32), 'sm_86': GPUTarget('cuda', 86, 32),
           'sm_90': GPUTarget('cuda', 90, 32), 'gfx90a': GPUTarget('hip', 'gfx90a', 64),
           'gfx942': GPUTarget('hip', 'gfx942', 64)}
CUOBJDUMP = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'cuobjdump'  # in Triton's wheels for Linux


class Code(NamedTuple):
    """Statistics of the machine code of one kernel variant. Loads and stores are instructions on global memory."""
    kernel: str
    registers: int  # per thread
    spills: int  # CUDA: instructions that spill or reload registers; ROCm: spilled registers
    shared_bytes: int  # per program
    loads: int
    loads_128: int  # of 16 bytes per thread
    stores: int
    stores_128: int


class _NoDevice:
    """The driver of a GPU that is not present: it has what Triton needs to compile."""

    def __init__(self, name: str):
        self.name = name

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.name]

    def get_current_device(self) -> str:  # a key of Triton's caches in memory
        return self.name

    def get_current_stream(self, device: str) -> int:
        return 0


def why_not() -> str | None:
    """A sentence on why kernels cannot be compiled and disassembled here; None if they can."""
    if triton_kernels.INTERPRETED:
        return 'kernels are not compiled under TRITON_INTERPRET=1'
    return None if CUOBJDUMP.is_file() else f'the installed Triton comes without {CUOBJDUMP.name}'


def compiled(target: str, call: Callable[[], Tensor]) -> list[Code]:
    """The code of all variants that a call and its backward pass launch. They are compiled but not run.

    Args:
        target: One of :data:`TARGETS`.
        call: Returns the output of layers for CPU tensors. The values of output and gradients are arbitrary.
    """
    launch, kernels = JITFunction.run, {}

    def compile_only(kernel, *arguments, grid, warmup, **options):
        made = launch(kernel, *arguments, grid=grid, warmup=True, **options)
        kernels[made.hash] = kernel.fn.__name__, made
        return made

    active = driver._active
    driver.set_active(_NoDevice(target))
    try:
        with (mock.patch.object(JITFunction, 'run', compile_only),
              mock.patch.object(triton_kernels, 'INTERPRETED', True),  # so that CPU tensors are accepted
              mock.patch.dict('os.environ', WSBCN_IMPL='triton')):
            call().sum().backward()
    finally:
        driver.set_active(active)
    return [_code(name, digest, kernel) for digest, (name, kernel) in kernels.items()]


_read: dict[str, Code] = {}  # disassembled code, by Triton's hash


def _code(name: str, digest: str, kernel) -> Code:
    if digest not in _read:
        read = _disassembled if 'cubin' in kernel.asm else lambda kernel: read_rocm(kernel.asm['amdgcn'],
                                                                                    kernel.metadata.shared)
        _read[digest] = Code(name.removesuffix('_kernel'), *read(kernel))
    return _read[digest]


def _disassembled(kernel) -> tuple[int, ...]:
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(kernel.asm['cubin'])
        file.flush()
        text = subprocess.run([CUOBJDUMP, '-res-usage', '-sass', file.name], capture_output=True, text=True, check=True)
    return read_cuda(text.stdout + text.stderr, kernel.metadata.shared)


def read_cuda(text: str, shared_bytes: int) -> tuple[int, ...]:
    """The fields of :class:`Code` from the output of ``cuobjdump -res-usage -sass``."""
    registers = int(re.search(r'\bREG:(\d+)', text)[1])
    loads, stores = re.findall(r'\bLDG(\.\S*)', text), re.findall(r'\bSTG(\.\S*)', text)
    return (registers, len(re.findall(r'\b(?:LDL|STL)\b', text)), shared_bytes, len(loads),
            sum('.128' in load for load in loads), len(stores), sum('.128' in store for store in stores))


def read_rocm(text: str, shared_bytes: int) -> tuple[int, ...]:
    """The fields of :class:`Code` from assembly for AMD GPUs."""
    counts = {key: int(value) for key, value in re.findall(r'\.([sv]gpr_(?:spill_)?count):\s+(\d+)', text)}
    loads, stores = (re.findall(rf'\b(?:global|buffer)_{kind}_(\w+)', text) for kind in ('load', 'store'))
    return (counts['vgpr_count'], counts['vgpr_spill_count'] + counts['sgpr_spill_count'], shared_bytes, len(loads),
            loads.count('dwordx4'), len(stores), stores.count('dwordx4'))
