"""From a checkpoint to a product: inference on any files, export, and the docs page, line by line."""
import copy
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, settle
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.apis import inference_model
from mmseg.registry import MODELS
from PIL import Image

from wsbcn_mmseg import infer, load_segmentor
from wsbcn_mmseg.export import FORMATS, Format, Logits, export, onnx_runner
from wsbcn_mmseg.inference import find_images, read_image
from wsbcn_mmseg.runtime.errors import UsageError

pytestmark = pytest.mark.usefixtures('one_thread')
SMALL = {'base_channels=32': 'base_channels=8', 'in_channels=256, channels=64': 'in_channels=64, channels=16',
         '(257, 257)': '(129, 129)'}
EXPORTS = {'onnx': 'segmentor.onnx', 'torchscript': 'segmentor.pt', 'exported_program': 'segmentor.pt2',
           'state_dict': 'segmentor.pth'}


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    """A folder like the repository's after the demo, with a smaller network that is settled, not trained."""
    folder = tmp_path_factory.mktemp('repository')
    shutil.copytree(ROOT / 'configs', folder / 'configs')
    (folder / 'tools').symlink_to(ROOT / 'tools')
    base, config = folder / 'configs' / '_base_' / 'mini_voc.py', folder / 'configs' / 'demo_mini_voc.py'
    text = base.read_text()
    for old, new in SMALL.items():
        assert old in text
        text = text.replace(old, new)
    base.write_text(text)
    torch.manual_seed(0)
    init_default_scope('mmseg')
    model = settle(MODELS.build(Config.fromfile(config).model), torch.float32)
    weight = torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    weight.data -= weight.mean(1, keepdim=True)  # so that no class wins everywhere
    (folder / 'work_dirs' / 'demo').mkdir(parents=True)
    torch.save(dict(state_dict=model.state_dict(), meta={}), folder / 'work_dirs' / 'demo' / 'iter_700.pth')
    return folder


@pytest.fixture(scope='module')
def config(demo):
    return demo / 'configs' / 'demo_mini_voc.py'


@pytest.fixture(scope='module')
def checkpoint(demo):
    return demo / 'work_dirs' / 'demo' / 'iter_700.pth'


@pytest.fixture(scope='module')
def model(config, checkpoint):
    return load_segmentor(config, checkpoint)


def run(monkeypatch, tool, *arguments) -> None:
    """The command, in this process: importing OpenMMLab once more would take longer than what it does."""
    monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
    runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')


# Inference

def write_odd_files(folder, image: Image.Image) -> None:
    """One of each kind that users have."""
    folder.mkdir()
    gray = image.convert('L')
    image.save(folder / 'plain.png')
    gray.save(folder / 'gray.png')
    gray.convert('1').save(folder / 'bits.png')
    clear = image.convert('RGBA')
    clear.putalpha(128)
    clear.save(folder / 'alpha.png')
    image.quantize(16).save(folder / 'palette.png', transparency=3)
    image.convert('CMYK').save(folder / 'cmyk.jpg')
    Image.fromarray(np.asarray(gray, np.uint16) * 257).save(folder / 'deep.png')
    Image.new('RGB', (1, 1)).save(folder / 'dot.png')
    Image.new('RGB', (300, 1)).save(folder / 'line.png')
    image.save(folder / 'moving.gif', save_all=True, append_images=[image.rotate(90)])
    exif = Image.Exif()
    exif[0x112] = 6  # turned by 90 degrees
    image.save(folder / 'turned.jpg', exif=exif)


BROKEN = {'truncated.jpg': 'cannot be decoded', 'empty.png': 'is not an image', 'text.jpg': 'is not an image',
          'cut.png': 'cannot be decoded', 'float.tiff': 'floating-point', 'missing.png': 'does not exist'}


def write_broken_files(folder) -> None:
    """One of each kind that cannot be used."""
    (folder / 'empty.png').write_bytes(b'')
    (folder / 'text.jpg').write_text('hello')
    for name, source in (('truncated.jpg', 'turned.jpg'), ('cut.png', 'plain.png')):
        content = (folder / source).read_bytes()
        (folder / name).write_bytes(content[:len(content) // 2])
    Image.fromarray(np.ones((5, 5), np.float32)).save(folder / 'float.tiff')


@pytest.fixture(scope='module')
def pictures(tmp_path_factory, mini_voc):
    folder = tmp_path_factory.mktemp('pictures') / 'odd'
    image = Image.open(sorted((mini_voc / 'JPEGImages').iterdir())[0]).crop((100, 100, 260, 220))
    write_odd_files(folder, image)
    return folder


def test_odd_files_are_read_as_they_look(pictures):
    plain, gray = read_image(pictures / 'plain.png'), read_image(pictures / 'gray.png')
    assert plain.shape == (120, 160, 3)
    assert plain.dtype == np.uint8
    assert (gray == np.asarray(Image.fromarray(plain).convert('L'))[..., None]).all()
    assert (read_image(pictures / 'deep.png') == gray).all()
    turned = read_image(pictures / 'turned.jpg')
    assert turned.shape == (160, 120, 3)
    assert np.abs(turned - np.rot90(plain, -1).astype(float)).mean() < 10
    white = (plain.astype(float) * 128 + 255 * 127) / 255
    assert np.abs(read_image(pictures / 'alpha.png') - white).max() < 2
    assert np.abs(read_image(pictures / 'moving.gif') - plain.astype(float)).mean() < 20  # the first frame


def test_tool_gives_every_file_a_result_or_a_sentence(pictures, config, checkpoint, tmp_path, monkeypatch, capsys):
    folder = tmp_path / 'images' / 'below'
    folder.parent.mkdir()
    write_odd_files(folder, Image.open(pictures / 'plain.png'))
    write_broken_files(folder)
    good = len(list(pictures.iterdir()))
    run(monkeypatch, 'infer.py', config, checkpoint, folder.parent, folder / 'missing.png', f'{pictures}/*.png',
        '--out', tmp_path / 'out', '--batch', 2, '--device', 'cpu')
    output = capsys.readouterr()
    sentences = [line for line in output.err.splitlines() if line.startswith('infer.py')]
    assert len(sentences) == len(BROKEN)
    for name, reason in BROKEN.items():
        assert any(str(folder / name) in line and reason in line for line in sentences), (name, sentences)
    total = good + len(list(pictures.glob('*.png')))
    assert f'{total} of {total + len(BROKEN)} segmented' in output.out
    for kind in ('labels', 'masks', 'overlays'):
        assert len(list((tmp_path / 'out' / kind).iterdir())) == total
    label = Image.open(tmp_path / 'out' / 'labels' / 'turned.png')
    assert label.mode == 'P'
    assert label.size == (120, 160)
    assert label.getpalette()[3:6] == [128, 0, 0]
    assert len(np.unique(label)) > 1
    mask, overlay = (Image.open(tmp_path / 'out' / kind / 'turned.png') for kind in ('masks', 'overlays'))
    assert mask.width > 120  # a legend beside the mask
    assert overlay.size == (120, 160)
    assert (np.asarray(mask)[:160, :120] == np.asarray(label.convert('RGB'))).all()
    assert (tmp_path / 'out' / 'labels' / 'plain_2.png').is_file()  # the other folder's


def test_same_labels_as_mmsegmentation_alone_and_together(model, mini_voc):
    files = sorted((mini_voc / 'JPEGImages').iterdir())[:3]
    alone, together = infer(model, files, progress=False), infer(model, files, batch=2, progress=False)
    reference = copy.deepcopy(model)  # MMSegmentation changes the config of the model that it infers with
    for file, one, other in zip(files, alone, together, strict=True):
        expected = inference_model(reference, str(file)).pred_sem_seg.data[0].numpy()
        assert one.source == str(file)
        assert one.problem is None
        assert len(np.unique(one.labels)) > 1
        assert (one.labels != expected).mean() < 1e-3
        assert (other.labels != expected).mean() < 1e-3


def test_arrays_tta_and_sliding_window(model, pictures):
    image = read_image(pictures / 'plain.png')
    whole, bad = infer(model, [image, image.astype(float)], progress=False)
    assert whole.source == 'image_1'
    assert whole.labels.shape == image.shape[:2]
    assert whole.labels.dtype == np.uint8
    assert bad.labels is None
    assert bad.problem == 'image_2 is not uint8 of shape (H, W, 3) but float64 of shape (120, 160, 3)'
    config = model.test_cfg
    slid, = infer(model, image, mode='slide', progress=False)
    assert model.test_cfg is config
    assert slid.labels.shape == image.shape[:2]
    large = np.tile(image, (3, 2, 1))
    assert (infer(model, large, mode='slide', progress=False)[0].labels
            != infer(model, large, mode='whole', progress=False)[0].labels).any()
    averaged = infer(model, [image, image], tta=True, batch=2, progress=False)
    assert all((a.labels == averaged[0].labels).all() for a in averaged)
    mirrored, = infer(model, np.ascontiguousarray(image[:, ::-1]), tta=True, progress=False)
    assert (mirrored.labels[:, ::-1] != averaged[0].labels).mean() < 0.05  # mirroring is among what is averaged


def test_one_failing_image_stops_no_other(model, pictures, monkeypatch):
    step = model.test_step

    def failing(data):
        if any(sample.ori_shape == (1, 1) for sample in data['data_samples']) or len(data['inputs']) > 1:
            raise RuntimeError('out of memory\nat a great length')
        return step(data)

    monkeypatch.setattr(model, 'test_step', failing)
    predictions = infer(model, [pictures / 'dot.png', pictures / 'plain.png', pictures / 'gray.png'], batch=2,
                        progress=False)
    first, *others = [prediction.problem for prediction in predictions]
    assert first == f'{pictures / "dot.png"} cannot be segmented (out of memory)'
    assert others == [None, None]


@pytest.mark.parametrize('change, sentence', [
    (dict(images=['/nowhere/*.png']), 'holds no images'),
    (dict(options=['--device', 'cuda:99']), "no device 'cuda:99' here"),
    (dict(options=['--batch', '0']), 'batch of at least 1'),
    (dict(options=['--cfg-options', 'model.decode_head.channels=32']), 'was trained with another network'),
    (dict(options=['--cfg-options', 'model.backbone.depth=34']), ') missing, 0 tensors unexpected'),
    (dict(options=['--cfg-options', 'model.decode_head.num_classes=5']), 'has 21 classes, but the model has 5'),
    (dict(checkpoint='/nowhere.pth'), 'checkpoint /nowhere.pth does not exist'),
    (dict(checkpoint='https://nowhere/x.pth'), 'download it first'),
    (dict(images=[ROOT / 'LICENSE']), 1),
])
def test_mistakes_are_one_sentence(change, sentence, config, checkpoint, pictures, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, 'infer.py', config, change.get('checkpoint', checkpoint),
            *change.get('images', [pictures / 'plain.png']), '--out', tmp_path, *change.get('options', []))
    if sentence == 1:
        assert stop.value.code == 1
    else:
        assert sentence in stop.value.code
        assert '\n' not in stop.value.code


def test_images_are_found_once(pictures):
    found = find_images([pictures, pictures / 'plain.png', f'{pictures}/*.gif', 'missing.png'])
    assert len(found) == len(set(found)) == len(list(pictures.iterdir())) + 1
    with pytest.raises(UsageError, match='holds no images'):
        find_images([f'{pictures}/*.webp'])


# Export

@pytest.fixture(scope='module')
def product(demo, mini_voc, pictures):
    """What the docs page leaves behind, all of whose lines are run here."""
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    images = demo / 'data' / 'mini_voc' / 'VOCdevkit' / 'VOC2012' / 'JPEGImages'
    images.mkdir(parents=True)
    for path in sorted((mini_voc / 'JPEGImages').iterdir())[:2]:
        shutil.copy(path, images)
    (demo / 'pictures').mkdir()
    for name in ('plain.png', 'turned.jpg'):
        shutil.copy(pictures / name, demo / 'pictures')
    (demo / 'product').mkdir()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(demo)
        run_page((ROOT / 'docs' / 'deployment.md').read_text(), monkeypatch)
    return demo / 'product'


def run_page(text: str, monkeypatch) -> None:
    blocks = re.findall(r'```(\w+)\n(.*?)```', text, re.S)
    assert text.count('```') == 2 * len(blocks)
    assert {language for language, _ in blocks} == {'bash', 'python'}
    for language, block in blocks:
        if 'onnxruntime' in block:  # what is said to run without this package, runs without it
            block += "\nimport sys\nassert not {'wsbcn_mmseg', 'mmengine', 'torch'} & set(sys.modules)\n"
            subprocess.run([sys.executable, '-c', block], check=True)
        elif language == 'python':
            exec(compile(block, 'deployment.md', 'exec'), {})
        else:
            for line in block.splitlines():
                words = shlex.split(os.path.expandvars(line))
                if words[0] == 'export':
                    monkeypatch.setenv(*words[1].split('='))
                else:
                    assert words[0] == 'python'
                    assert words[1].startswith('tools/')
                    run(monkeypatch, words[1].removeprefix('tools/'), *words[2:])


def test_docs_page_serves_the_same_labels(product):
    mask = np.asarray(Image.open(product / 'mask.png'))
    labels = np.asarray(Image.open(product / 'look' / 'labels' / 'plain.png').convert('RGB'))
    assert mask.shape == (60, 80, 3)
    assert (mask == labels[::2, ::2]).all(2).mean() > 0.9
    assert not list(product.glob('*.unchecked'))


@pytest.mark.parametrize('form', EXPORTS)
def test_exported_files_hold_standard_operators_for_any_size(form, product, model):
    out = product / EXPORTS[form]
    about = json.loads((product / f'{out.name}.json').read_text())
    assert about['format'] == form
    assert about['input']['shape'][1] == 3
    assert about['input']['mean'] == pytest.approx([123.675, 116.28, 103.53])
    assert about['input']['channel_order'] == 'RGB'
    assert about['input']['padding']['size'] == [129, 129]
    assert about['classes'][15] == 'person'
    assert about['palette'][15] == [192, 128, 128]
    assert about['output']['align_corners'] is True
    assert [check['kind'] for check in about['agreement']] == ['random', 'real']
    assert all(check['relative'] < 1e-3 for check in about['agreement'])
    if form == 'onnx':
        import onnx
        assert {node.domain for node in onnx.load(out).graph.node} == {''}
        network = onnx_runner(out, threads=1)
    elif form == 'torchscript':
        network = torch.jit.load(out)
        assert {node.kind().split('::')[0] for node in network.inlined_graph.nodes()} <= {'aten', 'prim'}
    elif form == 'exported_program':
        program = torch.export.load(out)
        targets = [node.target for node in program.graph.nodes if node.op == 'call_function']
        assert {target.namespace for target in targets if isinstance(target, torch._ops.OpOverload)} == {'aten'}
        network = program.module()
    else:
        assert not any('.bn.' in name for name in torch.load(out, weights_only=True))
        return
    image = torch.randn(3, 3, 75, 203)
    expected = Logits(model)(image).detach()
    assert (network(image) - expected).abs().max() < 1e-3 * expected.abs().max()


def wrong_by(factor):
    def write(network, example, path):
        path.write_text('wrong')
        return lambda image: network(image) * factor
    return Format(write)


def fails(network, example, path):
    raise RuntimeError('unsupported\noperator')


def fails_later(network, example, path):
    def run(image):
        assert image.shape[2] == 96, 'Guard failed'
        return network(image)
    return run


@pytest.mark.parametrize('form, sentence', [
    (wrong_by(1.01), 'does not agree with the original'), (wrong_by(float('nan')), 'does not agree'),
    (Format(fails), 'cannot be exported as state_dict: unsupported'),
    (Format(fails_later), r'does not accept images of shape \(2, 3, 161, 97\) \(Guard failed'),
    (Format(fails, ('no_such_package', )), 'needs no_such_package, not installed here; run: pip install')])
def test_nothing_is_written_that_does_not_agree(form, sentence, model, pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, 'state_dict', form)
    with pytest.raises(UsageError, match=sentence):
        export(model, tmp_path / 'network', 'state_dict', [pictures / 'plain.png'])
    assert not list(tmp_path.iterdir())


def test_export_mistakes(model, pictures, tmp_path, config, checkpoint, monkeypatch):
    for out, form, images, sentence in [
            (tmp_path / 'a' / 'b', 'state_dict', [pictures / 'plain.png'], 'folder .* does not exist'),
            (tmp_path / 'a', 'pickle', [pictures / 'plain.png'], 'format must be one of'),
            (tmp_path / 'a', 'state_dict', [], 'no real images'),
            (tmp_path / 'a', 'state_dict', ['missing.png'], 'missing.png does not exist')]:
        with pytest.raises(UsageError, match=sentence):
            export(model, out, form, images)
    monkeypatch.setenv('VOC_ROOT', '/nowhere')
    with pytest.raises(SystemExit, match='test set is not here; give images for'):
        run(monkeypatch, 'export.py', config, checkpoint, tmp_path / 'a', '--format', 'state_dict')
    assert not list(tmp_path.iterdir())
