"""Let ``torch.overrides.TorchFunctionMode`` intercept our operators as single calls, as it does PyTorch's."""
import functools
from collections.abc import Callable

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function


def overridable(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator for operators whose first argument is a tensor."""

    @functools.wraps(operator)
    def dispatched(x: Tensor, *args, **kwargs) -> Tensor:
        if has_torch_function((x, )):
            return handle_torch_function(dispatched, (x, ), x, *args, **kwargs)
        return operator(x, *args, **kwargs)

    return dispatched
