"""Does a checkpoint fit a network: one answer, in one sentence, from every tool."""
import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from small_segmentation import run, write_checkpoint, write_config, write_data

from wsbcn_mmseg import infer, load_segmentor
from wsbcn_mmseg.export import export
from wsbcn_mmseg.runtime.errors import UsageError
from wsbcn_mmseg.runtime.fit import load_and_compare
from wsbcn_mmseg.runtime.saved_config import saved_settings

pytestmark = pytest.mark.usefixtures('one_thread')
WS = "ws = dict(type='ConvWS')\nfor part in (model['backbone'], model['decode_head'], model['auxiliary_head'][0]):\n" \
    "    part['conv_cfg'] = ws\n"
EMA = "custom_hooks = [dict(type='EMAHook')]"
CLASSES = "model['decode_head']['num_classes'] = model['auxiliary_head'][0]['num_classes'] = 5\n"
GN = "for part in (model['backbone'], model['decode_head'], model['auxiliary_head'][0]):\n" \
    "    part['norm_cfg'] = dict(type='GN', num_groups={})\n"
RECIPE = "model.update(type='ConvertedModel', conversion=dict(type='EncoderDecoder', include=['backbone'], " \
    "preserve=True, norm=dict(type='BCN', num_groups=1)))\n"
WHOLE = "del model['conversion']['include']\n"
NECK = "model['neck'] = dict(type='FPN', in_channels=[4, 8, 16, 32], out_channels=32, num_outs=4)\n" \
    "model['auxiliary_head'][0]['in_channels'] = 32\n"


@pytest.fixture
def config(tmp_path, small_data):
    """Writes a config; two of the same network have the same name."""

    def write(more='', root=None):
        path = tmp_path / f'config{abs(hash(more)) % 100000}.py'
        return write_config(path, root or small_data, more)

    return write


def drop(*parts):
    def change(state):
        for name in [name for name in state if any(part in name for part in parts)]:
            del state[name]
    return change


def every_second(state):
    for name in list(state)[::2]:
        del state[name]


def put(name, value):
    def change(state):
        state[name] = torch.full_like(state[name.replace('extra', 'backbone')], value)
    return change


# Config of the network, config of the file, change of the file: what test, infer and export say, and load_from;
# None for acceptance
CASES = {
    'same': ('', '', None, None, None),
    'other classes': ('', CLASSES, None, 'has 5 classes, but the model has 3', None),
    'half of the tensors': ('', '', every_second, 'was trained with another network or normalization: ',
                            'was trained with another network or normalization: '),
    'a tensor less': ('', '', drop('layer1.0.bn1.bias'), '1 tensors (backbone.layer1.0.bn1.bias) missing, 0 tensors '
                      'unexpected', None),
    'a tensor more': ('', '', put('extra.conv1.weight', 1.), '0 tensors missing, 1 tensors (extra.conv1.weight) '
                      'unexpected', None),
    'no auxiliary head in the network': ("model['auxiliary_head'] = None", '', None, None, None),
    'no head': ('', '', drop('head.'), 'tensors (decode_head.', None),
    'a deeper network': ("model['backbone']['depth'] = 34", '', None, 'missing, 0 tensors unexpected',
                         'missing, 0 tensors unexpected'),
    'a wider network': ("model['backbone']['base_channels'] = 8\nmodel['decode_head']['in_channels'] = 64\n"
                        "model['auxiliary_head'][0]['in_channels'] = 32", '', None, 'of another shape ([4, 64, 3, 3] '
                        'instead of [8, 64, 3, 3])', 'of another shape ('),
    'a wider head': ("model['decode_head']['channels'] = 16", '', None,
                     'of another shape ([3, 8, 1, 1] instead of [3, 16, 1, 1])', None),
    'other norms': (GN.format(2), '', None, 'was trained with another network or normalization', None),
    'WS in the file': ('', WS, None, 'was trained with Weight Standardization, which this network does not have (in '
                       'backbone, decode_head, auxiliary_head)', 'was trained with Weight Standardization, which this'),
    'WS in the network': (WS, '', None, 'was trained without Weight Standardization, which this network has (in '
                          'backbone, decode_head, auxiliary_head)', 'was trained without Weight Standardization'),
    'WS in both': (WS, WS, None, None, None),
    'converted in both': (RECIPE, RECIPE, None, None, None),
    'other groups, converted in both': (GN.format(4) + RECIPE, GN.format(4) + RECIPE, None, None, None),
    'converted in the file': ('', RECIPE, None, 'and was trained with Weight Standardization, which this network does '
                              'not have (in backbone)', 'was trained with Weight Standardization'),
    'converted in the network': (RECIPE, '', None, 'and was trained without Weight Standardization, which this network '
                                 'has (in backbone)', 'is a checkpoint of the network before its conversion; set '
                                 'model.conversion.checkpoint to it'),
    'a converted neck without norms': (NECK + RECIPE + WHOLE, NECK + RECIPE + WHOLE, None, None, None),
    'other groups': (GN.format(2), GN.format(4), None,
                     'was trained with 4 groups per GroupNorm, where this network has 2', 'was trained with 4 groups'),
    'NaN': ('', '', put('backbone.conv1.weight', float('nan')), 'holds NaN or infinity in 1 tensors '
            '(backbone.conv1.weight); take an earlier checkpoint', 'holds NaN or infinity in 1 tensors'),
    'infinity': ('', '', put('backbone.bn1.running_var', float('inf')), 'holds NaN or infinity in 1 tensors '
                 '(backbone.bn1.running_var)', 'holds NaN or infinity'),
}


@pytest.mark.fault('Other checkpoint', 'Missing, unexpected or misshapen tensors, NaN, WS in only one of the two',
                   'The same error message in every tool, before training starts')
@pytest.mark.parametrize('name', CASES)
def test_every_tool_says_the_same(name, config, small_data, tmp_path):
    of_network, of_file, change, sentence, on_start = CASES[name]
    network = config(of_network)
    checkpoint = write_checkpoint(tmp_path / 'x.pth', config(of_file), change or (lambda state: None))
    image, work_dir = small_data / 'images' / 'picture0.png', tmp_path / 'run'
    said = {}
    tools = {'test.py': [network, checkpoint, '--work-dir', work_dir, '--check'],
             'infer.py': [network, checkpoint, image, '--out', tmp_path / 'out', '--device', 'cpu'],
             'export.py': [network, checkpoint, tmp_path / 'x', '--format', 'state_dict', '--images', image]}
    if sentence is None and name != 'same':  # what follows takes seconds
        load_segmentor(network, checkpoint)
        tools = {'test.py': tools['test.py']}
    for tool, arguments in tools.items():
        code, _ = run(tool, *arguments)
        said[tool] = code and code.removeprefix(f'{tool}: ')
    assert len(set(said.values())) == 1, said
    assert (said['test.py'] is None) == (sentence is None)
    assert sentence is None or f'{checkpoint} ' in said['test.py'] and sentence in said['test.py']
    code, printed = run('train.py', network, '--check', '--work-dir', work_dir, '--cfg-options',
                        f'load_from={checkpoint}')
    assert (code is None) == (on_start is None), code
    assert on_start is None or on_start in code and '\n' not in code
    assert not work_dir.exists()
    new = name in ('other classes', 'a tensor less', 'no head', 'a wider head', 'other norms')
    assert ('are newly initialized' in printed) == new


@pytest.mark.fault('Other checkpoint', 'Another number of classes, as `load_from`',
                   'It trains; a message lists the layers with random initialization')
def test_new_classes_are_named_in_a_line_and_train(config, small_data, tmp_path):
    checkpoint = write_checkpoint(tmp_path / 'x.pth', config(CLASSES))
    code, printed = run('train.py', config(EMA), '--work-dir', tmp_path / 'run', '--cfg-options',
                        f'load_from={checkpoint}', 'train_cfg.max_iters=1')
    assert code is None
    assert printed.splitlines()[0] == (
        '4 tensors (decode_head.conv_seg.weight, decode_head.conv_seg.bias, auxiliary_head.0.conv_seg.weight, ...) '
        'are newly initialized, because the file has 5 classes, but the model has 3; the other 125 come from '
        f'{checkpoint}')
    assert (tmp_path / 'run' / 'iter_1.pth').is_file()


def test_averaged_checkpoints_are_judged(config, tmp_path):
    """MMEngine saves the average as the weights, and the weights as the average."""
    run('train.py', config(EMA), '--work-dir', tmp_path / 'run', '--cfg-options', 'train_cfg.max_iters=1')
    path = tmp_path / 'run' / 'iter_1.pth'
    assert run('test.py', config(EMA), path, '--check')[0] is None
    checkpoint = torch.load(path, weights_only=False)
    checkpoint['state_dict']['decode_head.convs.0.conv.weight'] *= float('nan')
    torch.save(checkpoint, path)
    assert 'holds NaN or infinity in 1 tensors (decode_head.convs.0.conv.weight)' in run(
        'test.py', config(EMA), path, '--check')[0]


@pytest.mark.fault('Other checkpoint', 'Pretrained weights of another network',
                   'One error message, before the start')
@pytest.mark.parametrize('init_cfg', ["dict(type='Pretrained', checkpoint={!r}, prefix='backbone.')",
                                      "dict(type='PretrainedBackbone', checkpoint={!r})"])
@pytest.mark.parametrize(('of_file', 'change', 'sentence'), [
    ('', drop('head.'), None), (CLASSES, None, None),
    ("model['backbone']['base_channels'] = 8\nmodel['decode_head']['in_channels'] = 64\n"
     "model['auxiliary_head'][0]['in_channels'] = 32", None, 'another shape'),
    (WS, None, 'was trained with Weight Standardization'),
    ('', put('backbone.conv1.weight', float('nan')), 'holds NaN'),
    ('', drop('backbone.'), ''), ('', drop('layer3', 'layer4'), 'was trained with another network')])
def test_pretrained_parts_are_judged(init_cfg, of_file, change, sentence, config, tmp_path):
    checkpoint = write_checkpoint(tmp_path / 'x.pth', config(of_file), change or (lambda state: None))
    code, printed = run('train.py', config(f"model['backbone']['init_cfg'] = {init_cfg.format(str(checkpoint))}"),
                        '--check', '--work-dir', tmp_path / 'run')
    assert (code is None) == (sentence is None), code
    assert sentence is None or str(checkpoint) in code and sentence in code and '\n' not in code


def test_weights_of_a_deeper_network_fit_its_stages(config, tmp_path):
    """They hold all that the smaller network has, as MMEngine sees it; our own initializer wants all of the file."""
    checkpoint = write_checkpoint(tmp_path / 'x.pth', config("model['backbone']['depth'] = 34"))
    for init_cfg, fits in ((f"dict(type='Pretrained', checkpoint={str(checkpoint)!r}, prefix='backbone.')", True),
                           (f"dict(type='PretrainedBackbone', checkpoint={str(checkpoint)!r})", False)):
        code, _ = run('train.py', config(f"model['backbone']['init_cfg'] = {init_cfg}"), '--check')
        assert (code is None) == fits


def test_a_head_may_be_pretrained_too(config, tmp_path):
    checkpoint = write_checkpoint(tmp_path / 'x.pth', config(CLASSES))
    code, printed = run('train.py', config(
        "model['decode_head']['init_cfg'] = dict(type='Pretrained', prefix='decode_head', "
        f'checkpoint={str(checkpoint)!r})'), '--check')
    assert code is None
    assert '2 tensors (conv_seg.weight, conv_seg.bias) of decode_head are newly initialized' in printed


def test_conversion_of_weights_without_ws(config, tmp_path):
    """--bcn-ws trains from them with a remark; --preserve keeps their function, also with another number of classes."""
    checkpoint = write_checkpoint(tmp_path / 'x.pth', config(CLASSES))
    weights = ['--cfg-options', f'load_from={checkpoint}', 'train_cfg.max_iters=1']
    code, printed = run('train.py', config(), '--check', '--bcn-ws', *weights)
    assert code is None
    assert 'was trained without Weight Standardization, which this network has' in printed
    code, printed = run('train.py', config(), '--work-dir', tmp_path / 'run', '--bcn-ws', '--preserve', *weights)
    assert code is None
    assert '4 tensors (decode_head.conv_seg.weight' in printed
    state = torch.load(tmp_path / 'run' / 'iter_1.pth', weights_only=False)['state_dict']
    assert state['decode_head.conv_seg.weight'].shape[0] == 3
    kernel = torch.load(checkpoint, weights_only=False)['state_dict']['backbone.conv1.weight']
    torch.testing.assert_close(state['backbone.conv1.kernel_mean'], kernel.mean((1, 2, 3), keepdim=True))


@pytest.mark.fault('Other checkpoint', '`--resume` in a work folder of another network',
                   'An error that names the checkpoint and the difference')
@pytest.mark.parametrize(('before', 'after', 'sentence'), [
    (GN.format(2), GN.format(2) + WS, 'was trained without Weight Standardization'),
    (GN.format(2), GN.format(4), 'was trained with 2 groups per GroupNorm'),
    (RECIPE, '', 'was trained with Weight Standardization'), (RECIPE, RECIPE, None),
    (NECK + RECIPE + WHOLE, NECK + RECIPE + WHOLE, None)])
def test_a_training_resumes_in_the_same_network(before, after, sentence, config, tmp_path):
    work_dir = ['--work-dir', tmp_path / 'run', '--cfg-options']
    assert run('train.py', config(before), *work_dir, 'train_cfg.max_iters=1')[0] is None
    code, _ = run('train.py', config(after), '--resume', *work_dir, 'train_cfg.max_iters=2')
    assert (code is None) == (sentence is None), code
    assert sentence is None or f'{tmp_path / "run" / "iter_1.pth"} ' in code and sentence in code and '\n' not in code


def test_weights_for_a_conversion_are_judged(config, tmp_path):
    for name, of_file, sentence in (('x.pth', '', None), ('y.pth', RECIPE, 'was trained with Weight Standardization'),
                                    ('nosuch.pth', None, 'does not exist')):
        checkpoint = tmp_path / name
        if of_file is not None:
            write_checkpoint(checkpoint, config(of_file))
        weights = f"model['conversion']['checkpoint'] = {str(checkpoint)!r}"
        code, _ = run('train.py', config(RECIPE + weights), '--check')
        assert (code is None) == (sentence is None), code
        assert sentence is None or f'{checkpoint} ' in code and sentence in code


HOSTILE = """
model = dict(backbone=dict(conv_cfg=dict(type='ConvWS')), decode_head=open({0!r}, 'w'),
             neck=__import__('os').mkdir({0!r}))
open({0!r}, 'w')
"""


@pytest.mark.fault('Hostile file', 'Code in the config that a checkpoint carries',
                   'It is parsed, not executed')
def test_the_config_in_a_checkpoint_is_never_run(tmp_path):
    settings = saved_settings(dict(meta=dict(cfg=HOSTILE.format(str(tmp_path / 'ran')))))
    assert settings['backbone'].standardized is True
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('text', ['model = dict(', 'model = 3', '(' * 5000, 'model = ' + '[' * 150 + ']' * 150, '\0', 7,
                                  None, 'x = 1', 'model = dict(backbone=[dict()], **3)', 'model: {a: b}'])
def test_configs_that_say_nothing_are_passed_over(text):
    assert not any(part.standardized for part in saved_settings(dict(meta=dict(cfg=text))).values())
    assert saved_settings({}) == saved_settings(dict(meta=3)) == {}


def test_what_a_converted_model_says():
    default = dict(ws=True, include=[], exclude=[])

    def standardized(part='backbone', norm='BN', **conversion):
        model = {'type': 'ConvertedModel', part: dict(norm_cfg=dict(type=norm)),
                 'conversion': dict(default, **conversion)}
        return saved_settings(dict(meta=dict(cfg=Config(dict(model=model)).pretty_text)))[part].standardized

    assert standardized() is True
    del default['ws']  # the default of convert_model
    assert standardized() is True
    assert standardized(ws=False) is False
    assert standardized('decode_head') is None
    assert standardized(norm='LN') is None
    assert standardized(exclude=['backbone']) is False
    assert standardized(include=['backbone.layer1']) is None


def test_tensors_that_fit_are_loaded():
    module, source = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 4)), torch.nn.Linear(2, 3)
    fit = load_and_compare(module, {f'0.{name}': value for name, value in source.state_dict().items()}, 'file')
    assert torch.equal(module[0].weight, source.weight)
    assert fit.missing == ['1.weight', '1.bias']
    with pytest.raises(UsageError, match=r'2 tensors \(1.weight, 1.bias\) missing, 0 tensors unexpected'):
        fit.require_all()


# Binary heads, channels, cascades

def binary(classes: int) -> str:
    head = dict(num_classes=classes, out_channels=1, threshold=.6,
                loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True))
    return (f"head = {head}\nmodel['decode_head'].update(head)\nmodel['auxiliary_head'][0].update(head)\n"
            "binary = dict(classes=('no', 'yes'))\ndataset['metainfo'] = binary\n"
            "train_dataloader['dataset'] = dataset\nval_dataloader['dataset']['metainfo'] = binary\n")


@pytest.mark.fault('Other checkpoint', 'Binary heads in every tool',
                   'They work')
@pytest.mark.parametrize('classes', [1, 2])
def test_binary_heads_pass_through_every_tool(classes, config, tmp_path):
    write_data(tmp_path / 'data', classes=2)
    path, run_dir = config(binary(classes), tmp_path / 'data'), tmp_path / 'run'
    image = tmp_path / 'data' / 'images' / 'picture0.png'
    code, _ = run('train.py', path, '--work-dir', run_dir)
    assert code is None
    checkpoint = run_dir / 'iter_2.pth'
    assert run('test.py', path, checkpoint, '--work-dir', run_dir)[0] is None
    assert run('infer.py', path, checkpoint, image, '--out', tmp_path / 'out', '--device', 'cpu')[0] is None
    assert run('export.py', path, checkpoint, tmp_path / 'x.pt', '--format', 'state_dict', '--images', image)[0] is None
    assert run('train.py', path, '--check', '--cfg-options', f'load_from={checkpoint}')[0] is None
    about = json.loads((tmp_path / 'x.pt.json').read_text())
    assert about['output']['shape'][1] == 1
    assert about['output']['labels'] == 'sigmoid above 0.6'
    assert about['classes'] == ['no', 'yes']
    model = load_segmentor(path, checkpoint)
    torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=5)
    prediction, = infer(model, image, progress=False)
    pixels = torch.from_numpy(np.array(Image.open(image))).permute(2, 0, 1)[None].float()
    logits = model.encode_decode((pixels.flip(1) - 120) / 60, [dict(img_shape=(36, 40))])
    expected = (logits[0, 0].sigmoid() > .6).numpy()
    assert 0 < expected.mean() < 1
    assert (prediction.labels == expected).mean() > .99
    both = write_checkpoint(tmp_path / 'two.pth', config(
        "model['decode_head']['num_classes'] = model['auxiliary_head'][0]['num_classes'] = 2"))
    assert f'{both} has 2 output channels, but the model has 1' in run(
        'infer.py', path, both, image, '--out', tmp_path / 'out')[0]


@pytest.mark.parametrize(('channels', 'suffix', 'load'), [
    (1, '.png', "color_type='grayscale'"), (4, '.png', "color_type='unchanged'"),
    (4, '.tiff', "color_type='unchanged'"), (6, '.npy', "type='LoadImageFromNpyFile'")])
def test_images_of_any_channels(channels, suffix, load, config, small_data, tmp_path):
    write_data(tmp_path / 'data', channels=channels, suffix=suffix)
    path = config(f"load[0].update({load})\nmodel['backbone']['in_channels'] = {channels}\n"
                  f"dataset['img_suffix'] = val_dataloader['dataset']['img_suffix'] = {suffix!r}\n", tmp_path / 'data')
    assert run('train.py', path, '--check')[0] is None
    checkpoint = write_checkpoint(tmp_path / 'x.pth', path)
    images = tmp_path / 'data' / 'images'
    code, printed = run('infer.py', path, checkpoint, images, '--out', tmp_path / 'out', '--device', 'cpu')
    assert code is None
    assert '6 of 6 segmented' in printed
    assert np.asarray(Image.open(tmp_path / 'out' / 'overlays' / 'picture0.png')).shape == (36, 40, 3)
    form = 'torchscript' if channels == 4 else 'state_dict'
    code, _ = run('export.py', path, checkpoint, tmp_path / 'x.pt', '--format', form, '--images', images)
    assert code is None
    about = json.loads((tmp_path / 'x.pt.json').read_text())
    assert about['input']['shape'] == ['N', channels, 'H', 'W']
    assert about['input']['mean'] == [120.] * channels
    assert len(about['input']['std']) == channels
    if channels == 4:
        assert torch.jit.load(tmp_path / 'x.pt')(torch.randn(2, channels, 48, 64)).shape == (2, 3, 48, 64)
    model = load_segmentor(path, checkpoint)
    array = np.random.default_rng(0).integers(255, size=(36, 40, channels)).astype(np.uint8)
    first, other = infer(model, [array, array[..., None]], progress=False)
    tensor = (torch.from_numpy(array).permute(2, 0, 1)[None] - 120.) / 60
    assert (first.labels == model.encode_decode(tensor, [dict(img_shape=(36, 40))]).argmax(1)[0].numpy()).mean() > .99
    assert 'is not of shape' in other.problem
    if suffix == '.png' and channels == 4:
        wrong, = infer(model, small_data / 'images' / 'picture0.png', progress=False)
        assert wrong.problem == f'{small_data / "images" / "picture0.png"} has 3 channels, but the network takes 4'


CASCADE = """
part = dict(in_channels=32, in_index=3, channels=8, num_classes=3, norm_cfg=norm_cfg)
model.update(type='CascadeEncoderDecoder', num_stages=2, auxiliary_head=None, decode_head=[
    dict(part, type='FCNHead', num_convs=1), dict(part, type='OCRHead', ocr_channels=8)])
"""


@pytest.mark.parametrize('form', ['torchscript', 'state_dict'])
def test_cascades_export_with_their_description(form, config, small_data, tmp_path):
    path = config(CASCADE)
    checkpoint = write_checkpoint(tmp_path / 'x.pth', path)
    model, image = load_segmentor(path, checkpoint), small_data / 'images' / 'picture0.png'
    assert infer(model, image, progress=False)[0].labels.shape == (36, 40)
    export(model, tmp_path / 'network', form, [image])
    about = json.loads((tmp_path / 'network.json').read_text())
    assert about['output']['align_corners'] is False
    assert about['output']['shape'][1] == 3
    few = config(CASCADE + "model['decode_head'][0]['num_classes'] = 2")
    assert 'model.decode_head.0 has 2 classes, but BaseSegDataset has 3' in run('train.py', few, '--check')[0]
