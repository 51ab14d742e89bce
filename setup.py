"""Packaging. The wheel contains ``configs`` and ``tools`` under ``wsbcn_mmseg/.mim``, as in OpenMMLab packages."""
import os
import re
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


def requirements(name: str) -> list[str]:
    lines = (ROOT / 'requirements' / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith(('#', '-r'))]


class BuildWithMim(build_py):
    """Adds configs and tools to the package that is built."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / 'wsbcn_mmseg' / '.mim'
        for folder in ('configs', 'tools'):
            for source in sorted((ROOT / folder).rglob('*')):
                if source.suffix in ('.py', '.sh', '.md'):
                    copy = target / source.relative_to(ROOT)
                    self.mkpath(str(copy.parent))
                    self.copy_file(str(source), str(copy))
        for config in sorted((ROOT / 'configs').glob('*.py')):  # MMEngine wants package::folder/file
            folder = target / 'configs' / config.stem.rpartition('_')[2]
            self.mkpath(str(folder))
            (folder / config.name).write_text(f"_base_ = '../{config.name}'\n")
        (target / 'model-index.yml').write_text('Import: []\n')  # MMEngine looks for it


def cpp_kernels() -> tuple[list, dict]:
    """The optional C++ kernels for the CPU, and the command that builds them. They are left out where torch cannot be
    imported; a build that fails, as without a compiler, is a warning."""
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        return [], {}
    flags = ['/O2', '/fp:precise'] if os.name == 'nt' else [
        '-O3', '-g0', '-fopenmp-simd', '-fno-math-errno', '-fno-trapping-math', '-ffp-contract=off']
    if sys.platform == 'linux':
        flags.append('-fopenmp')  # for at::parallel_for
    name = '_cpp_torch_' + '_'.join(torch.__version__.split('.')[:2])  # as wsbcn_mmseg/ops/cpp.py looks for it
    kernels = CppExtension(f'wsbcn_mmseg.ops.{name}', ['wsbcn_mmseg/ops/csrc/batch_channel_norm.cpp'],
                           depends=['wsbcn_mmseg/ops/csrc/passes.h'], extra_compile_args=flags, optional=True)
    return [kernels], {'build_ext': BuildExtension.with_options(use_ninja=False, no_python_abi_suffix=True)}


EXTENSIONS, BUILD_EXTENSIONS = cpp_kernels()
setup(
    name='wsbcn_mmseg',
    version=re.search(r"__version__ = '(.+)'", (ROOT / 'wsbcn_mmseg' / '__init__.py').read_text())[1],
    description='Weight Standardization and Batch-Channel Normalization: training with one or two images per GPU',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    url='https://arxiv.org/abs/1903.10520',
    project_urls={'Paper': 'https://arxiv.org/abs/1903.10520'},
    keywords=['normalization', 'batch normalization', 'group normalization', 'weight standardization', 'micro-batch',
              'semantic segmentation', 'PyTorch', 'MMSegmentation', 'OpenMMLab'],
    classifiers=[
        'Development Status :: 4 - Beta', 'Intended Audience :: Developers', 'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3', 'Programming Language :: Python :: 3 :: Only',
        'Programming Language :: Python :: 3.10', 'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12', 'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Processing', 'Typing :: Typed'
    ],
    packages=find_packages(include=['wsbcn', 'wsbcn_mmseg', 'wsbcn_mmseg.*']),
    package_data={'wsbcn': ['py.typed'], 'wsbcn_mmseg': ['py.typed', 'ops/csrc/*']},
    python_requires='>=3.10',
    install_requires=['torch>=2.4'],
    extras_require={
        **{name: requirements(f'{name}.txt') for name in (
            'onedl', 'onedl-detection', 'openmmlab', 'openmmlab-pretrain', 'detection', 'video', 'digits', 'export',
            'docs', 'tests')},
        'pretrain': requirements('onedl-pretrain.txt')
    },
    entry_points={'console_scripts': ['wsbcn = wsbcn.command:main']},
    cmdclass={'build_py': BuildWithMim, **BUILD_EXTENSIONS},
    ext_modules=EXTENSIONS,
    zip_safe=False,
)
