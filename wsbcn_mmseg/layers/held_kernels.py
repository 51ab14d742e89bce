"""Weight Standardization under gradient accumulation: kernels are standardized once per optimizer step.

The weights do not change between the micro-steps of an optimizer step, and neither do the standardized kernels. Each
micro-step adds its gradient with respect to the standardized kernel; the sum goes through the standardization once,
which is linear in it. The result is that of standardizing in every micro-step, except for rounding.
"""
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import Tensor, nn

from wsbcn_mmseg.ops.weight_standardization import standardize_rows, standardize_rows_backward

from .conv_ws import WeightStandardized
from .reparametrized_conv import ReparametrizedConv


class _HeldKernel:
    """The effective kernel of a convolution as a leaf tensor that collects gradients."""

    def __init__(self, conv: ReparametrizedConv):
        self.conv = conv
        self.parameters = _trained(conv)
        self.standardized = _is_standardized(conv)
        with torch.autocast(conv.weight.device.type, enabled=False):
            if self.standardized:
                rows, *self.moments = standardize_rows(self._rows(), conv.eps)
                kernel = rows.view_as(conv.weight).to(conv.weight.dtype)
            else:
                self.source = self._source()
                kernel = self.source.detach()
        self.leaf = kernel.requires_grad_()
        self.state = self.current_state()

    def _rows(self) -> Tensor:
        weight = self.conv.weight.detach()
        return weight.to(torch.promote_types(weight.dtype, torch.float32)).flatten(1)

    def _source(self) -> Tensor:
        """The kernel with its graph to the parameters."""
        with torch.enable_grad():
            return type(self.conv).effective_weight(self.conv)  # not the function that :meth:`give` sets

    def current_state(self) -> list[tuple[int, int]]:
        """A state that changes if a weight changes."""
        return [(parameter.data_ptr(), parameter._version) for parameter in self.conv.parameters(recurse=False)]

    def take_gradient(self) -> Tensor | None:
        """Return the collected gradient and clear it."""
        gradient, self.leaf.grad = self.leaf.grad, None
        return gradient

    def pull_back(self, gradient: Tensor, create_graph: bool = False) -> list[Tensor]:
        """The gradients of the parameters from the gradient of the kernel."""
        if self.standardized and not create_graph:
            rows = self._rows()
            gradient = standardize_rows_backward(gradient.to(rows.dtype).flatten(1), rows, *self.moments)
            return [gradient.view_as(self.conv.weight).to(self.conv.weight.dtype)]
        source = self._source() if self.standardized else self.source
        return list(torch.autograd.grad(source, self.parameters, gradient, retain_graph=True,
                                        create_graph=create_graph))

    def give(self, kernel: Tensor) -> None:
        """Let the convolution use ``kernel`` until :meth:`release`."""
        vars(self.conv)['effective_weight'] = lambda: _alias(kernel)
        if type(self.conv).forward is WeightStandardized.forward:  # its operator standardizes
            vars(self.conv)['forward'] = MethodType(_convolve, self.conv)

    def release(self) -> None:
        """Let the convolution compute its kernel again."""
        for name in ('effective_weight', 'forward'):
            vars(self.conv).pop(name, None)


def _convolve(self: WeightStandardized, input: Tensor) -> Tensor:
    """The forward pass of a convolution with a held kernel."""
    bias = None if self.bias is None else _alias(self.bias)
    return self.plain_class._conv_forward(self, input, self.effective_weight(), bias)


def _alias(tensor: Tensor) -> Tensor:
    """A view with the same values. Autocast casts a leaf once for all calls and adds their gradients in half precision,
    but it does not do so for a view."""
    return tensor.view_as(tensor)


class _LastStep(torch.autograd.Function):
    """The held kernel as a function of the parameters: its backward pass adds the gradients of earlier micro-steps.

    So parameters get their gradients inside the backward pass, where DistributedDataParallel waits for them. It saves
    no tensors that a first backward pass would free, so several backward passes are possible.
    """

    @staticmethod
    def forward(ctx, held: _HeldKernel, *parameters):
        ctx.held = held
        return held.leaf.detach()

    @staticmethod
    def backward(ctx, gradient):
        collected = ctx.held.take_gradient()
        gradient = gradient if collected is None else gradient + collected
        return None, *ctx.held.pull_back(gradient, create_graph=torch.is_grad_enabled())


class HeldKernels:
    """Standardizes the kernels of a network once per optimizer step, under gradient accumulation.

    Gradients are those of ordinary accumulation, except for rounding. Between micro-steps, the network behaves as
    without this class: evaluate and save it as usual. The class needs memory for a copy of the standardized kernels
    and for their gradients.

    It applies to convolutions with Weight Standardization, WN and CWN. Convolutions are left as they are if they are
    frozen, if a parametrization or a hook computes their weight, or if their parameters are sharded.

    Args:
        model: The network, or its ``DistributedDataParallel``. With several processes, run all but the last
            micro-step in its ``no_sync()``, as usual.

    Raises:
        ValueError: If the network is compiled or in a ``DataParallel``.

    Examples:
        >>> from wsbcn_mmseg.layers import ConvWS
        >>> model = nn.Sequential(ConvWS(3, 8, 3), nn.GroupNorm(2, 8))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> kernels = HeldKernels(model)
        >>> for step, image in enumerate(torch.randn(8, 1, 3, 9, 9), 1):
        ...     last = step % 4 == 0
        ...     with kernels.micro_step(last):  # forward and backward pass
        ...         (model(image).square().mean() / 4).backward()
        ...     if last:
        ...         optimizer.step()
        ...         optimizer.zero_grad()
    """

    def __init__(self, model: nn.Module):
        for module in model.modules():
            if hasattr(module, '_orig_mod') or getattr(module, '_compiled_call_impl', None) is not None:
                raise ValueError('kernels cannot be held for a compiled network, which would be compiled again at '
                                 'every micro-step; accumulate gradients without HeldKernels')
            if isinstance(module, nn.DataParallel):
                raise ValueError('kernels cannot be held in a DataParallel, which copies the network at every step; '
                                 'use DistributedDataParallel')
        self._convs = [module for module in model.modules() if isinstance(module, ReparametrizedConv)]
        # With it, DDP reduces unused parameters before the backward pass, so their gradients must be complete by then
        self._early = getattr(model, 'find_unused_parameters', False)
        self._reduces = isinstance(model, nn.parallel.DistributedDataParallel)
        self._held: list[_HeldKernel] = []
        self._given: list[_HeldKernel] = []  # kernels given in this micro-step
        self._last = False

    @contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        """The context of one forward and backward pass.

        Args:
            last: Whether the optimizer step follows. With True, the gradients of all parameters are complete
                afterwards; clip and unscale them as usual.

        Raises:
            RuntimeError: If the weights have changed since the first micro-step.
        """
        self.begin(last)
        try:
            yield
        finally:
            self.end()
        if last:
            self.finish()

    def begin(self, last: bool) -> None:
        """Start a micro-step, see :meth:`micro_step`; for loops that cannot use a ``with`` block."""
        self._last = last
        if any(held.state != held.current_state() for held in self._held):
            raise RuntimeError('weights have changed between the micro-steps of one optimizer step; give last=True in '
                               'the last one, or call finish() or discard() before')
        if last and self._early:
            self.finish()
            return
        self._held = self._held or [_HeldKernel(conv) for conv in self._convs if _trained(conv) and _is_plain(conv)]
        self._given = self._held
        for held in self._given:
            held.give(_LastStep.apply(held, *held.parameters) if last else held.leaf)

    def end(self) -> None:
        """End a micro-step."""
        for held in self._given:
            held.release()
        self._given = []

    def finish(self) -> None:
        """Complete the gradients of the parameters, and release the kernels.

        Call this before the optimizer step if no micro-step had ``last=True``, for example at the end of an epoch.
        """
        for held in self._held:
            gradient = held.take_gradient()
            if gradient is None:
                continue
            if self._reduces and not self._last:
                raise RuntimeError('the collected gradients were not reduced over the processes; give last=True in the '
                                   'last micro-step before the optimizer step')
            torch.autograd.backward(held.parameters, held.pull_back(gradient))
        self.discard()

    def discard(self) -> None:
        """Discard the collected gradients, as ``optimizer.zero_grad()`` does for parameters. The next micro-step is
        again a first one."""
        self._held = []


def _is_standardized(conv: ReparametrizedConv) -> bool:
    """Whether the kernel is that of Eq. 7, for which there are faster operators than with autograd."""
    ordinary = getattr(type(conv), 'effective_weight', None) is WeightStandardized.effective_weight
    return ordinary and conv.center and conv.scale and conv.weight.numel() > 0


def _trained(conv: ReparametrizedConv) -> list[nn.Parameter]:
    """The trainable parameters of the kernel. Frozen ones may change at any time, such as those of a teacher."""
    return [parameter for name, parameter in conv.named_parameters(recurse=False)
            if name != 'bias' and parameter.requires_grad]


def _is_plain(conv: ReparametrizedConv) -> bool:
    """Whether all parameters are ordinary, and nothing else computes the weight or replaces the forward pass."""
    if nn.utils.parametrize.is_parametrized(conv) or 'weight' not in conv._parameters or 'forward' in vars(conv):
        return False
    return all(type(parameter) is nn.Parameter for parameter in conv.parameters(recurse=False))
