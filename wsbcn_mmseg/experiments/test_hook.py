"""Evaluate on test images at the end of a training."""
from numbers import Real

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class TestAfterTrainingHook(Hook):
    """Run the test loop once after training, and log its metrics as ``test/...`` next to those of validation.

    One run then has validation scores to choose settings by, and test scores to report.
    """
    priority = 'LOW'  # after the logger has written the last validation
    __test__ = False  # of pytest

    def before_train(self, runner) -> None:
        runner.test_loop  # noqa: B018  builds the data set, so that missing files are found before training

    def after_train(self, runner) -> None:
        metrics = runner.test_loop.run()
        scalars = {f'test/{name}': float(value) for name, value in metrics.items() if isinstance(value, Real)}
        runner.visualizer.add_scalars(scalars, step=runner.iter)
