"""Apply a trained segmentor to images of any size and file format."""
from .images import find_images, read_image
from .model import load_segmentor
from .pipeline import images_of_test_set, loading_step, preprocess_steps
from .prediction import INFERENCE_MODES, Prediction, infer
from .reader import ImageReader

__all__ = ['INFERENCE_MODES', 'ImageReader', 'Prediction', 'find_images', 'images_of_test_set', 'infer',
           'load_segmentor', 'loading_step', 'preprocess_steps', 'read_image']
