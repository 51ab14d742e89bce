"""Packaging. The wheel contains ``configs`` and ``tools`` under ``wsbcn_mmseg/.mim``, as in OpenMMLab packages."""
import re
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


setup(
    name='wsbcn_mmseg',
    version=re.search(r"__version__ = '(.+)'", (ROOT / 'wsbcn_mmseg' / '__init__.py').read_text())[1],
    description='Micro-batch training with Weight Standardization and Batch-Channel Normalization on MMSegmentation',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['wsbcn', 'wsbcn_mmseg', 'wsbcn_mmseg.*']),
    python_requires='>=3.10',
    install_requires=['torch>=2.4'],
    extras_require={
        **{name: requirements(f'{name}.txt') for name in (
            'onedl', 'openmmlab', 'openmmlab-pretrain', 'detection', 'video', 'digits', 'export', 'tests')},
        'pretrain': requirements('onedl-pretrain.txt')
    },
    entry_points={'console_scripts': ['wsbcn = wsbcn.command:main']},
    cmdclass={'build_py': BuildWithMim},
    zip_safe=False,
)
