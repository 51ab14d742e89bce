import numpy as np
import pytest
from mmcv.transforms.utils import cache_random_params
from mmseg.datasets.transforms import RandomCrop
from mmseg.registry import TRANSFORMS
from PIL import Image
from scipy.stats import kstest

from wsbcn_mmseg.datasets import RandomLogScale


@pytest.fixture(autouse=True)
def seed():
    np.random.seed(0)


def make_results(height=60, width=100):
    rng = np.random.default_rng(0)
    label = rng.choice(np.array([0, 7, 20, 255], np.uint8), (height, width))
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    return dict(img=image, img_shape=(height, width), gt_seg_map=label, seg_fields=['gt_seg_map'])


def test_factor_is_uniform_in_the_logarithm():
    transform = RandomLogScale(scale_range=(0.5, 2.0))
    results = dict(img=np.zeros((1, 1000), np.uint8))
    octaves = [np.log2(transform(dict(results))['scale_factor'][0]) for _ in range(2000)]
    assert kstest(octaves, 'uniform', args=(-1, 2)).pvalue > 0.05
    assert kstest(2 ** np.array(octaves), 'uniform', args=(0.5, 1.5)).pvalue < 1e-6  # a linear draw would pass here


@pytest.mark.parametrize('factor', [0.5, 0.777, 2.0])
def test_resize_is_pillows_lanczos_of_the_images_own_size(factor):
    before, after = make_results(61, 101), RandomLogScale((factor, factor))(make_results(61, 101))
    size = int(101 * factor + 0.5), int(61 * factor + 0.5)
    np.testing.assert_array_equal(after['img'], Image.fromarray(before['img']).resize(size, Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(
        after['gt_seg_map'], Image.fromarray(before['gt_seg_map']).resize(size, Image.Resampling.NEAREST))
    assert after['scale'] == size
    assert after['img_shape'] == size[::-1]
    assert after['scale_factor'] == (size[0] / 101, size[1] / 61)
    assert after['keep_ratio'] is False


def test_every_label_map_is_resized_without_new_values():
    results = make_results()
    results.update(gt_other=results['gt_seg_map'].copy(), seg_fields=['gt_seg_map', 'gt_other'])
    after = RandomLogScale()(results)
    for key in after['seg_fields']:
        assert after[key].shape == after['img_shape']
        assert set(np.unique(after[key])) <= {0, 7, 20, 255}


def test_images_without_labels_and_tiny_images():
    assert RandomLogScale((0.1, 0.1))(dict(img=np.zeros((3, 50, 3), np.uint8)))['img'].shape == (1, 5, 3)


def test_randomness_is_numpys_and_can_be_cached():
    transform = TRANSFORMS.build(dict(type='RandomLogScale'))
    first = transform(make_results())['scale']
    assert transform(make_results())['scale'] != first
    np.random.seed(0)
    assert transform(make_results())['scale'] == first
    with cache_random_params(transform):
        assert transform(make_results())['scale'] == transform(make_results())['scale']


@pytest.mark.parametrize('scale_range', [(0, 1), (2, 0.5), (-1, 1)])
def test_impossible_range(scale_range):
    with pytest.raises(ValueError, match='smallest'):
        RandomLogScale(scale_range)


def test_cropping_then_padding_is_padding_then_cropping():
    """The paper pads to the crop size right and bottom, then crops; the configs crop first and pad in the batch."""
    results = make_results(40, 100)
    original, cropped = results['img'].copy(), RandomCrop((64, 64))(results)['img']
    assert cropped.shape == (40, 64, 3)
    padded = np.pad(original, ((0, 24), (0, 0), (0, 0)))
    windows = [padded[:, x:x + 64] for x in range(37)]
    assert any(np.array_equal(np.pad(cropped, ((0, 24), (0, 0), (0, 0))), window) for window in windows)
