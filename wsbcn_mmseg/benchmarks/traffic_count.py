"""Count the bytes that the Triton kernels load and store in Triton's interpreter; :mod:`.traffic` runs this file.

``TRITON_INTERPRET=1 python -m wsbcn_mmseg.benchmarks.traffic_count BxCxHxW:contiguous ...`` prints one line of JSON for
each activation: the values read and written per value of the activation, in the forward and in the backward pass.
"""
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from triton.runtime.interpreter import InterpreterBuilder

from wsbcn_mmseg.layers import BCN
from wsbcn_mmseg.ops import triton_kernels

FORMATS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}


@contextmanager
def counting() -> Iterator[Counter]:
    """Count bytes ``read`` and ``written`` by kernels in the interpreter, without masked ones. If several lanes read
    one address, it counts once per lane of the pointer before broadcasting."""
    count = Counter()

    def counted(access, key):
        def run(self, pointers, *arguments, **options):
            values = dict(zip(names[access], arguments, strict=False)) | options
            count[key] += int(values['mask'].data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8
            return access(self, pointers, *arguments, **options)
        return run

    accesses = {'create_masked_load': 'read', 'create_masked_store': 'written'}
    methods = {name: getattr(InterpreterBuilder, name) for name in accesses}
    names = {method: method.__code__.co_varnames[2:method.__code__.co_argcount] for method in methods.values()}
    with mock.patch.multiple(InterpreterBuilder, **{
            name: counted(method, accesses[name]) for name, method in methods.items()}):
        yield count


def count_layer(shape: tuple[int, ...], memory_format: torch.memory_format) -> dict[str, float]:
    """Values that BCN in micro-batch mode reads and writes per input value, in float32."""
    x = torch.randn(shape).contiguous(memory_format=memory_format).requires_grad_()
    layer, counts = BCN(shape[1], update_rate=0.007), {}
    with mock.patch.dict('os.environ', WSBCN_IMPL='triton'), counting() as count:
        y = layer(x)
        counts |= {f'forward_{key}': number / x.nbytes for key, number in count.items()}
        count.clear()
        y.backward(torch.randn_like(y))
        return counts | {f'backward_{key}': number / x.nbytes for key, number in count.items()}


def main() -> None:
    if not triton_kernels.INTERPRETED:
        sys.exit('bytes are counted in the interpreter; set TRITON_INTERPRET=1')
    torch.set_num_threads(1)
    for argument in sys.argv[1:]:
        shape, name = argument.split(':')
        print(json.dumps(count_layer(tuple(map(int, shape.split('x'))), FORMATS[name])), flush=True)


if __name__ == '__main__':
    main()
