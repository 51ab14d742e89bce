"""Hooks for fine-tuning networks that were trained with BatchNorm."""
from collections.abc import Iterable

from mmengine.dist import broadcast
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm

from wsbcn_mmseg.conversion.calibrate import calibrate
from wsbcn_mmseg.layers import BCN
from wsbcn_mmseg.ops.arguments import check_integer


@HOOKS.register_module()
class CalibrateHook(Hook):
    """Before training, set the channel normalization of converted layers from a few training images; see
    :func:`wsbcn_mmseg.conversion.calibrate.calibrate`. All processes use the values of the first process. The hook does
    nothing if a training is resumed or starts from a checkpoint of the converted network (``load_from``).

    Args:
        num_images: Number of images to use. Defaults to 10.
    """

    def __init__(self, num_images: int = 10):
        self.num_images = check_integer('num_images', num_images, 1)

    def before_train(self, runner: Runner) -> None:
        if runner.iter > 0:
            return
        if runner._load_from:
            runner.logger.info('CalibrateHook: nothing is set; the channel normalization is that of '
                               f'{runner._load_from}')
            return
        dataset, collate = runner.train_dataloader.dataset, runner.train_dataloader.collate_fn
        step = max(1, len(dataset) // self.num_images)
        model = getattr(runner.model, 'module', runner.model)
        batches = (model.data_preprocessor(collate([dataset[index]]))
                   for index in range(0, min(len(dataset), step * self.num_images), step))
        count = calibrate(model, (dict(inputs=batch['inputs'], mode='tensor') for batch in batches))
        for layer in model.modules():
            if isinstance(layer, BCN):  # augmentation may draw other images in each process
                broadcast(layer.weight.data)
                broadcast(layer.bias.data)
        runner.logger.info(f'CalibrateHook: {count} BCN layers set from {self.num_images} images')


@HOOKS.register_module()
class NormEvalHook(Hook):
    """Keep the running statistics of BatchNorm and BCN fixed in training. It does what ``norm_eval=True`` does, for
    networks that do not have this argument.

    Args:
        parts: Names of the parts of the model whose statistics are fixed. Defaults to the backbone.
    """

    def __init__(self, parts: Iterable[str] = ('backbone', )):
        self.parts = [parts] if isinstance(parts, str) else list(parts) if isinstance(parts, Iterable) else [parts]
        if not all(isinstance(part, str) for part in self.parts):
            raise ValueError(f'parts must be names of parts of the model, got {parts!r}')

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        model = getattr(runner.model, 'module', runner.model)
        for part in self.parts:
            for module in model.get_submodule(part).modules():
                if isinstance(module, _BatchNorm):
                    module.training = False
