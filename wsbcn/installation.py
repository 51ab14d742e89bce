"""The report of ``wsbcn check``: what is installed, what works, and what each feature needs."""
import platform
import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NamedTuple

VERSIONS = ('wsbcn_mmseg', 'torch', 'triton', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation',
            'onedl-mmpretrain', 'mmengine', 'mmcv', 'mmcv-lite', 'mmsegmentation', 'mmpretrain', 'mmdet', 'mmaction2',
            'timm', 'torchvision', 'onnx', 'onnxruntime')  # distributions, listed if they are installed
TOLERANCE = 1e-4  # relative to the largest value; float32 gives about 1e-6


class Feature(NamedTuple):
    """A feature, the modules that it imports, and how to install them."""
    name: str
    modules: tuple[str, ...]
    install: str


class Line(NamedTuple):
    """A line of the report; ``broken`` if something is installed but does not work."""
    name: str
    text: str
    broken: bool = False


def features() -> list[Feature]:
    from wsbcn_mmseg.runtime.stack import INSTALL
    return [
        Feature('training, evaluation, inference', ('mmengine', 'mmcv', 'mmseg'), INSTALL),
        Feature('classification (imagenet, cifar, digits)', ('mmpretrain', 'torchvision'),
                'pip install onedl-mmpretrain==1.3.6 torchvision'),
        Feature('digits', ('sklearn', ), 'pip install scikit-learn'),
        Feature('export to ONNX', ('onnx', 'onnxscript', 'onnxruntime'), 'pip install onnx onnxscript onnxruntime'),
        Feature('detection (coco)', ('mmdet', 'mmcv._ext'), 'see configs/coco/README.md'),
        Feature('video (sthv1)', ('mmaction', 'mmcv._ext'), 'see configs/sthv1/README.md'),
        Feature('Triton kernels for CUDA', ('triton', ), 'pip install triton'),
        Feature('example: timm', ('timm', ), 'pip install timm'),
        Feature('example: segmentation_models_pytorch', ('segmentation_models_pytorch', 'lightning'),
                'pip install segmentation-models-pytorch lightning'),
        Feature('example: torchvision', ('torchvision', 'accelerate'), 'pip install torchvision accelerate'),
    ]


def installed_versions() -> Iterator[Line]:
    yield Line('python', platform.python_version())
    for name in VERSIONS:
        try:
            yield Line(name, version(name))
        except PackageNotFoundError:
            continue


def devices() -> Iterator[Line]:
    """The implementation of BCN on each device, and its difference from float64."""
    import torch
    names = {'cpu': f'{torch.get_num_threads()} threads'}
    names |= {f'cuda:{i}': torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    if torch.backends.mps.is_available():
        names['mps'] = platform.processor()
    for device, name in names.items():
        yield _device(device, name)
    yield _cpp_kernels()


def _cpp_kernels() -> Line:
    from wsbcn_mmseg.ops import cpp
    if cpp.WHY_NOT is None:
        return Line('C++ kernels for the CPU', 'ready')
    return Line('C++ kernels for the CPU', f'{cpp.WHY_NOT}, so BCN uses stock operators, which are slower; '
                f'{cpp.INSTALL}')


def _device(device: str, name: str) -> Line:
    import torch

    from wsbcn_mmseg.ops.batch_channel_norm import MODES, implementation_name
    from wsbcn_mmseg.runtime.errors import describe
    try:
        x = torch.zeros(2, 32, 5, 5, device=device)
        implementation = implementation_name('auto', x, 8, x.new_zeros(32), False)
        differences = [_bcn_difference(device, mode, training) for mode in MODES for training in (True, False)]
        worst = max(*differences, _standardization_difference(device))
    except Exception as error:  # drivers, compilers and kernels may raise any error
        return Line(device, f'{name}: BCN fails ({describe(error)})', broken=True)
    agrees = worst <= TOLERANCE  # False for NaN
    return Line(device, f'{name}: BCN by {implementation!r}; output and gradients of BCN and WS '
                f'{"agree" if agrees else "DO NOT AGREE"} with float64, to {worst:.0e}', broken=not agrees)


def no_gpu() -> str | None:
    """A sentence on why there is no GPU to check; None if there is one."""
    try:
        import torch
    except Exception as error:  # of any kind
        return f'PyTorch cannot be imported: {error}'
    if torch.cuda.is_available():
        return None
    built = torch.version.cuda or torch.version.hip
    reason = 'the driver or the GPU is not found' if built else 'this build of PyTorch is for CPUs only'
    return f'--gpu needs a GPU, and PyTorch {torch.__version__} sees none here: {reason}'


def gpu_kernels() -> Iterator[Line]:
    """Lines on whether the Triton kernels agree with float64 for every GPU and dtype, with the cause if they do not."""
    import torch

    from wsbcn_mmseg.diagnostics.agreement import TOLERANCES
    for index in range(torch.cuda.device_count()):
        for dtype in TOLERANCES:
            yield _kernels_on(f'cuda:{index}', torch.cuda.get_device_name(index), dtype)


def _kernels_on(device: str, name: str, dtype, impl: str = 'triton') -> Line:
    import torch

    from wsbcn_mmseg.diagnostics.agreement import CASES, TOLERANCES, first_failure
    from wsbcn_mmseg.ops.batch_channel_norm import implementation_name
    failure, largest = first_failure(CASES, device, dtype, impl)
    title = f'{device}, {str(dtype).removeprefix("torch.")}'
    if failure:
        first, *rest = failure.splitlines()
        return Line(title, '\n    '.join([f'{name}: the kernels FAIL in the case {first}', *rest]), broken=True)
    x = torch.zeros(2, 32, 5, 5, device=device, dtype=dtype)
    chosen = implementation_name('auto', x, 8, torch.zeros(32, device=device), False)
    note = '' if chosen == impl else f', but BCN uses {chosen!r}'
    return Line(title, f'{name}: the kernels agree with float64, to {largest:.0e} of at most '
                f'{TOLERANCES[dtype]:.0e}, in {len(CASES)} cases{note}')


def _bcn_difference(device: str, mode: str, training: bool) -> float:
    """The largest difference of output and gradients from the float64 reference, relative to the largest value."""
    import torch

    from wsbcn_mmseg.ops import batch_channel_norm
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 32, 5, 7, generator=generator) * 2 + 1
    batch, channel = torch.rand(4, 32, generator=generator) + .5, torch.rand(2, 8, generator=generator) + .5
    direction = torch.randn(x.shape, generator=generator)  # of the gradient

    def run(device: str, dtype: torch.dtype, impl: str) -> list[torch.Tensor]:
        inputs = [tensor.to(device, dtype, copy=True).requires_grad_() for tensor in (x, *batch[:2], *channel)]
        estimates = [tensor.to(device, dtype, copy=True) for tensor in batch[2:]]
        y = batch_channel_norm(*inputs[:3], *estimates, *inputs[3:], 8, training=training, mode=mode, rate=.1,
                               impl=impl)
        (y * direction.to(device, dtype)).sum().backward()
        return [y.detach(), *estimates, *(tensor.grad for tensor in inputs)]

    return _difference(run(device, torch.float32, 'auto'), run('cpu', torch.float64, 'reference'))


def _standardization_difference(device: str) -> float:
    import torch

    from wsbcn_mmseg.ops import standardize_weight
    kernel = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    target = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(1))

    def run(device: str, dtype: torch.dtype) -> list[torch.Tensor]:
        weight = kernel.to(device, dtype, copy=True).requires_grad_()
        standardized = standardize_weight(weight)
        (standardized * target.to(device, dtype)).sum().backward()
        return [standardized.detach(), weight.grad]

    return _difference(run(device, torch.float32), run('cpu', torch.float64))


def _difference(tensors: list, expected: list) -> float:
    """NaN if there is a NaN."""
    import torch
    parts = [(a.cpu().double() - b).abs().max() / b.abs().max().clamp(min=1e-3)
             for a, b in zip(tensors, expected, strict=True)]
    return torch.stack(parts).max().item()


def feature_lines() -> Iterator[Line]:
    """A line per feature: whether it is ready, what is missing, or what is broken."""
    for name, modules, install in features():
        missing = [module for module in modules if not _is_installed(module)]
        broken = {module: error for module in modules if module not in missing and (error := _import_error(module))}
        if broken:
            yield Line(name, 'broken: ' + '; '.join(f'{module}: {error}' for module, error in broken.items()), True)
        elif missing:
            yield Line(name, f'needs {", ".join(missing)}: {install}')
        else:
            yield Line(name, 'ready')


def _is_installed(module: str) -> bool:
    package = module.partition('.')[0]
    return find_spec(package) is not None and (package == module or find_spec(module) is not None)


def _import_error(module: str) -> str:
    from wsbcn_mmseg.runtime.errors import describe
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            import_module(module)
        except Exception as error:  # packages may raise any error
            return describe(error)
    return ''
