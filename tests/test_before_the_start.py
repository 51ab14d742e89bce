"""What is wrong with settings, data, network and files is said before a training starts, each fault in a sentence."""
import importlib.util
import os

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from small_segmentation import run, write_config, write_data

from wsbcn_mmseg.runtime.checks import heads

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture
def check(tmp_path):
    """Runs ``train.py --check`` and returns the sentences that it ends with."""

    def start(root, more='', *arguments, **environment):
        config = write_config(tmp_path / 'config.py', root, more)
        work_dir = [] if '--work-dir' in arguments else ['--work-dir', tmp_path / 'run']
        code, printed = run('train.py', config, '--check', *work_dir, *arguments, **environment)
        assert 'Traceback' not in printed
        assert not (tmp_path / 'run').exists()
        if code is None:
            assert 'No faults found' in printed
            return []
        lines = code.splitlines()
        assert all(line.startswith('train.py: ') for line in lines)
        return [line.removeprefix('train.py: ') for line in lines]

    return start


def test_nothing_is_wrong_with_a_whole_set_up(check, small_data):
    assert check(small_data) == []


SETTINGS = {
    'norm': ("model['backbone']['norm_cfg'] = dict(type='BCNN')",
             "model.backbone.norm_cfg.type='BCNN' is not known; did you mean BCN"),
    'mode': ("model['backbone']['norm_cfg'] = dict(type='BCN', mode='micro')",
             "model.backbone cannot be built: mode must be one of ('micro_batch', 'large_batch'), got 'micro'"),
    'head': ("model['decode_head']['num_classes'] = 5",
             'the model has 5 classes, but BaseSegDataset has 3; set model.decode_head.num_classes=3'),
    'auxiliary head': ("model['auxiliary_head'][0]['num_classes'] = 19",
                       'model.auxiliary_head.0 has 19 classes, but BaseSegDataset has 3; set '
                       'model.auxiliary_head.0.num_classes=3'),
    'argument': ("model['backbone']['depht'] = 18", 'model.backbone cannot be built: ResNet.__init__() got an '
                 "unexpected keyword argument 'depht'"),
    'package': ("default_scope = 'mmdet3d'", "default_scope='mmdet3d' needs mmdet3d, which is not installed here"),
    'type of another package': ("model['backbone']['type'] = 'mmdet3d.ResNet'",
                                "model.backbone.type='mmdet3d.ResNet' needs mmdet3d, which is not installed here"),
    'transform': ("train_pipeline[2]['type'] = 'RandomCropp'",
                  "train_dataloader.dataset.pipeline.2.type='RandomCropp' is not known; did you mean RandomCrop"),
    'transform argument': ("train_pipeline[2]['size'] = 3", 'train_dataloader.dataset.pipeline cannot be built: '),
    'data set': ("dataset['type'] = 'BaseSegDatasett'", "is not known; did you mean BaseSegDataset"),
    'hook': ("custom_hooks = [dict(type='BCNUpdateRateHok')]",
             "custom_hooks.0.type='BCNUpdateRateHok' is not known; did you mean BCNUpdateRateHook"),
    'hook argument': ("custom_hooks = [dict(type='BCNUpdateRateHook', factors=2)]",
                      "custom_hooks.0 cannot be built: BCNUpdateRateHook got an unexpected keyword argument 'factors'"),
    'optimizer': ("optim_wrapper['optimizer']['type'] = 'SGDD'",
                  "optim_wrapper.optimizer.type='SGDD' is not known; did you mean SGD"),
    'metric': ("val_evaluator = dict(type='IoUMetrik')", "val_evaluator.type='IoUMetrik' is not known; did you mean "
               'IoUMetric'),
    'no optimizer': ('optim_wrapper = None', 'the config has no optim_wrapper'),
    'model that is a name': ("model = 'ResNet'", "model of the config is 'ResNet', not a dict"),
    'no labels': ("dataset['data_prefix'] = dict(img_path='images', seg_map_path=None)",
                  'train_dataloader.dataset.data_prefix.seg_map_path is not set, but the pipeline loads label maps'),
    'no such list': ("dataset['ann_file'] = 'trian.txt'", 'trian.txt does not exist'),
    'no such class list': ("dataset['metainfo'] = dict(classes='nowhere.txt')",
                           'the class list nowhere.txt of train_dataloader.dataset does not exist'),
    'no updates': ("train_cfg['max_iters'] = 0", 'train_cfg.max_iters is 0; it must be at least 1'),
    'no images': ("train_dataloader['batch_size'] = -1", 'train_dataloader.batch_size is -1; it must be at least 1'),
    'class twice': ("dataset['metainfo'] = dict(classes=('tree', 'ground', 'tree'))", "names 'tree' twice"),
}


@pytest.mark.fault('Malformed config', 'A wrong name, argument, number of classes, list or missing package',
                   'One error message that names the setting, before the start')
@pytest.mark.parametrize('name', SETTINGS)
def test_a_wrong_setting_is_a_sentence(name, check, small_data):
    more, sentence = SETTINGS[name]
    found = check(small_data, more)
    assert any(sentence in line for line in found), found
    assert len(found) == 1 or name in ('no optimizer', 'model that is a name', 'no labels', 'data set')


@pytest.mark.fault('Malformed config', 'Several wrong settings at once',
                   'All are listed')
def test_several_faults_are_listed_together(check, small_data):
    (small_data / 'file').write_text('')
    found = check(small_data, "model['backbone']['norm_cfg'] = dict(type='BCNN')\ntrain_pipeline[2]['type'] = 'Crop'\n"
                  "model['auxiliary_head'][0]['num_classes'] = 2", '--work-dir', small_data / 'file' / 'run',
                  WSBCN_IMPL='fast')
    for part in ("got 'fast'", 'BCNN', "'Crop'", 'model.auxiliary_head.0 has 2 classes', 'is a file; set --work-dir'):
        assert sum(part in line for line in found) == 1
    assert len(found) == 5


@pytest.mark.parametrize('choice', ['auto', 'fused'])
def test_implementations_may_be_chosen(choice, check, small_data):
    assert check(small_data, "model['backbone']['norm_cfg'] = dict(type='BCN')", WSBCN_IMPL=choice) == []


@pytest.mark.fault('Malformed config', 'A work folder that cannot be written',
                   'One error message')
def test_a_folder_that_is_not_writable_is_named(check, small_data, tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'access', lambda path, mode: str(path) != str(tmp_path))  # root may write anywhere
    assert check(small_data) == [
        f'the work folder {tmp_path / "run"} cannot be used, because {tmp_path} is not writable; set --work-dir']


CONFIGS = {
    'broken.yaml': ('a: [1,\nb: :', 'cannot be read: ParserError'),
    'list.yaml': ('- 1', 'it holds no settings'),
    'broken.json': ('{"a": 1,}', 'cannot be read: Expecting property name'),
    'broken.py': ('model = dict(', "is not Python: line 1, '(' was never closed"),
    'name.py': ('x = other', "NameError: name 'other' is not defined"),
    'base.py': ('_base_ = "nowhere.py"', 'No such file or directory'),
    'imports.py': ('custom_imports = dict(imports=["nowhere_module"])', 'install what it needs'),
    'lazy.py': ('import nowhere_module', 'No module named \'nowhere_module\'; install what it needs'),
    'empty.py': ('', 'is empty'),
    'text.txt': ('x = 1', 'Only py/yml/yaml/json'),
    'bytes.py': (b'\xff\xfe\x00', 'cannot be read'),
}


@pytest.mark.fault('Malformed config', 'Broken YAML, JSON and Python, empty files, missing bases',
                   'One error message, in each tool')
@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.parametrize('tool', ['train.py', 'test.py', 'infer.py'])
def test_a_config_that_cannot_be_read_is_a_sentence(name, tool, tmp_path):
    content, sentence = CONFIGS[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    more = {'train.py': [], 'test.py': ['x.pth'], 'infer.py': ['x.pth', __file__, '--out', tmp_path]}
    code, _ = run(tool, tmp_path / name, *more[tool])
    assert sentence in code
    assert name in code
    assert '\n' not in code


def change_label(change):
    def apply(root):
        path = root / 'labels' / 'picture2.png'  # the first that trains
        Image.fromarray(change(np.array(Image.open(path)))).save(path)
    return apply


def change_list(text, name='train.txt'):
    return lambda root: (root / name).write_text(text)


DATA = {
    'RGB labels': (change_label(lambda label: np.stack([label] * 3, 2)),
                   'labels/picture2.png has 3 channels; a label map has one, of class numbers'),
    'cut labels': (change_label(lambda label: label[:20]),
                   'labels/picture2.png is 40x20 pixels, its image {root}/images/picture2.png 40x36'),
    'value above classes': (change_label(lambda label: label + 1), 'labels/picture2.png holds the value 3, but there '
                            'are 3 classes, 0 to 2, and 255 is ignored'),
    'values of 16 bits': (change_label(lambda label: label.astype(np.uint16) + 256),
                          'labels/picture2.png holds values up to 258; label maps are read as 8 bits'),
    'blank line': (change_list('picture2\n\npicture3\n'), 'train.txt has a blank line, number 2'),
    'empty list': (change_list(''), 'train_dataloader.dataset has no samples'),
    'empty list of evaluation data': (change_list('', 'val.txt'), 'val_dataloader.dataset has no samples'),
    'missing file': (change_list('picture2\nelsewhere\n'), '2 of 4 files of train_dataloader.dataset do not exist, the '
                     'first is {root}/images/elsewhere.png'),
    'missing file of evaluation data': (lambda root: (root / 'labels' / 'picture0.png').unlink(),
                                        '1 of 4 files of val_dataloader.dataset do not exist, the first is '
                                        '{root}/labels/picture0.png'),
    'damaged image': (lambda root: (root / 'images' / 'picture2.png').write_bytes(b'PNG'),
                      'images/picture2.png fails in LoadImageFromFile'),
    'damaged label': (lambda root: (root / 'labels' / 'picture2.png').write_bytes(b'PNG'),
                      'labels/picture2.png fails in LoadAnnotations'),
}


@pytest.mark.fault('Malformed data', 'Wrong labels and lists, missing and damaged files',
                   'One error message that names the file, before the start')
@pytest.mark.parametrize('name', DATA)
@pytest.mark.parametrize('before', ['--check', 'training'])
def test_faults_of_data_are_named_by_their_file(name, before, tmp_path):
    write_data(tmp_path / 'data')
    harm, sentence = DATA[name]
    harm(tmp_path / 'data')
    config = write_config(tmp_path / 'config.py', tmp_path / 'data')
    code, printed = run('train.py', config, '--work-dir', tmp_path / 'run', *([before] if before[0] == '-' else []))
    assert sentence.format(root=tmp_path / 'data') in code
    assert '\n' not in code
    assert 'Traceback' not in printed
    assert not (tmp_path / 'run').exists()


@pytest.mark.fault('Malformed data', 'All labels ignored',
                   'One error message')
def test_labels_that_are_all_ignored_are_a_fault_and_some_are_not(check, tmp_path):
    write_data(tmp_path / 'data')
    labels = tmp_path / 'data' / 'labels'
    for number in (2, 3, 4):
        Image.fromarray(np.full((36, 40), 255, np.uint8)).save(labels / f'picture{number}.png')
    assert check(tmp_path / 'data') == []
    Image.fromarray(np.full((36, 40), 255, np.uint8)).save(labels / 'picture5.png')
    assert check(tmp_path / 'data') == ['train_dataloader.dataset: all label maps looked at (4) hold nothing but the '
                                        'ignored 255; there is nothing to learn from']


@pytest.mark.fault('Malformed data', 'Class lists in files: right, of another length, with blank lines, empty',
                   'They are used, or an error message says why not')
@pytest.mark.parametrize(('text', 'sentences'), [
    ('ground\ntree\nhouse\n', []),
    ('ground\ntree\n', ['the model has 3 classes, but BaseSegDataset has 2; set model.decode_head.num_classes=2']),
    ('ground\n\ntree\nhouse\n', ['classes.txt has a blank line, number 2; each line is a class']),
    ('', ['classes.txt names no classes']),
])
def test_class_lists_may_be_files(text, sentences, check, small_data, tmp_path):
    (tmp_path / 'classes.txt').write_text(text)
    found = check(small_data, f'dataset["metainfo"] = dict(classes={str(tmp_path / "classes.txt")!r})\n'
                  "train_dataloader['dataset'] = dataset\nval_dataloader['dataset']['metainfo'] = dataset['metainfo']")
    assert [line.replace(f'{tmp_path}/', '') for line in found] == sentences


def test_lists_of_loaders_and_wrapped_data_sets_are_looked_at(check, small_data):
    found = check(small_data,
                  "repeated = dict(type='RepeatDataset', times=2, dataset=dict(dataset, ann_file='a.txt'))\n"
                  "train_dataloader['dataset'] = dict(type='ConcatDataset', datasets=[repeated])\n"
                  "val_dataloader = [val_dataloader, dict(val_dataloader, dataset=dict(dataset, data_root='/no'))]")
    assert any('a.txt does not exist' in line for line in found)
    assert any('data folder /no does not exist' in line for line in found)


@pytest.mark.fault('Malformed data', 'Images and networks of 1 and 4 channels',
                   'They train, or an error message says why not')
@pytest.mark.parametrize(('channels', 'more', 'sentence'), [
    (4, "load[0]['color_type'] = 'unchanged'", 'is loaded with 4 channels, but the network takes 3; set '
     'model.backbone.in_channels=4'),
    (1, "load[0]['color_type'] = 'grayscale'", 'is loaded with 1 channels, but the network takes 3'),
    (4, "load[0]['color_type'] = 'unchanged'\nmodel['backbone']['in_channels'] = 4", None),
    (1, "load[0]['color_type'] = 'grayscale'\nmodel['backbone']['in_channels'] = 1", None),
    (4, "load[0]['color_type'] = 'unchanged'\nmodel['backbone']['in_channels'] = 4\n"
     "model['data_preprocessor'].update(mean=[1, 2, 3], std=[1, 1, 1])", 'model.data_preprocessor does not accept'),
])
def test_channels_of_images_and_network_agree(channels, more, sentence, check, tmp_path):
    write_data(tmp_path / 'data', channels=channels)
    found = check(tmp_path / 'data', more)
    assert all(sentence in line for line in found) and found if sentence else found == []


@pytest.mark.fault('Malformed config', 'Binary heads, with one and with two outputs',
                   'They train, or an error message says why not')
@pytest.mark.parametrize(('head', 'fits'), [
    (dict(num_classes=2, out_channels=1), True), (dict(num_classes=1, out_channels=1), True),
    (dict(num_classes=2), True), (dict(num_classes=1), False)])
def test_binary_heads(head, fits, check, tmp_path):
    write_data(tmp_path / 'data', classes=2)
    loss = dict(type='CrossEntropyLoss', use_sigmoid=head.get('out_channels') == 1)
    found = check(tmp_path / 'data', f"head = dict({head}, loss_decode={loss})\nmodel['decode_head'].update(head)\n"
                  "model['auxiliary_head'][0].update(head)\nbinary = dict(classes=('no', 'yes'))\n"
                  "dataset['metainfo'] = binary\nval_dataloader['dataset']['metainfo'] = binary\n"
                  "train_dataloader['dataset'] = dataset")
    assert (found == []) == fits


@pytest.mark.parametrize('script', ['run_digits.py', 'run_cifar.py'])
def test_a_comparison_without_a_package_that_it_needs_fails(script, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'torchvision' else find(name))
    code, _ = run(script, *([tmp_path] if 'cifar' in script else []), '--out', tmp_path / 'out')
    assert code == f'{script}: this comparison needs torchvision, not installed here; run: pip install torchvision'
    assert not (tmp_path / 'out').exists()


def test_heads_that_learn_edges_may_have_other_classes():
    edges = dict(type='STDCHead', num_classes=2)
    cfg = Config(dict(model=dict(decode_head=dict(type='FCNHead', num_classes=19), auxiliary_head=[edges])))
    assert [place for place, _ in heads(cfg)] == ['model.decode_head']
