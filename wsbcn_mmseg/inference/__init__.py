"""A trained segmentor applied to images of any size and file format."""
from .images import find_images, read_image
from .model import load_segmentor
from .pipeline import images_of_test_set, preprocess_steps
from .prediction import INFERENCE_MODES, Prediction, infer

__all__ = ['INFERENCE_MODES', 'Prediction', 'find_images', 'images_of_test_set', 'infer', 'load_segmentor',
           'preprocess_steps', 'read_image']
