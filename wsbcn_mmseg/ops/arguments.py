"""Checks of the arguments of constructors, functions and hooks; each error message is one sentence."""
import math
from collections.abc import Sequence

from torch import Tensor


def check_number(name: str, value: float, low: float = -math.inf, high: float = math.inf, *,
                 above: float | None = None) -> float:
    """Return ``value`` if it is a finite number with low <= value <= high, and above ``above`` if that is given.

    Raises:
        ValueError: If it is not; the message names the expected and the actual value.
    """
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isfinite(number) and low <= number <= high and (above is None or number > above):
        return value
    if math.isfinite(high):
        raise ValueError(f'{name} must lie in [{low:g}, {high:g}], got {value!r}')
    bounds = (f' above {above:g}' if above is not None else '') or f' of at least {low:g}' * math.isfinite(low)
    raise ValueError(f'{name} must be a finite number{bounds}, got {value!r}')


def check_eps(value: float) -> float:
    """Return ``value`` if it can be added to variances: a finite number above 0."""
    return check_number('eps', value, above=0)


def check_integer(name: str, value: int, low: int) -> int:
    """Return ``value`` if it is a whole number of at least ``low``.

    Raises:
        ValueError: If it is not; the message names the expected and the actual value.
    """
    if isinstance(value, (bool, float, str)) or not hasattr(value, '__index__') or value < low:
        raise ValueError(f'{name} must be a whole number of at least {low}, got {value!r}')
    return value


def check_flag(name: str, value: bool) -> bool:
    """Return ``value`` if it is True or False. A string such as 'False' would count as true.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(value, bool):
        raise ValueError(f'{name} must be True or False, got {value!r}')
    return value


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        ValueError: If it is not.
    """
    if value not in choices:
        raise ValueError(f'{name} must be one of {tuple(choices)}, got {value!r}')
    return value


def check_input(x: Tensor, channels: int, min_dims: int = 2) -> None:
    """Raise an error unless an activation is a floating-point tensor of shape (N, channels, *).

    Args:
        x: The activation.
        channels: Number of channels.
        min_dims: Fewest dimensions. Defaults to 2.

    Raises:
        ValueError: If it is not; the message names the expected and the actual value.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f'expected a tensor of shape (N, {channels}, *), got {type(x).__name__}')
    if x.dim() < min_dims or x.shape[1] != channels:
        raise ValueError(f'expected input of shape (N, {channels}, *), got {tuple(x.shape)}')
    if not x.is_floating_point():
        raise ValueError(f'expected floating-point input, got {x.dtype}')
