"""Kinds of layers and networks that a conversion must treat rightly, leave with the reason, or refuse in a sentence."""
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wsbcn_mmseg import convert_model, plan_conversion
from wsbcn_mmseg.conversion import ConversionError
from wsbcn_mmseg.layers import BCN, AdaptiveConvWS

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def chain(*layers):
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), *layers)


def report_of(model, example=X, **settings):
    return convert_model(model, example, **settings).conversion_report


# What may be replaced

class WithReLU(nn.BatchNorm2d):

    def forward(self, x):
        return F.relu(super().forward(x))


class Scaled(nn.BatchNorm2d):

    def forward(self, x):
        return 2 * super().forward(x)


class Ghost(nn.BatchNorm2d):
    """BatchNorm in evaluation, another thing in training."""

    def forward(self, x):
        return torch.cat([super(Ghost, self).forward(part) for part in x.chunk(2)]) if self.training else \
            super().forward(x)


class AffineGroupNorm(nn.GroupNorm):

    def forward(self, x):
        return super().forward(x) + x


class Renamed(nn.BatchNorm2d):
    """No forward pass of its own."""


class CallsItsBase(nn.BatchNorm2d):
    """A forward pass of its own that does what the family does."""

    def forward(self, input):
        self._check_input_dim(input)
        return super().forward(input)


class WithChildren(nn.BatchNorm2d):
    """As timm's BatchNormAct2d, by another name."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.LeakyReLU()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


@pytest.mark.parametrize('kind', [WithReLU, Scaled, Ghost, lambda c: AffineGroupNorm(4, c)])
def test_norms_with_a_behavior_of_their_own_are_left(kind):
    model = chain(kind(32), nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32))
    expected = model.eval()[:2](X)
    report = report_of(model)
    assert 'has a forward pass of its own' in report.kept['1']
    assert set(report.norms) == {'3'}
    assert report.kept['0'] == 'the norm that reads its output is kept'
    torch.testing.assert_close(model.eval()[:2](X), expected)


@pytest.mark.parametrize('kind', [Renamed, CallsItsBase, WithChildren, nn.SyncBatchNorm])
def test_norms_that_behave_as_their_family_are_replaced(kind):
    model = chain(kind(32))
    report = report_of(model)
    assert report.norms['1'] == f'{kind.__name__} -> BCN'
    assert report.convs['0'] == 'Conv2d -> ConvWS'
    if kind is WithChildren:
        assert [type(layer) for layer in model[1]] == [BCN, nn.Identity, nn.LeakyReLU]


def test_a_forward_pass_set_on_the_layer_itself_is_left():
    model = chain(nn.BatchNorm2d(32), nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32))
    plain = model[1].forward
    model[1].forward = lambda x: plain(x).relu()
    model[2].forward = lambda x: F.conv2d(x, model[2].weight ** 2)
    report = report_of(model)
    assert 'forward pass of its own' in report.kept['1']
    assert 'in its own way' in report.kept['2']


def test_timm_norms_with_activation_stay_known():
    layers = pytest.importorskip('timm.layers', reason='needs timm')
    model = chain(layers.BatchNormAct2d(32), nn.Conv2d(32, 32, 1), layers.GroupNormAct(32, 8))
    report = report_of(model)
    assert set(report.norms) == {'1', '3'}
    assert model[3][0].num_groups == 8


class Masked(nn.Conv2d):

    def forward(self, x):
        return F.conv2d(x, self.weight * (self.weight > 0), self.bias)


class ReadsTwice(nn.Conv2d):

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias) + self.weight.mean()


class Same(nn.Conv2d):
    """Pads to the same size, as timm's Conv2dSame."""

    def forward(self, x):
        missing = [(-side % self.stride[0]) + self.kernel_size[0] - self.stride[0] for side in x.shape[-2:]]
        x = F.pad(x, [missing[1] // 2, missing[1] - missing[1] // 2, missing[0] // 2, missing[0] - missing[0] // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride)


class StaticSame(nn.Conv2d):
    """Pads by a module, as EfficientNet-PyTorch's Conv2dStaticSamePadding."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x):
        return F.conv2d(self.static_padding(x), self.weight, self.bias, self.stride, self.padding, self.dilation,
                        self.groups)


class Causal(nn.Conv1d):

    def forward(self, x):
        return super().forward(F.pad(x, (2, 0)))


@pytest.mark.parametrize('kind', [Masked, ReadsTwice])
def test_convolutions_of_their_own_way_are_left(kind):
    model = nn.Sequential(kind(3, 8, 3), nn.BatchNorm2d(8))
    assert 'in its own way' in report_of(model).kept['0']
    assert type(model[0]) is kind


@pytest.mark.parametrize('preserve', [False, True])
@pytest.mark.parametrize('kind, dim', [(Same, 2), (StaticSame, 2), (Causal, 1)])
def test_convolutions_that_only_pad_are_standardized_by_their_own_forward(kind, dim, preserve):
    norm = nn.BatchNorm2d if dim == 2 else nn.BatchNorm1d
    model, x = nn.Sequential(kind(3, 32, 3), norm(32)), torch.randn(2, 3, *[9] * dim)
    before, kernel = copy.deepcopy(model[0]), model[0].weight
    report = report_of(model, x, preserve=preserve)
    conv = model[0]
    assert report.convs['0'] == f'{kind.__name__} -> {type(conv).__name__}'
    assert conv.weight is kernel
    with torch.no_grad():
        before.weight.copy_(conv.effective_weight())
    torch.testing.assert_close(conv(x), before(x))
    conv(x).square().sum().backward()
    assert conv.weight.grad.any()
    assert set(conv.state_dict()) - {'kernel_mean', 'kernel_scale'} == set(before.state_dict())
    with torch.autocast('cpu', torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
    torch.testing.assert_close(copy.deepcopy(conv)(x), conv(x))


# Too few values

def test_after_linear_layers_groups_are_wide():
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8), nn.BatchNorm1d(8))
    report = report_of(model, torch.randn(4, 64))
    assert model[1].num_groups == 2
    assert '16 in each of 2' in report.regrouped['1']
    assert report.kept['4'] == 'its 8 channels at 1 position are fewer values than the 16 that a group needs'
    assert '2 values in each of 16 groups, 16 in each of 2' in str(report)


@pytest.mark.parametrize('example', [X, None])
def test_pooled_branches_have_wide_groups_and_maps_do_not(example):
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.AdaptiveAvgPool2d(1), nn.Conv2d(64, 64, 1),
                          nn.BatchNorm2d(64))
    report = report_of(model, example)
    assert (model[1].num_groups, model[4].num_groups) == (32, 4)
    assert set(report.regrouped) == {'4'}
    assert model.train()(X).isfinite().all()


def test_made_up_images_are_larger_where_small_ones_leave_few_positions():
    """At 64 pixels the last maps have one position, at 224 they have several: the groups stay as usual."""
    model = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Conv2d(3, 3, 3, 2, 1), nn.ReLU())],
                          nn.Conv2d(3, 64, 1), nn.BatchNorm2d(64))
    assert not report_of(model, None).regrouped
    assert model[-1].num_groups == 32


class OwnGroups(nn.Module):
    """A group norm that does not derive from PyTorch's."""

    def __init__(self, num_features, num_groups=8, eps=1e-5):
        super().__init__()
        self.num_features, self.num_groups, self.eps = num_features, num_groups, eps
        self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))

    def forward(self, x):
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class EightGroups(OwnGroups):
    """One whose number of groups cannot be chosen."""

    def __init__(self, num_features):
        super().__init__(num_features)


def test_the_check_of_few_values_covers_every_norm_with_groups():
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.GroupNorm(4, 64), nn.AdaptiveAvgPool2d(1), nn.Conv2d(64, 64, 1),
                          nn.BatchNorm2d(64), nn.GroupNorm(16, 64))
    other = copy.deepcopy(model)
    report = report_of(model, norm=OwnGroups)
    assert [type(model[i]) for i in (1, 4, 5)] == [OwnGroups] * 3
    assert [model[i].num_groups for i in (1, 4, 5)] == [4, 4, 4]
    assert report.regrouped['4'] == '8 values in each of 8 groups, 16 in each of 4'
    report = report_of(other, norm=EightGroups)
    assert type(other[1]) is EightGroups
    assert report.kept['4'] == 'its 64 channels at 1 position are fewer values than the 16 that a group needs'


def test_groups_that_were_asked_for_stay():
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(64))
    report = report_of(model, norm=dict(type='BCN', num_groups=8))
    assert report.regrouped == {'2': '8 values in each of the 8 groups that were asked for'}
    assert model[2].num_groups == 8


# What is read elsewhere

class TwoReaders(nn.Module):

    def __init__(self, kind):
        super().__init__()
        self.conv, self.bn, self.kind = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), kind
        self.last, self.bn2 = nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32)
        self.held, self.tied = [self.bn], nn.Conv2d(3, 32, 3)
        if kind == 'tied':
            self.tied.weight = self.conv.weight

    def forward(self, x):
        y = self.conv(x)
        z = self.held[0](y) if self.kind == 'list' else self.bn(y)
        if self.kind == 'skip':
            z = z + y
        if self.kind == 'kernel':
            z = z + F.conv2d(x, self.conv.weight, padding=1)
        if self.kind == 'tied':
            z = z + self.tied(F.pad(x, (1, 1, 1, 1)))
        if self.kind == 'statistics':
            z = z - self.bn.running_mean.mean()
        return self.bn2(self.last(z))


@pytest.mark.parametrize('kind, reason', [('skip', 'read elsewhere too'), ('kernel', 'read elsewhere too'),
                                          ('tied', "shares its kernel with 'tied', which is kept")])
def test_convolutions_that_others_read_are_left(kind, reason):
    model = TwoReaders(kind)
    report = report_of(model)
    assert reason in report.kept['conv']
    assert type(model.conv) is nn.Conv2d
    assert type(model.bn) is BCN
    assert set(report.convs) == {'last'}
    if kind != 'tied':
        assert 'conv' in report_of(TwoReaders(kind), read_elsewhere=True).convs


def test_norms_whose_statistics_others_read_are_left():
    report = report_of(TwoReaders('statistics'))
    assert report.kept['bn'] == 'other code reads its parameters or running statistics'


def test_references_outside_the_module_tree_hold():
    model = TwoReaders('list')
    report = report_of(model)
    assert set(report.norms) == {'bn', 'bn2'}
    assert model.held[0] is model.bn
    assert type(model.bn) is BCN
    model.train()(X)
    assert model.bn.bn.num_batches_tracked == 1


def test_kernels_shared_by_convolutions_that_are_all_standardized():
    first, second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    second.weight = first.weight
    model = nn.Sequential(first, nn.GroupNorm(1, 3), second, nn.GroupNorm(1, 3))
    assert set(report_of(model).convs) == {'0', '2'}
    assert model[0].weight is model[2].weight


# Proof, and the way back

class Fragile(nn.Module):
    """Does not run with another norm."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.bn, self.how = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), how

    def forward(self, x):
        x = self.conv(x)
        if type(self.bn) is nn.BatchNorm2d:
            return self.bn(x)
        if self.how == 'raises':
            raise RuntimeError('only BatchNorm2d is supported')
        return x if self.how == 'skips' else self.bn(x) / 0


@pytest.mark.parametrize('how, message', [
    ('raises', 'does not run, nothing was converted: .*RuntimeError: only BatchNorm2d is supported'),
    ('skips', "'bn' ran 1 time before the conversion and 0 times after; nothing was converted"),
    ('infinite', 'the output of the converted network is not finite')])
def test_a_network_that_does_not_run_as_before_is_put_back(how, message):
    model = Fragile(how)
    state, expected = copy.deepcopy(model.state_dict()), model.eval()(X)
    with pytest.raises(ConversionError, match=message):
        convert_model(model.train(), X)
    assert type(model.bn) is nn.BatchNorm2d
    assert type(model.conv) is nn.Conv2d
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.eval()(X), expected)
    assert not hasattr(model, 'conversion_report')


def test_patterns_must_match_and_there_must_be_something_to_convert():
    model = nn.Sequential()
    model.add_module('decode_head', chain(nn.BatchNorm2d(32)))
    for setting in ('include', 'exclude'):
        with pytest.raises(ConversionError, match="'deocde_head' matches no norm or convolution.*'decode_head'"):
            convert_model(model, X, **{setting: 'deocde_head'})
    for network in (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))):
        with pytest.raises(ConversionError, match='has nothing to convert'):
            convert_model(network)


def test_planning_changes_nothing():
    model = chain(nn.BatchNorm2d(32), nn.LayerNorm(16))
    report = plan_conversion(model, X, preserve=True)
    assert report.norms == {'1': 'BatchNorm2d -> BCN'}
    assert type(model[1]) is nn.BatchNorm2d
    assert report.output_change > 0
    assert not hasattr(model, 'conversion_report')


def test_the_habit_from_sync_batch_norm():
    model = chain(nn.BatchNorm2d(32))
    assert convert_model(model) is model
    assert model.conversion_report.convs


def test_preserve_says_what_it_lost_and_which_width_it_chose():
    model = chain(nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 1), nn.BatchNorm2d(64)).eval()
    for layer in (model[1], model[4]):
        nn.init.uniform_(layer.weight, 0.5, 2)
        nn.init.normal_(layer.bias)
    before = model(X)
    report = report_of(model, preserve=True)
    change = (model(X) - before).norm() / before.norm()
    assert report.output_change == pytest.approx(float(change), rel=1e-4)
    assert report.min_channels_per_group == 16
    assert model[4].num_groups == 4
    assert f'the output changed by {float(change):.2g} of its norm' in str(report)


class FrozenBatchNorm2d(nn.Module):

    def __init__(self, channels):
        super().__init__()
        self.eps = 1e-5
        for name, value in dict(weight=torch.rand(channels) + 0.5, bias=torch.randn(channels),
                                running_mean=torch.randn(channels), running_var=torch.rand(channels) + 0.5).items():
            self.register_buffer(name, value)

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


def test_frozen_batch_norm_is_named_and_converted_when_its_function_is_preserved():
    model = chain(FrozenBatchNorm2d(32), nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32))
    mean = model[1].running_mean.clone()
    report = plan_conversion(model, X)
    assert 'preserve=True converts it' in report.kept['1']
    assert set(report.norms) == {'3'}
    report = report_of(model, preserve=True)
    assert report.norms['1'] == 'FrozenBatchNorm2d -> BCN'
    assert type(model[0]) is AdaptiveConvWS
    assert torch.equal(model[1].bn.running_mean, mean)
    assert model[1].bn.weight.requires_grad


def test_lazy_layers_are_asked_to_run_first():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.LazyConv2d(32, 3), nn.LazyBatchNorm2d())
    with pytest.raises(ConversionError, match="'2' is a LazyConv2d: its number of channels is not known before it has "
                                              'run; run the network once'):
        convert_model(model, X)
    model(X)
    assert set(report_of(model).norms) == {'1', '3'}


# Other norms as targets

@pytest.mark.parametrize('norm, kind, dims', [
    ('LN', nn.GroupNorm, 2), ('IN', nn.InstanceNorm2d, 2), ('BN', nn.BatchNorm2d, 2), ('BN', nn.BatchNorm1d, 1),
    ('IN', nn.InstanceNorm1d, 1), ('GNByWidth', nn.GroupNorm, 2), (nn.GroupNorm, nn.GroupNorm, 1)])
def test_other_norms_are_built_as_the_field_means_them(norm, kind, dims):
    conv = nn.Conv2d if dims == 2 else nn.Conv1d
    model = nn.Sequential(conv(3, 32, 3), nn.GroupNorm(4, 32))
    report_of(model, torch.randn(2, 3, *[9] * dims), norm=norm)
    assert isinstance(model[1], kind)
    assert list(model[1].parameters())
    if norm == 'LN':
        assert model[1].num_groups == 1


class OtherSignature(nn.GroupNorm):

    def __init__(self, num_channels, groups_of, eps=1e-5):
        super().__init__(num_channels // groups_of, num_channels, eps)


def test_what_is_no_norm_or_cannot_be_built_is_refused():
    with pytest.raises(ConversionError, match='ReLU is no norm over channels'):
        convert_model(chain(nn.BatchNorm2d(32)), X, norm='ReLU')
    with pytest.raises(ValueError, match="OtherSignature cannot be built for 32 channels.*'groups_of'"):
        convert_model(chain(nn.BatchNorm2d(32)), X, norm=OtherSignature)
    model = chain(nn.BatchNorm2d(32))
    convert_model(model, X, norm=dict(type=OtherSignature, groups_of=8))
    assert model[1].num_groups == 4


# Kernels that change hands

def test_fusing_is_refused_and_innocents_are_not():
    conv, bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8).eval()
    nn.init.uniform_(bn.weight, 0.5, 2)
    model = convert_model(nn.Sequential(conv, nn.BatchNorm2d(8)), X).eval()
    conv = model[0]

    def merge_bn(conv, bn):  # as many a repository has it
        scale = bn.weight / (bn.running_var + bn.eps).sqrt()
        conv.weight = nn.Parameter(conv.weight * scale.view(-1, 1, 1, 1))
        conv.bias = nn.Parameter(bn.bias - bn.running_mean * scale)

    for fuse in (merge_bn, torch.nn.utils.fusion.fuse_conv_bn_eval):
        before = copy.deepcopy(conv.state_dict())
        with pytest.raises(RuntimeError, match='a norm cannot be fused into this ConvWS'):
            fuse(conv, bn)
        assert all(torch.equal(value, before[name]) for name, value in conv.state_dict().items())
    expected = model(X)
    conv.weight = nn.Parameter(conv.weight.detach() * 2)
    conv.bias = nn.Parameter(torch.zeros(8))
    conv.load_state_dict({'weight': conv.weight.detach() * 3, 'bias': conv.bias.detach()}, assign=True)
    assert model(X).shape == expected.shape
    with pytest.raises(RuntimeError, match='wsbcn_mmseg.fold'):
        conv._conv_forward(X, conv.weight, None)


# What a second pair of eyes found

class WithGain(nn.BatchNorm2d):
    """As BatchNorm at the start, with a parameter more."""

    def __init__(self, channels):
        super().__init__(channels)
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        return super().forward(x) * self.gain


class CallsReLU(nn.BatchNorm2d):

    def __call__(self, *args):
        return super().__call__(*args).relu()


class Masking(nn.BatchNorm2d):

    def forward(self, x, mask=None):
        y = super().forward(x)
        return y if mask is None else y * mask


class Regularized(nn.BatchNorm2d):

    def penalty(self):
        return self.weight.square().sum()


class FrozenWithReLU(FrozenBatchNorm2d):

    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize('kind, reason', [
    (WithGain, 'has parameters of its own'), (CallsReLU, 'has a forward pass of its own'),
    (Masking, 'has a forward pass of its own'), (Regularized, 'has methods of its own'),
    (FrozenWithReLU, 'has a forward pass of its own')])
@pytest.mark.parametrize('preserve', [False, True])
def test_norms_with_more_than_their_family_are_left(kind, reason, preserve):
    if kind is FrozenWithReLU and not preserve:
        reason = 'has fixed statistics; preserve=True converts it'
    model = chain(kind(32), nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32))
    assert report_of(model, preserve=preserve).kept['1'] == f'{kind.__name__} {reason}'
    assert type(model[1]) is kind


def test_convolutions_keep_methods_and_further_arguments():

    class Padded(nn.Conv2d):

        def forward(self, x, mask=None):
            y = F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)
            return y if mask is None else y * mask

        def penalty(self):
            return self.weight.abs().sum()

    model = nn.Sequential(Padded(3, 32, 3), nn.BatchNorm2d(32))
    report_of(model)
    assert not model[0](X, torch.zeros(1)).any()
    assert model[0](X).any()
    assert model[0].penalty() > 0


@pytest.mark.parametrize('eps', [0.0, 1e-5, 1e-2])
@pytest.mark.parametrize('says', [True, False])
def test_frozen_batch_norm_of_any_eps_is_taken_over_exactly(eps, says):
    norm = FrozenBatchNorm2d(32)
    norm.running_var.fill_(1e-5)
    norm.eps = eps
    if not says and eps == 0:  # maskrcnn-benchmark's has no such attribute
        norm.forward = FrozenBatchNorm2d.forward.__get__(norm)
        del norm.forward
    model = chain(norm)
    expected = model(X)
    report_of(model, preserve=True)
    bn = model[1].bn
    y = F.batch_norm(model[0](X), bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=model[1].eps)
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-3)


class InTraining(TwoReaders):

    def forward(self, x):
        y = self.conv(x)
        z = self.bn(y)
        if self.training and self.kind == 'output':
            return self.bn2(self.last(z)), y.mean()
        if self.training and self.kind == 'statistics':
            z = z + self.bn.running_var.sum()
        return self.bn2(self.last(z))


def test_what_is_read_in_training_only_counts():
    assert 'read elsewhere too' in report_of(InTraining('output')).kept['conv']
    assert 'other code reads' in report_of(InTraining('statistics')).kept['bn']


def test_kernels_shared_by_their_memory_alone():
    model = TwoReaders('tied')
    model.tied.weight = nn.Parameter(model.conv.weight.data)
    assert 'which is kept' in report_of(model).kept['conv']


def test_norms_that_are_what_is_wanted_stay_and_other_settings_are_obeyed():
    model = nn.Sequential(nn.Conv1d(3, 32, 3), nn.BatchNorm1d(32))
    x = torch.randn(4, 3, 9)
    model(x)
    mean = model[1].running_mean.clone()
    assert not report_of(model, x, norm='BN').norms
    assert torch.equal(model[1].running_mean, mean)
    assert mean.any()
    model = chain(BCN(32))
    report = report_of(model, norm=dict(type='BCN', mode='large_batch', num_groups=2))
    assert report.norms == {'1': 'BCN -> BCN'}
    assert (model[1].mode, model[1].num_groups) == ('large_batch', 2)
    assert not report_of(model, norm=dict(type='BCN', num_groups=2)).norms


def test_few_values_that_were_asked_for_are_reported_and_warned_of(monkeypatch):
    monkeypatch.setattr(BCN, '_warned_of_few_values', False)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16))
    report = report_of(model, torch.randn(4, 6), norm=dict(type='BCN', num_groups=8))
    assert report.regrouped['1'] == '2 values in each of the 8 groups that were asked for'
    with pytest.warns(UserWarning, match='groups of 2 values'):
        model(torch.randn(4, 6))


def test_norms_that_did_not_run_are_said():
    model = chain(nn.BatchNorm2d(32))
    model[0].helper = nn.BatchNorm1d(32)
    assert '0.helper' in report_of(model).unseen


@pytest.mark.parametrize('settings', [
    dict(ws='False'), dict(preserve='False'), dict(instance_norm='yes'), dict(norm={}), dict(norm=3),
    dict(norm=dict(num_groups=4)), dict(norm=dict(type='BCN', num_groups='4')), dict(include=5), dict(exclude=[1])])
def test_arguments_are_checked(settings):
    with pytest.raises(ConversionError, match='must be|needs a type|is given by|are given by'):
        convert_model(chain(nn.BatchNorm2d(32)), X, **settings)


def test_networks_that_cannot_run_or_be_changed_are_refused():
    with pytest.raises(ConversionError, match='on the meta device'):
        convert_model(chain(nn.BatchNorm2d(32)).to('meta'))
    with torch.inference_mode(), pytest.raises(ConversionError, match='built under torch.inference_mode'):
        convert_model(chain(nn.BatchNorm2d(32)))
    with torch.inference_mode():
        assert report_of(MODEL_BUILT_OUTSIDE, X).norms
    model = chain(nn.BatchNorm2d(32))
    model.log = open(__file__)
    with model.log, pytest.raises(ValueError, match='holds something that cannot be copied'):
        plan_conversion(model, X)


MODEL_BUILT_OUTSIDE = chain(nn.BatchNorm2d(32))


def test_reading_batch_norm_s_statistics_from_bcn_ends_in_a_sentence():
    """As methods that reparametrize branches do."""
    model = chain(nn.BatchNorm2d(32))
    convert_model(model, X)
    for name in ('running_mean', 'running_var'):
        with pytest.raises(AttributeError, match=f'BCN keeps {name} in bn; .*run them before the conversion'):
            getattr(model[1], name)
    assert not hasattr(model[1], 'running_mean')
