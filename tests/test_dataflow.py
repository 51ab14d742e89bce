"""Which convolution feeds which norm."""
import torch
from torch import nn

from wsbcn_mmseg.conversion.dataflow import record_dataflow
from wsbcn_mmseg.layers import BCN, ConvWS


class Net(nn.Module):
    """One norm per case: plain, added to, changed in place, shared, returned, reshaped."""

    def __init__(self):
        super().__init__()
        self.conv = nn.ModuleDict({name: nn.Conv2d(4, 4, 1) for name in
                                   ('plain', 'added', 'in_place', 'two_norms', 'returned', 'viewed')})
        self.conv['ws'] = ConvWS(4, 4, 1)
        self.norm = nn.ModuleDict({name: nn.BatchNorm2d(4) for name in (*self.conv, 'second', 'never')})
        self.norm['ws'] = BCN(4)

    def forward(self, x):
        y = self.norm['plain'](self.conv['plain'](x)) + self.norm['ws'](self.conv['ws'](x))
        added = self.conv['added'](x)
        y = y + self.norm['added'](added) + added
        y = y + self.norm['in_place'](self.conv['in_place'](x).relu_())
        two = self.conv['two_norms'](x)
        y = y + self.norm['two_norms'](two) + self.norm['second'](two)
        returned = self.conv['returned'](x)
        return y + self.norm['returned'](returned) + self.norm['viewed'](self.conv['viewed'](x).flip(2)), [returned]


def test_sources_and_shared_outputs():
    net = Net().eval()
    flow = record_dataflow(lambda: net(torch.randn(1, 4, 3, 3)), net.conv.values(), net.norm.values())
    sources = {name: flow.sources.get(norm) for name, norm in net.norm.items()}
    conv = net.conv
    assert sources == {
        'plain': [conv['plain']], 'ws': [conv['ws']], 'added': [conv['added']], 'in_place': [None],
        'two_norms': [conv['two_norms']], 'second': [conv['two_norms']], 'returned': [conv['returned']],
        'viewed': [None], 'never': None}
    assert {name for name, norm in net.norm.items() if flow.sole_source(norm) is not None} == {'plain', 'ws'}
    assert flow.read_elsewhere == {conv[name] for name in ('added', 'in_place', 'returned', 'viewed')}


def test_modules_that_run_several_times():
    """RetinaNet's heads: one convolution over all levels, a norm per level."""
    conv, norms = nn.Conv2d(2, 2, 1), [nn.BatchNorm2d(2).eval() for _ in range(2)]
    shared_norm, other = nn.BatchNorm2d(2).eval(), nn.Conv2d(2, 2, 1)
    x = torch.randn(1, 2, 3, 3)
    flow = record_dataflow(lambda: [norm(conv(x)) for norm in norms], [conv], norms)
    assert flow.calls[conv] == 2
    assert flow.targets[conv] == set(norms)
    assert flow.sole_source(norms[0]) is None
    flow = record_dataflow(lambda: [shared_norm(c(x)) for c in (conv, other)], [conv, other], [shared_norm])
    assert flow.sources[shared_norm] == [conv, other]
    assert flow.sole_source(shared_norm) is None
    flow = record_dataflow(lambda: [shared_norm(conv(x)), shared_norm(conv(x * 2))], [conv], [shared_norm])
    assert flow.sole_source(shared_norm) is conv
    assert not conv._forward_hooks
    assert not shared_norm._forward_pre_hooks
