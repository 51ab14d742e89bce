"""The report and the error of a conversion."""
from collections import Counter
from dataclasses import dataclass, field


class ConversionError(ValueError):
    """The network cannot be converted with these arguments. It was not changed."""


@dataclass
class ConversionReport:
    """What :func:`~wsbcn_mmseg.convert_model` did, for ``print`` and for programs: the model's ``conversion_report``.

    Attributes:
        norms: Names of the replaced norms, each with its old and new class, such as ``'BatchNorm2d -> BCN'``.
        convs: Names of the replaced convolutions, such as ``'Conv2d -> ConvWS'``.
        kept: Names of the norms and convolutions that were not replaced, each with the reason.
        regrouped: Names of the norms whose groups would have had too few values, each with what was done instead.
        unseen: Names of the norms that were replaced although they did not run on the example; the number of values
            of their groups is not known.
        min_channels_per_group: Smallest number of channels per group of the new norms; None if they have no groups.
        output_change: Norm of the change of the output on the example, divided by the norm of the output; None if it
            was not measured (without ``preserve``, or if the network returns no tensor).
    """
    norms: dict[str, str] = field(default_factory=dict)
    convs: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    regrouped: dict[str, str] = field(default_factory=dict)
    unseen: dict[str, str] = field(default_factory=dict)
    min_channels_per_group: int | None = None
    output_change: float | None = None

    def __str__(self) -> str:
        lines = [f'Converted {count(len(self.norms), "norm")} and {count(len(self.convs), "convolution")}.']
        changes = Counter([*self.norms.values(), *self.convs.values()])
        lines += [f'  {change}: {number}' for change, number in changes.items()]
        if self.min_channels_per_group is not None:
            lines.append(f'Groups of BCN have at least {count(self.min_channels_per_group, "channel")}.')
        if self.output_change is not None:
            lines.append(f'On the example, the output changed by {self.output_change:.2g} of its norm.')
        if self.regrouped:
            lines += ['Groups with few values:', *_by_reason(self.regrouped)]
        if self.unseen:
            lines += ['Converted, but did not run on the example:', *_by_reason(self.unseen)]
        if self.kept:
            lines += [f'Left {count(len(self.kept), "layer")} unchanged:', *_by_reason(self.kept)]
        return '\n'.join(lines)


def count(number: int, noun: str) -> str:
    """'1 norm', '2 norms'."""
    return f'{number} {noun}{"" if number == 1 else "s"}'


def quoted(name: str) -> str:
    """The name of a layer in messages; the model itself has an empty name."""
    return repr(name) if name else 'the model itself'


def _by_reason(layers: dict[str, str]) -> list[str]:
    names_of = {}
    for name, reason in layers.items():
        names_of.setdefault(reason, []).append(name)
    return [f'  {reason}: {", ".join(map(quoted, names[:3]))}{f" and {len(names) - 3} more" if len(names) > 3 else ""}'
            for reason, names in names_of.items()]
