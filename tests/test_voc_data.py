import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from wsbcn_mmseg.datasets.mini_voc import make_mini_voc
from wsbcn_mmseg.datasets.voc_aug import VOCAugError, load_label, plan_voc_aug, prepare_voc_aug, voc_palette

REPOSITORY = Path(__file__).parents[1]
SIZES = dict(num_train=8, num_val=7, num_sbd=9)
EXPECTED = 8 + 9


@pytest.fixture(scope='session')
def pristine(tmp_path_factory):
    root = tmp_path_factory.mktemp('pristine')
    make_mini_voc(root, **SIZES)
    return root


@pytest.fixture
def root(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / 'data'))


def voc(root):
    return root / 'VOCdevkit' / 'VOC2012'


def sbd(root):
    return root / 'benchmark_RELEASE'


def names(root, split):
    return (voc(root) / 'ImageSets' / 'Segmentation' / f'{split}.txt').read_text().split()


def sbd_names(root):
    return {name for split in ('train', 'val') for name in (sbd(root) / f'dataset/{split}.txt').read_text().split()}


def only_sbd(root):
    return sorted(sbd_names(root) - set(names(root, 'trainval')))


def prepare(root, workers=1, **kwargs):
    source = kwargs or dict(sbd_root=sbd(root))
    return prepare_voc_aug(plan_voc_aug(voc(root), expected=EXPECTED, **source), workers)


def outputs(root):
    return sorted((voc(root) / 'SegmentationClassAug').glob('*'))


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def fails(root, *parts, **kwargs):
    with pytest.raises(VOCAugError) as info:
        prepare(root, **kwargs)
    for part in parts:
        assert str(part) in str(info.value)
    assert not (voc(root) / 'ImageSets' / 'Segmentation' / 'trainaug.txt').exists()


class TestMiniVOC:

    def test_same_seed_same_bytes(self, pristine, tmp_path):
        make_mini_voc(tmp_path / 'again', **SIZES)
        assert contents(tmp_path / 'again') == contents(pristine)
        make_mini_voc(tmp_path / 'again', **SIZES)  # its own result may be made anew
        assert contents(tmp_path / 'again') == contents(pristine)
        make_mini_voc(tmp_path / 'other', **SIZES, seed=1)
        assert contents(tmp_path / 'other') != contents(pristine)

    @pytest.mark.parametrize('split', ['train', 'val'])
    def test_label_maps(self, pristine, split):
        values = set()
        for name in names(pristine, split):
            with Image.open(voc(pristine) / 'SegmentationClass' / f'{name}.png') as label, \
                    Image.open(voc(pristine) / 'JPEGImages' / f'{name}.jpg') as image:
                assert label.mode == 'P'
                assert image.mode == 'RGB'
                assert label.size == image.size
                assert max(image.size) == 500
                assert min(image.size) >= 333
                assert label.getpalette() == voc_palette()
                label = np.array(label)
            assert 0.005 < (label == 255).mean() < 0.1
            values |= set(np.unique(label))
        assert values == {*range(21), 255}

    def test_palette_is_vocs(self):
        palette = np.reshape(voc_palette(), (256, 3))
        assert palette[[0, 1, 15, 20, 255]].tolist() == [[0, 0, 0], [128, 0, 0], [192, 128, 128], [0, 64, 128],
                                                         [224, 224, 192]]

    def test_sbd_overlaps_voc_and_reads_like_the_real_one(self, pristine):
        covered, train, val = sbd_names(pristine), set(names(pristine, 'train')), set(names(pristine, 'val'))
        assert len(covered - train - val) == 9
        assert 0 < len(covered & train) < 8
        assert 0 < len(covered & val) < 7
        assert sorted(names(pristine, 'trainval')) == sorted(train | val)
        for name in covered:
            path = sbd(pristine) / f'dataset/cls/{name}.mat'
            label = loadmat(path)['GTcls'][0]['Segmentation'][0]
            struct = loadmat(path, squeeze_me=True, struct_as_record=False)['GTcls']
            np.testing.assert_array_equal(struct.Segmentation, label)
            assert struct.Boundaries.shape == (20,)
            assert np.atleast_1d(struct.CategoriesPresent).tolist() == np.unique(label[label > 0]).tolist()
            image = sbd(pristine) / f'dataset/img/{name}.jpg'
            assert image.read_bytes() == (voc(pristine) / 'JPEGImages' / image.name).read_bytes()
            with Image.open(image) as opened:
                assert label.dtype == np.uint8
                assert label.shape == opened.size[::-1]
                assert label.max() <= 20

    def test_leaves_other_data_alone(self, root):
        with pytest.raises(FileExistsError, match='another folder'):
            make_mini_voc(root, num_train=9, num_val=7, num_sbd=9)
        (voc(root) / 'JPEGImages' / '2007_999999.jpg').touch()
        with pytest.raises(FileExistsError, match='another folder'):
            make_mini_voc(root, **SIZES)

    def test_too_few_images_for_all_classes(self, tmp_path):
        with pytest.raises(ValueError, match='every class'):
            make_mini_voc(tmp_path, num_train=6)
        assert not any(tmp_path.iterdir())


class TestFromSBD:

    def test_set_order_and_labels(self, root):
        assert prepare(root) == EXPECTED
        listed = names(root, 'trainaug')
        assert listed == sorted((set(names(root, 'train')) | sbd_names(root)) - set(names(root, 'val')))
        assert [path.name for path in outputs(root)] == [f'{name}.png' for name in listed]
        for path in outputs(root):
            with Image.open(path) as image:
                assert image.mode == 'P'
                assert image.getpalette() == voc_palette()
                label = np.array(image)
            own = voc(root) / 'SegmentationClass' / path.name
            source = own if own.exists() else sbd(root) / f'dataset/cls/{path.stem}.mat'
            np.testing.assert_array_equal(label, load_label(source))
            assert own.exists() == (255 in label)

    def test_dataset_folder_and_processes_give_the_same(self, root):
        prepare(root)
        before = contents(voc(root))
        shutil.rmtree(voc(root) / 'SegmentationClassAug')
        assert prepare(root, workers=2, sbd_root=sbd(root) / 'dataset') == EXPECTED
        assert contents(voc(root)) == before

    def test_continues_and_repairs(self, root):
        prepare(root)
        before = contents(voc(root))
        first, second, third, fourth = outputs(root)[:4]
        kept = fourth.stat().st_mtime_ns
        first.unlink()
        second.write_bytes(second.read_bytes()[:200])
        shutil.copy(fourth, third)  # decodes, but holds another image's labels
        assert prepare(root) == 3
        assert contents(voc(root)) == before
        assert fourth.stat().st_mtime_ns == kept

    def test_missing_and_truncated_images(self, root):
        missing, truncated = (voc(root) / 'JPEGImages' / f'{name}.jpg' for name in only_sbd(root)[:2])
        missing.unlink()
        truncated.write_bytes(truncated.read_bytes()[:-2000])
        fails(root, '(2)', f'{missing} is missing', f'{truncated} is corrupt', 'host.robots.ox.ac.uk')

    def test_missing_and_corrupt_mat(self, root):
        missing, corrupt = (sbd(root) / f'dataset/cls/{name}.mat' for name in only_sbd(root)[:2])
        missing.unlink()
        corrupt.write_bytes(corrupt.read_bytes()[:300])
        fails(root, '(2)', f'{missing} is missing', f'{corrupt} is corrupt', 'benchmark.tgz')

    @pytest.mark.parametrize('value, reason', [(21, 'label values [21]'), (255, 'label values [255]')])
    def test_wrong_values_in_mat(self, root, value, reason):
        path = sbd(root) / f'dataset/cls/{only_sbd(root)[0]}.mat'
        label = load_label(path)
        label[0, 0] = value
        savemat(path, dict(GTcls=dict(Segmentation=label)))
        fails(root, '(1)', path, reason)

    def test_label_of_another_size(self, root):
        path = sbd(root) / f'dataset/cls/{only_sbd(root)[0]}.mat'
        savemat(path, dict(GTcls=dict(Segmentation=np.zeros((10, 20), np.uint8))))
        fails(root, f'{path} is 20x10, its image')

    def test_validation_labels_are_verified(self, root):
        first, second = (voc(root) / 'SegmentationClass' / f'{name}.png' for name in names(root, 'val')[:2])
        first.unlink()
        Image.new('L', Image.open(second).size, 255).save(second)
        fails(root, f'{first} is missing', f'{second} is corrupt or wrong: no labeled pixel')

    def test_long_lists_of_problems_are_cut(self, root):
        for path in (voc(root) / 'JPEGImages').glob('*'):
            path.unlink()
        with pytest.raises(VOCAugError) as info:
            prepare(root)
        assert '(24)' in str(info.value)
        assert str(info.value).count('is missing') == 20
        assert str(info.value).endswith('... and 4 more')

    def test_wrong_count(self, root):
        with pytest.raises(VOCAugError, match=f'{EXPECTED} images instead of 10582.*--expected {EXPECTED}'):
            plan_voc_aug(voc(root), sbd_root=sbd(root))

    def test_wrong_folders(self, root):
        with pytest.raises(VOCAugError, match='not the VOC2012 folder.*host.robots.ox.ac.uk'):
            plan_voc_aug(root, sbd_root=sbd(root))
        with pytest.raises(VOCAugError, match='not SBD.*benchmark.tgz'):
            plan_voc_aug(voc(root), sbd_root=root)
        with pytest.raises(VOCAugError, match='no PNG files'):
            plan_voc_aug(voc(root), aug_root=root)


class TestFromReadyFolder:

    @pytest.fixture
    def gray(self, root, tmp_path):
        """What is commonly handed round: grayscale PNGs of the augmented set and of VOC val."""
        folder = tmp_path / 'SegmentationClassAug'
        folder.mkdir()
        for name in names(root, 'trainval'):
            shutil.copy(voc(root) / 'SegmentationClass' / f'{name}.png', folder)
        for name in only_sbd(root):
            Image.fromarray(load_label(sbd(root) / f'dataset/cls/{name}.mat')).save(folder / f'{name}.png')
        return folder

    def test_gives_the_same_as_sbd(self, root, gray):
        prepare(root)
        before = contents(voc(root))
        shutil.rmtree(voc(root) / 'SegmentationClassAug')
        assert prepare(root, aug_root=gray) == EXPECTED
        assert contents(voc(root)) == before

    def test_may_be_in_place(self, root, gray):
        in_place = Path(shutil.copytree(gray, voc(root) / 'SegmentationClassAug'))
        assert prepare(root, aug_root=in_place) == 9  # VOC's own have their palette already
        assert prepare(root, aug_root=in_place) == 0
        assert all(Image.open(path).mode == 'P' for path in outputs(root))

    def test_color_images_are_refused(self, root, gray):
        path = gray / f'{only_sbd(root)[0]}.png'
        Image.open(path).convert('RGB').save(path)
        fails(root, f'{path} is corrupt or wrong: neither a palette nor a grayscale image', aug_root=gray)


class TestCommands:

    @pytest.fixture
    def run(self, monkeypatch, capsys):
        def run(tool, *args):
            monkeypatch.setattr(sys, 'argv', [tool, *map(str, args)])
            runpy.run_path(str(REPOSITORY / tool), run_name='__main__')
            return capsys.readouterr().out
        return run

    def test_each_prints_the_next(self, run, tmp_path):
        printed = run('tools/make_mini_voc.py', tmp_path, '--train', 7, '--val', 7, '--sbd', 2)
        assert 'synthetic' in printed
        printed = run(*printed.splitlines()[-1].split()[1:])
        assert '9 training and 7 validation images are in order; 9 label maps written, 0 kept' in printed

    def test_refusals_are_a_sentence(self, run, tmp_path):
        with pytest.raises(SystemExit, match='Error: .* every class'):
            run('tools/make_mini_voc.py', tmp_path, '--val', 0)

    def test_failure_in_a_process_of_its_own(self, root):
        command = [sys.executable, 'tools/prepare_voc_aug.py', voc(root), '--sbd', sbd(root)]
        failed = subprocess.run(command, cwd=REPOSITORY, env=dict(os.environ, PYTHONPATH='.'), capture_output=True,
                                text=True)
        assert failed.returncode == 1
        assert 'Traceback' not in failed.stderr
        assert failed.stderr.splitlines()[-1].startswith(f'Error: The augmented set would have {EXPECTED} images')


def test_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_mini_voc('mini', num_train=7, num_val=7, num_sbd=2)
    plan = plan_voc_aug('mini/VOCdevkit/VOC2012', sbd_root='mini/benchmark_RELEASE', expected=9)
    prepare_voc_aug(plan, workers=1)
    assert len((tmp_path / 'mini/VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt').read_text().split()) == 9
