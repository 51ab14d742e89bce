"""Detect whether the operators are called by a tracer, an exporter or a transform of torch.func."""
import torch


def transformed() -> bool:
    """Whether a transform of torch.func (grad, vmap, ...) is active."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def recorded() -> bool:
    """Whether ``make_fx`` records the operators that run, before or after autograd."""
    mode = torch._C._TorchDispatchModeKey.PROXY
    return (torch._C._get_dispatch_mode(mode) is not None
            or torch._ops._get_dispatch_mode_pre_dispatch(mode) is not None)


def needs_plain_operations() -> bool:
    """Whether the caller supports stock operators only: a tracer, an exporter or a transform of torch.func."""
    if torch.compiler.is_compiling():
        return hasattr(torch.compiler, 'is_exporting') and torch.compiler.is_exporting()  # from torch 2.7 on
    return torch.jit.is_tracing() or transformed() or recorded()
