"""Every classification config trains a step, on tiny data in the real formats; what it learnt goes into segmentors."""
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_tool
from made_up_data import accept_checksums, make_cifar, make_imagenet
from mmengine.dataset import Compose
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from PIL import Image
from torch import nn

from wsbcn_mmseg.layers import BCN, ConvCWN, ConvWN, ConvWS, SwitchableNorm
from wsbcn_mmseg.runtime.checkpoint import read_weights, safe_loading
from wsbcn_mmseg.runtime.launch import load_config

pytest.importorskip('mmpretrain', reason='the classification configs need mmpretrain')
CONFIGS = sorted(path for folder in ('imagenet', 'cifar') for path in (ROOT / 'configs' / folder).glob('*.py'))


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """ImageNet's folders with one image per class, and CIFAR's pickles with ten images each."""
    root = tmp_path_factory.mktemp('classification')
    make_imagenet(root / 'imagenet')
    make_cifar(root / 'cifar')
    return root


@pytest.fixture
def cifar_checksums(data, monkeypatch):
    accept_checksums(data / 'cifar', monkeypatch)


def small_run(config: Path, data: Path, work_dir: Path):
    """A Runner of ``config`` with four images of 64 x 64, two updates of two, and one evaluation."""
    from mmengine.runner import Runner
    os.environ.update(IMAGENET_ROOT=str(data / 'imagenet'), CIFAR_ROOT=str(data / 'cifar'))
    try:
        cfg = load_config(str(config), None, str(work_dir), 'none')
    finally:
        del os.environ['IMAGENET_ROOT'], os.environ['CIFAR_ROOT']
    accumulation = cfg.optim_wrapper.get('accumulative_counts', 1)
    images_per_update = cfg.train_dataloader.batch_size * accumulation
    assert images_per_update == cfg.total_batch_size
    cfg.train_dataloader.batch_size = min(2, cfg.train_dataloader.batch_size)
    cfg.optim_wrapper.accumulative_counts = 2 if cfg.train_dataloader.batch_size == 1 else 1
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.indices = 4
        for transform in loader.dataset.pipeline:
            for name in ('scale', 'crop_size'):
                if name in transform:
                    transform[name] = min(64, transform[name])
    cfg.train_cfg.max_epochs = 1
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=-1)
    cfg.log_level = 'WARNING'
    return Runner.from_cfg(cfg)


EXPECTED = {'bn': nn.BatchNorm2d, 'gn': nn.GroupNorm, 'ln': nn.GroupNorm, 'in': nn.InstanceNorm2d, 'bcn': BCN,
            'sn': SwitchableNorm}


@pytest.mark.parametrize('config', CONFIGS, ids=lambda path: path.stem)
def test_every_config_trains(config, data, tmp_path, cifar_checksums):
    runner = small_run(config, data, tmp_path)
    network = runner.model
    first = {name: value.clone() for name, value in network.named_parameters()}
    runner.train()
    assert all(value.isfinite().all() for value in network.state_dict().values())
    moved = [name for name, value in network.named_parameters() if not torch.equal(value, first[name])]
    assert len(moved) > .7 * len(first)
    assert 'backbone.conv1.weight' in moved
    assert 'head.fc.weight' in moved
    assert 0 <= runner.message_hub.get_scalar('val/accuracy/top1').current() <= 100
    name = re.match(r'(resnet\d+|resnext\d+_32x4d)_(.*)_(in1k|c10|c100)', config.stem)[2]
    norms = [m for m in network.modules() if isinstance(m, (nn.GroupNorm, nn.InstanceNorm2d, BCN, SwitchableNorm))
             or type(m) is nn.BatchNorm2d]
    kind = EXPECTED[name.split('_')[0]]
    outer = [m for m in norms if not any(m is n.bn for n in norms if isinstance(n, (BCN, SwitchableNorm)))]
    assert outer
    assert all(isinstance(m, kind) and m.weight is not None for m in outer)
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    conv = next((c for word, c in (('_wn', ConvWN), ('_cwn', ConvCWN), ('_ws', ConvWS)) if word in name), nn.Conv2d)
    assert {type(m) for m in convs} == {conv}


def authors_image(image: Image.Image, box: tuple, size: tuple) -> np.ndarray:
    """Part of a picture as PIL resizes it, channels last, RGB."""
    return np.asarray(image.convert('RGB').crop(box).resize(size, Image.BILINEAR))


@pytest.mark.parametrize('mode, size', [('RGB', (640, 481)), ('L', (300, 257)), ('CMYK', (400, 515))])
def test_images_are_read_and_resized_as_the_authors_did(mode, size, tmp_path):
    """Scale(256), CenterCrop(224) and RandomSizedCrop(224) of torchvision on PIL's images, bit by bit. OpenCV, without
    antialiasing, is gray levels away."""
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], len(mode)), dtype=np.uint8).squeeze()
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: viewers turn it, the authors' loader did not
    Image.fromarray(noise, mode).save(tmp_path / 'image.jpg', exif=exif)
    cfg = load_config(str(ROOT / 'configs' / 'imagenet' / 'resnet50_bn_in1k.py'), None, None, 'none')
    init_default_scope('mmpretrain')
    image = Image.open(tmp_path / 'image.jpg')

    pipeline = Compose(cfg.test_dataloader.dataset.pipeline)
    test = pipeline(dict(img_path=str(tmp_path / 'image.jpg'), gt_label=0))['inputs']
    width, height = size
    resized = (256, int(256 * height / width)) if width <= height else (int(256 * width / height), 256)
    left, top = (int(round((side - 224) / 2)) for side in resized)
    wanted = authors_image(image, (0, 0, *size), resized)[top:top + 224, left:left + 224]
    np.testing.assert_array_equal(test.flip(0).permute(1, 2, 0).numpy(), wanted)

    transforms = [TRANSFORMS.build(step) for step in cfg.train_dataloader.dataset.pipeline[:2]]
    transforms[1].rand_crop_params = lambda img: (20, 30, 200, 230)  # top, left, height, width
    results = dict(img_path=str(tmp_path / 'image.jpg'))
    for transform in transforms:
        results = transform(results)
    np.testing.assert_array_equal(results['img'][..., ::-1], authors_image(image, (30, 20, 260, 220), (224, 224)))


@pytest.mark.parametrize('row, zero', [('resnet50_gn_ws', False), ('resnet50_bn', False), ('resnext50_32x4d_gn', False),
                                       ('resnet50_bcn_ws', True), ('resnext50_32x4d_bcn_ws_micro', True)])
def test_networks_start_as_the_authors(row, zero):
    """Residual branches at zero in the BCN repository only, by the scale per group; the classifier as nn.Linear."""
    cfg = load_config(str(ROOT / 'configs' / 'imagenet' / f'{row}_in1k.py'), None, None, 'none')
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    model.init_weights()
    blocks = [block for stage in (1, 2, 3, 4) for block in getattr(model.backbone, f'layer{stage}')]
    assert len(blocks) == 16
    for block in blocks:
        assert block.norm3.weight.eq(0 if zero else 1).all()
        assert block.norm3.bias.eq(0).all()
        assert block.norm2.weight.eq(1).all()
        assert (not zero or block.norm3.bn.weight.eq(1).all())
    for parameter in model.head.fc.parameters():
        assert .9 < parameter.abs().max() * 2048**.5 <= 1
    assert model.head.fc.weight.std().item() == pytest.approx((1 / 3 / 2048)**.5, rel=.01)


def test_config_names_are_in_the_table(root):
    """configs/README.md has a row per config, with the number that the config's first lines name."""
    table = (root / 'configs' / 'README.md').read_text()
    for config in CONFIGS:
        row = re.search(rf'^\| `{config.parent.name}/{config.name}` \|.*$', table, re.M)
        assert row, config.name
        number = re.search(r'error (\d+\.\d+) in the paper', config.read_text())
        assert (number[1] if number else 'Figure 6' if 'Figure 6' in config.read_text() else 'ours') in row[0]


@pytest.fixture(scope='module')
def pretrained(data, tmp_path_factory) -> Path:
    """A checkpoint of configs/imagenet/resnet101_bcn_ws_in1k.py after an update."""
    work_dir = tmp_path_factory.mktemp('pretrained')
    runner = small_run(ROOT / 'configs' / 'imagenet' / 'resnet101_bcn_ws_in1k.py', data, work_dir)
    runner.train()
    runner.save_checkpoint(str(work_dir), 'epoch_1.pth')
    return work_dir / 'epoch_1.pth'


def test_pretrained_backbone_goes_into_the_segmentor(pretrained, mini_voc, tmp_path, monkeypatch):
    """By MMEngine's own ``Pretrained``, every tensor; by PRETRAINED=, with a count; and the segmentor trains."""
    from mmengine.runner import Runner
    monkeypatch.setenv('VOC_ROOT', str(mini_voc))
    monkeypatch.setenv('PRETRAINED', str(pretrained))
    weights = {name.removeprefix('backbone.'): value for name, value in read_weights(pretrained).items()
               if name.startswith('backbone.')}

    options = {'train_cfg.max_iters': 1, 'train_cfg.val_interval': 2, 'train_dataloader.num_workers': 0,
               'train_dataloader.persistent_workers': False, 'train_dataloader.batch_size': 2,
               'model.data_preprocessor.size': (65, 65), 'train_dataloader.dataset.pipeline.3.crop_size': (65, 65)}
    cfg = load_config(str(ROOT / 'configs' / 'deeplabv3_r101_bcn_ws_voc.py'), options, str(tmp_path), 'none')
    runner = Runner.from_cfg(cfg)
    runner.train()
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert f'Backbone: loaded {len(weights)} tensors from {pretrained}' in log
    assert runner.iter == 1

    network = MODELS.build(dict(cfg.model.backbone, init_cfg=dict(
        type='Pretrained', checkpoint=str(pretrained), prefix='backbone.')))
    assert weights.keys() == network.state_dict().keys()
    with safe_loading():
        network.init_weights()
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_the_classifier_tests_by_the_same_tool(pretrained, data, tmp_path):
    result = run_tool('test.py', ROOT / 'configs' / 'imagenet' / 'resnet101_bcn_ws_in1k.py', pretrained, '--work-dir',
                      tmp_path, '--cfg-options', 'test_dataloader.dataset.indices=4', 'test_dataloader.num_workers=0',
                      'test_dataloader.persistent_workers=False', IMAGENET_ROOT=str(data / 'imagenet'))
    assert 'accuracy/top1' in result.stdout + result.stderr


def test_missing_data_is_one_sentence(tmp_path):
    for folder, variable in (('imagenet/resnet50_bn_in1k', 'IMAGENET_ROOT'), ('cifar/resnet18_bn_c10', 'CIFAR_ROOT')):
        config = ROOT / 'configs' / f'{folder}.py'
        result = run_tool('train.py', config, check=False, **{variable: str(tmp_path / 'no')})
        assert result.returncode == 1
        assert f'set {variable}' in result.stderr
        assert 'Traceback' not in result.stderr
