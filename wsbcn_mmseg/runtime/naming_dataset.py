"""Name the file of a sample that cannot be loaded, in any process."""
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from .errors import UsageError, first_line

FILES = 'img_path', 'seg_map_path'  # keys of file names in samples of MMSegmentation


class SampleError(UsageError):
    """A sample cannot be loaded; the message names its files. It is still one sentence after a worker re-raises it."""

    def __str__(self) -> str:
        return super().__str__().rpartition(f'{type(self).__name__}: ')[2].strip()


def load_sample(dataset: Dataset, index: int):
    """``dataset[index]``; if that fails, the error names the files.

    Raises:
        SampleError: If the data set raises any error.
    """
    try:
        return dataset[index]
    except UsageError:
        raise
    except Exception as error:  # decoders and transforms may raise any error
        raise SampleError(f'{_name(dataset, index)} cannot be loaded: {first_line(error)}') from error


def _name(dataset: Dataset, index: int) -> str:
    try:
        info = dataset.get_data_info(index)
        files = [str(info[key]) for key in FILES if info.get(key)]
    except Exception:  # not a data set of MMEngine
        files = []
    return ' with '.join(files) or f'sample {index}'


@DATASETS.register_module()
class NamingDataset(Dataset):
    """A data set whose errors name the files of the sample.

    Args:
        dataset: The data set, or its config.
    """

    def __init__(self, dataset: Dataset | dict):
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    def __getitem__(self, index: int):
        return load_sample(self.dataset, index)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str):
        if name == 'dataset':  # does not exist yet during unpickling
            raise AttributeError(name)
        return getattr(self.dataset, name)
