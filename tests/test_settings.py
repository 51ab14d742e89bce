"""The settings of every row of the paper, held to the paper and to the authors' files.

Numbers are typed from their sources, which stand beside them, and never read from the configs:

- "8.1.3" and the like: sections of the paper, arXiv 1903.10520; "Table 7": its tables
- ic: joe-siyuan-qiao/pytorch-classification, ``imagenet.py`` and its README; cc: ``cifar.py`` and TRAINING.md
- bcn: joe-siyuan-qiao/Batch-Channel-Normalization, ``imagenet/``; dl: chenxi116/DeepLabv3.pytorch
- mb: joe-siyuan-qiao/maskrcnn-benchmark, ``configs/gn_baselines/*.yaml`` over ``maskrcnn_benchmark/config/defaults.py``
- tsm: mit-han-lab/temporal-shift-module, the script for Something-Something
- assumed: said nowhere
"""
import copy
from collections.abc import Iterator

import pytest
from conftest import ROOT
from mmengine.config import Config

WS = dict(type='ConvWS')
SGD = dict(type='SGD', lr=.1, momentum=.9, weight_decay=1e-4)  # 8.1.3, ic, cc
GN32 = dict(type='GN', num_groups=32)  # 8.1.3; ic: models/layers.py
LARGE, MICRO = dict(type='BCN', mode='large_batch'), dict(type='BCN')
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]  # ic, dl: (.485, .456, .406), (.229, .224, .225) of 255
KAIMING = [dict(type='Kaiming', layer=['Conv2d']), dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm'])]
RESNEXT = dict(type='ResNeXt', groups=32, width_per_group=4)  # ic: --base-width 4 --cardinality 32

# type and depth, epochs, images per update: 8.1.3, for ResNeXt 8.1.1, ic's README
IMAGENET = {'resnet50': (dict(type='ResNet', depth=50), 90, 256),
            'resnet101': (dict(type='ResNet', depth=101), 100, 128),
            'resnext50_32x4d': (dict(RESNEXT, depth=50), 100, 128),
            'resnext101_32x4d': (dict(RESNEXT, depth=101), 100, 128)}
# Table 1 to 6: norm, further settings of the backbone, whether a process takes one image ("1" of Table 2) or its share.
# Residual branches start at zero in bcn (zero_init_residual = True) and not in ic (False, and not at all in ResNeXt).
METHODS = {
    'bn': (dict(type='BN'), {}, False), 'bn_ws': (dict(type='BN'), dict(conv_cfg=WS), False),
    'gn': (GN32, {}, True), 'gn_ws': (GN32, dict(conv_cfg=WS), True),
    'gn_ws_center': (GN32, dict(conv_cfg=dict(WS, scale=False)), True),  # Table 4, Eq. 11 alone
    'gn_ws_scale': (GN32, dict(conv_cfg=dict(WS, center=False)), True),  # Table 4, Eq. 12 alone
    # Table 3; gains start at the lengths of the kernels, as torch.nn.utils.weight_norm has it
    'gn_wn': (GN32, dict(conv_cfg=dict(type='ConvWN'), init_cfg=[*KAIMING, dict(type='GainOfKernel')]), True),
    'gn_cwn': (GN32, dict(conv_cfg=dict(type='ConvCWN'), init_cfg=[*KAIMING, dict(type='GainOfKernel')]), True),
    'ln': (dict(type='GN', num_groups=1), {}, True), 'ln_ws': (dict(type='GN', num_groups=1), dict(conv_cfg=WS), True),
    'in': (dict(type='IN', affine=True), {}, True), 'in_ws': (dict(type='IN', affine=True), dict(conv_cfg=WS), True),
    'sn': (dict(type='SwitchableNorm', batch_statistics=False), {}, True),  # Table 2, cited there
    'bcn_ws': (LARGE, dict(conv_cfg=WS, zero_init_residual=True), False),  # Table 6; bcn
    'bcn_ws_micro': (MICRO, dict(conv_cfg=WS, zero_init_residual=True), True),  # assumed, no such row
}
IMAGENET_ROWS = {'resnet50': [*METHODS], 'resnet101': ['bn', 'bn_ws', 'gn', 'gn_ws', 'bcn_ws', 'bcn_ws_micro'],
                 'resnext50_32x4d': ['gn', 'gn_ws', 'bcn_ws', 'bcn_ws_micro'],
                 'resnext101_32x4d': ['gn', 'gn_ws', 'bcn_ws', 'bcn_ws_micro']}


def steps(milestones: list[int], by_epoch: bool = True) -> dict:
    return dict(type='MultiStepLR', by_epoch=by_epoch, milestones=milestones, gamma=.1)


def optimizer(accumulation: int | None = None, **settings) -> dict:
    accumulated = {} if accumulation is None else dict(accumulative_counts=accumulation)
    return dict(type='OptimWrapper', optimizer=dict(SGD), **accumulated, **settings)


def imagenet(network: str, row: str) -> dict:
    """On the paper's four GPUs."""
    backbone, epochs, images = IMAGENET[network]
    norm, settings, single = METHODS[row]
    # ic: PIL's images, RandomSizedCrop(224) or Scale(256) and CenterCrop(224), bilinear
    load = dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation')
    pil = dict(backend='pillow', interpolation='bilinear')
    return {
        'optim_wrapper': optimizer(images // 4 if single else None),  # "iteration size", 8.1.3
        'param_scheduler': [steps([30, 60, 90])],
        'train_cfg': dict(by_epoch=True, max_epochs=epochs, val_interval=1),
        'train_dataloader.batch_size': 1 if single else images // 4,  # Table 2: 64 / 32
        'train_dataloader.drop_last': True,  # ic: a smaller last batch is skipped
        'train_dataloader.dataset.type': 'ImageNet',
        'train_dataloader.dataset.split': 'train',
        'train_dataloader.dataset.pipeline': [
            load, dict(type='RandomResizedCrop', scale=224, **pil),
            dict(type='RandomFlip', prob=.5, direction='horizontal'), dict(type='PackInputs')],
        'test_dataloader.dataset.split': 'val',
        'test_dataloader.dataset.pipeline': [
            load, dict(type='ResizeEdge', scale=256, edge='short', **pil), dict(type='CenterCrop', crop_size=224),
            dict(type='PackInputs')],
        'model.data_preprocessor': dict(type='ClsDataPreprocessor', num_classes=1000, mean=MEAN, std=STD, to_rgb=True),
        'model.backbone': dict(num_stages=4, out_indices=(3, ), zero_init_residual=False, norm_cfg=norm) | backbone
        | settings,
        'model.neck': dict(type='GlobalAveragePooling'),
        'model.head': dict(  # init_cfg: nn.Linear's own start, which ic leaves
            type='LinearClsHead', num_classes=1000, in_channels=2048, topk=(1, 5), cal_acc=True, init_cfg=None,
            loss=dict(type='CrossEntropyLoss', loss_weight=1.)),
        'custom_hooks': [dict(type='BCNUpdateRateHook'), dict(type='SyncNormStatisticsHook'),  # r = lr: 7.2.2
                         dict(type='HeldKernelsHook')],
    }


BY_WIDTH = dict(min_channels_per_group=4)  # min(32, C / 4) groups: 8.2
# Tables 7 and 8: network, norm, WS, images that a process takes at once; Fig. 6 for LN
CIFAR = {
    'resnet110_bn': (dict(type='BN'), False, 128),
    'resnet110_gn': (dict(type='GNByWidth', **BY_WIDTH), False, 1),
    'resnet110_gn_ws': (dict(type='GNByWidth', **BY_WIDTH), True, 1),
    'resnet110_bcn_ws': (dict(LARGE, **BY_WIDTH), True, 128),
    'resnet110_bcn_ws_micro': (dict(MICRO, **BY_WIDTH), True, 1),
    'resnet110_ln': (dict(type='GN', num_groups=1), False, 1),
    'resnet110_ln_ws': (dict(type='GN', num_groups=1), True, 1),
    'resnet18_bn': (dict(type='BN'), False, 128),
    'resnet18_bn_micro': (dict(type='BN'), False, 2),
    'resnet18_sn': (dict(type='SwitchableNorm'), False, 128),
    'resnet18_sn_micro': (dict(type='SwitchableNorm'), False, 2),
    'resnet18_bcn_ws': (dict(LARGE, num_groups=32), True, 128),
    'resnet18_bcn_ws_micro': (dict(MICRO, num_groups=32), True, 1),
}
CIFAR_ROWS = [(row, 10) for row in CIFAR] + [
    (row, 100) for row in CIFAR if row.startswith('resnet110') and 'ln' not in row]
CIFAR_BACKBONES = {'resnet110': (dict(type='CIFARResNet', depth=110, zero_init_residual=False), 64),
                   'resnet18': (dict(type='ResNet_CIFAR', depth=18, out_indices=(3, ), zero_init_residual=False), 512)}


def cifar(row: str, classes: int) -> dict:
    norm, ws, at_once = CIFAR[row]
    backbone, width = CIFAR_BACKBONES[row.split('_')[0]]
    return {
        'optim_wrapper': optimizer(None if at_once == 128 else 128 // at_once),  # accumulation: assumed
        'param_scheduler': [steps([81, 122])],  # cc: --epochs 164 --schedule 81 122 --gamma 0.1 --wd 1e-4
        'train_cfg': dict(by_epoch=True, max_epochs=164, val_interval=1),
        'train_dataloader.batch_size': at_once,
        'train_dataloader.drop_last': False,  # cc
        'train_dataloader.dataset.type': f'CIFAR{classes}',
        'train_dataloader.dataset.split': 'train',
        'train_dataloader.dataset.pipeline': [  # cc: RandomCrop(32, padding=4), RandomHorizontalFlip
            dict(type='RandomCrop', crop_size=32, padding=4),
            dict(type='RandomFlip', prob=.5, direction='horizontal'), dict(type='PackInputs')],
        'test_dataloader.dataset.type': f'CIFAR{classes}',
        'test_dataloader.dataset.split': 'test',
        'test_dataloader.dataset.pipeline': [dict(type='PackInputs')],
        'model.data_preprocessor': dict(  # cc: (.4914, .4822, .4465), (.2023, .1994, .2010) of 255
            type='ClsDataPreprocessor', num_classes=classes, mean=[125.307, 122.961, 113.8575],
            std=[51.5865, 50.847, 51.255], to_rgb=False),
        'model.backbone': backbone | dict(norm_cfg=norm) | (dict(conv_cfg=WS) if ws else {}),
        'model.head': dict(type='LinearClsHead', num_classes=classes, in_channels=width, topk=(1, ), init_cfg=None,
                           loss=dict(type='CrossEntropyLoss', loss_weight=1.)),
    }


def poly(updates: int) -> list[dict]:
    """lr (1 - t / T)^0.9, dl; PolyLR's last update has the rate at end - 1."""
    return [dict(type='PolyLR', power=.9, eta_min=0., begin=0, end=updates + 1, by_epoch=False)]


VOC = {  # Table 11: norms of backbone and head, WS; momentum: dl (deeplab.py), bcn (SyncBatchNorm's default)
    'bn': (dict(type='BN', momentum=.05), dict(type='BN', momentum=.0003), False),
    'bn_ws': (dict(type='BN', momentum=.05), dict(type='BN', momentum=.0003), True),
    'gn': (GN32, GN32, False), 'gn_ws': (GN32, GN32, True),
    'bcn_ws': (dict(LARGE, sync=True, momentum=.1), dict(LARGE, sync=True, momentum=.1), True),
    'bcn_ws_micro': (dict(type='BCN', mode='micro_batch'), dict(type='BCN', mode='micro_batch'), True),  # assumed
}
SEGMENTATION = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]


def deeplab(row: str, updates: int = 30000, passes: int = 1, lr: float = .007, classes: int = 21,
            size: tuple = (513, 513)) -> dict:
    """8.4: 30,000 updates of 16 images; dl: utils.preprocess, main.py."""
    backbone_norm, head_norm, ws = VOC[row]
    conv = dict(conv_cfg=WS) if ws else {}
    wrapper = optimizer(passes if passes > 1 else None)
    wrapper['optimizer']['lr'] = lr
    return {
        'optim_wrapper': wrapper,
        'param_scheduler': poly(updates * passes),
        'train_cfg.max_iters': updates * passes,
        'train_dataloader.batch_size': 16 // passes,
        'train_dataloader.dataset.pipeline': [
            *SEGMENTATION, dict(type='RandomLogScale', scale_range=(.5, 2.)),
            dict(type='RandomCrop', crop_size=(513, 513), cat_max_ratio=1.), dict(type='RandomFlip', prob=.5),
            dict(type='PackSegInputs')],
        'test_dataloader.batch_size': 1,
        'test_dataloader.dataset.pipeline': [*SEGMENTATION, dict(type='PackSegInputs')],
        'model.data_preprocessor': dict(
            type='SegDataPreProcessor', mean=MEAN, std=STD, bgr_to_rgb=True, size=(513, 513), pad_val=0,
            seg_pad_val=255, test_cfg=dict(size=size)),
        'model.backbone': dict(
            type='ResNet', depth=101, out_indices=(3, ), strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2),
            contract_dilation=True, norm_eval=False, zero_init_residual=False, norm_cfg=backbone_norm, **conv),
        'model.decode_head': dict(
            type='DeepLabV3Head', in_channels=2048, in_index=0, channels=256, dilations=(1, 6, 12, 18),
            dropout_ratio=0, num_classes=classes, align_corners=True, init_cfg=None, norm_cfg=head_norm,
            loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True), **conv),
        'model.test_cfg': dict(mode='whole'),
    }


def voc(row: str) -> dict:
    return deeplab(row, passes=16 if row == 'bcn_ws_micro' else 1) | {
        'train_dataloader.dataset.ann_file': 'ImageSets/Segmentation/trainaug.txt',
        'test_dataloader.dataset.ann_file': 'ImageSets/Segmentation/val.txt'}


def cityscapes(beta: bool) -> dict:
    """dl: main.py's defaults, 30 epochs of 2,975 images by 16; cityscapes.py: whole images on 1025 x 2049."""
    expected = deeplab('gn_ws', updates=30 * 186, lr=.00025, classes=19, size=(1025, 2049))
    expected['model.backbone']['type'] = 'ThreeConvStemResNet' if beta else 'ResNet'
    return expected | {'train_dataloader.dataset.type': 'CityscapesDataset'}


# 8.3: images per GPU, 1x and 2x; mb: MAX_ITER, STEPS and BASE_LR of the published configs, IMS_PER_BATCH 8 and 4
COCO_SCHEDULES = {('faster_rcnn', 50): (180000, [120000, 160000], .01, 2),
                  ('faster_rcnn', 101): (360000, [240000, 320000], .005, 1),
                  ('mask_rcnn', 50): (360000, [300000, 340000], .01, 2),
                  ('mask_rcnn', 101): (720000, [600000, 680000], .005, 1)}
COCO_ROWS = [(model, network, depth, row) for model in ('faster_rcnn', 'mask_rcnn') for depth in (50, 101)
             for network, rows in (('r', ['gn', 'gn_ws', 'bcn_ws']), ('x', ['gn_ws'])) for row in rows]
COCO_ROWS += [('mask_rcnn', 'r', depth, 'bn_frozen') for depth in (50, 101)]  # Fig. 1


def coco(model: str, network: str, depth: int, row: str) -> dict:
    updates, milestones, lr, images = COCO_SCHEDULES[model, depth]
    frozen = row == 'bn_frozen'
    if frozen:  # mb: configs/e2e_mask_rcnn_R_50_FPN_1x.yaml steps at 2/3 and 8/9; twice as long: assumed
        milestones = [updates * 2 // 3, updates * 8 // 9]
    layers = {} if frozen else dict(norm_cfg=MICRO if row == 'bcn_ws' else GN32)  # Fig. 1: micro-batch BCN
    layers |= dict(conv_cfg=WS) if row.endswith('ws') else {}
    backbone_layers = dict(norm_cfg=dict(type='BN', requires_grad=False)) if frozen else layers
    backbone = dict(type='ResNet', depth=depth, out_indices=(0, 1, 2, 3), norm_eval=frozen, zero_init_residual=False)
    backbone |= dict(type='ResNeXt', groups=32, base_width=4) if network == 'x' else {}

    def roi_extractor(size: int) -> dict:
        return dict(type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=size, sampling_ratio=2),
                    out_channels=256, featmap_strides=[4, 8, 16, 32])

    nms = dict(type='nms', iou_threshold=.7)
    expected = {
        # mb: solver/build.py, BIAS_LR_FACTOR 2, WEIGHT_DECAY_BIAS 0 for all names with "bias"
        'optim_wrapper': dict(type='OptimWrapper', optimizer=dict(SGD, lr=lr), paramwise_cfg=dict(
            custom_keys=dict(bias=dict(lr_mult=2., decay_mult=0.)))),
        'param_scheduler': [dict(type='LinearLR', start_factor=1 / 3, begin=0, end=500, by_epoch=False),
                            steps(milestones, by_epoch=False)],
        'train_cfg.max_iters': updates,
        'train_dataloader.batch_size': images,
        'train_dataloader.batch_sampler.type': 'AspectRatioBatchSampler',
        'train_dataloader.dataset.data_prefix.img': 'train2017', 'test_dataloader.dataset.data_prefix.img': 'val2017',
        'train_dataloader.dataset.pipeline.2': dict(type='Resize', scale=(1333, 800), keep_ratio=True),
        'train_dataloader.dataset.pipeline.3': dict(type='RandomFlip', prob=.5),
        'test_dataloader.dataset.pipeline.1': dict(type='Resize', scale=(1333, 800), keep_ratio=True),
        'model.data_preprocessor.mean': MEAN, 'model.data_preprocessor.std': STD,  # of the ImageNet weights: assumed
        'model.data_preprocessor.pad_size_divisor': 32,
        'model.backbone': backbone | backbone_layers,
        'model.neck': dict(type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=5,
                           init_cfg=dict(type='Caffe2Xavier', layer='Conv2d')) | layers,  # kaiming_uniform_(a=1)
        'model.rpn_head.anchor_generator': dict(  # sizes 32 to 512
            type='AnchorGenerator', scales=[8], ratios=[.5, 1., 2.], strides=[4, 8, 16, 32, 64]),
        'model.rpn_head.loss_bbox': dict(type='SmoothL1Loss', beta=1 / 9),  # rpn/loss.py
        'model.roi_head.bbox_roi_extractor': roi_extractor(7),
        'model.roi_head.bbox_head.type': 'Shared2FCBBoxHead' if frozen else 'Shared4Conv1FCBBoxHead',
        'model.roi_head.bbox_head.norm_cfg': layers.get('norm_cfg'),
        'model.roi_head.bbox_head.conv_cfg': layers.get('conv_cfg'),
        'model.roi_head.bbox_head.conv_out_channels': 256, 'model.roi_head.bbox_head.fc_out_channels': 1024,
        'model.roi_head.bbox_head.bbox_coder.target_stds': [.1, .1, .2, .2],  # BBOX_REG_WEIGHTS (10, 10, 5, 5)
        'model.roi_head.bbox_head.loss_bbox': dict(type='SmoothL1Loss', beta=1.),  # box_head/loss.py
        'model.roi_head.bbox_head.init_cfg': [  # roi_box_feature_extractors.py, roi_box_predictors.py
            dict(type='Normal', layer='Conv2d', std=.01),
            dict(type='Caffe2Xavier', override=dict(name='shared_fcs')),
            dict(type='Normal', std=.01, override=dict(name='fc_cls')),
            dict(type='Normal', std=.001, override=dict(name='fc_reg'))],
        'model.train_cfg.rpn.assigner': dict(  # low-quality matches of any overlap
            type='MaxIoUAssigner', pos_iou_thr=.7, neg_iou_thr=.3, min_pos_iou=0.),
        'model.train_cfg.rpn.sampler': dict(
            type='RandomSampler', num=256, pos_fraction=.5, add_gt_as_proposals=False),
        'model.train_cfg.rpn.allowed_border': 0,  # STRADDLE_THRESH
        # FPN_POST_NMS_TOP_N_TRAIN 2000 for the images of a process together
        'model.train_cfg.rpn_proposal': dict(nms_pre=2000, max_per_img=2000 // images, nms=nms, min_bbox_size=0),
        'model.train_cfg.rcnn.assigner': dict(
            type='MaxIoUAssigner', pos_iou_thr=.5, neg_iou_thr=.5, min_pos_iou=.5, match_low_quality=False),
        'model.train_cfg.rcnn.sampler': dict(
            type='RandomSampler', num=512, pos_fraction=.25, add_gt_as_proposals=True),
        'model.test_cfg.rpn': dict(nms_pre=1000, max_per_img=1000, nms=nms, min_bbox_size=0),
        'model.test_cfg.rcnn': dict(score_thr=.05, nms=dict(type='nms', iou_threshold=.5), max_per_img=100) | (
            dict(mask_thr_binary=.5) if model == 'mask_rcnn' else {}),
        'custom_hooks': [dict(type='BCNUpdateRateHook'), dict(type='SyncNormStatisticsHook')]
        if row == 'bcn_ws' else None,
    }
    if model == 'mask_rcnn':
        expected |= {
            'model.roi_head.mask_roi_extractor': roi_extractor(14),
            'model.roi_head.mask_head.num_convs': 4, 'model.roi_head.mask_head.conv_out_channels': 256,
            'model.roi_head.mask_head.norm_cfg': layers.get('norm_cfg'),
            'model.roi_head.mask_head.conv_cfg': layers.get('conv_cfg'),
            'model.train_cfg.rcnn.mask_size': 28,
        }
    return expected


VIDEO = {'gn': GN32, 'gn_ws': GN32, 'bn': dict(type='BN'), 'bn_ws': dict(type='BN'), 'bcn_ws': MICRO}  # Table 12


def tsm(row: str) -> dict:
    """8.5, on four GPUs."""
    return {
        'optim_wrapper': dict(type='OptimWrapper', clip_grad=dict(max_norm=20),  # tsm: --gd 20 --wd 5e-4
                              optimizer=dict(type='SGD', lr=.0125, momentum=.9, weight_decay=5e-4)),
        'param_scheduler': [dict(steps([26, 36]), begin=0, end=45)],
        'train_cfg.max_epochs': 45,
        'train_dataloader.batch_size': 8,
        'model.backbone': dict(type='ResNetTSM', depth=50, num_segments=8, shift_div=8, norm_eval=False,
                               pretrained2d=False, norm_cfg=VIDEO[row]) | (
                                   dict(conv_cfg=WS) if row.endswith('ws') else {}),
        'model.cls_head.dropout_ratio': .5,  # tsm: --dropout 0.5
        'model.cls_head.num_classes': 174,
    }


# Every config of a row: its file, processes, and what it must say
ROWS = {f'imagenet/{network}_{row}_in1k.py': (4, imagenet(network, row))
        for network, rows in IMAGENET_ROWS.items() for row in rows}
ROWS |= {f'cifar/{row}_c{classes}.py': (1, cifar(row, classes)) for row, classes in CIFAR_ROWS}
ROWS |= {f'deeplabv3_r101_{row}_voc.py': (1, voc(row)) for row in VOC}
ROWS |= {f'deeplabv3_r101_{beta}gn_ws_cityscapes.py': (1, cityscapes(bool(beta))) for beta in ('', 'beta_')}
ROWS |= {f'coco/{model}_{network}{depth}_{"32x4d_" * (network == "x")}{row}_{"12"[model == "mask_rcnn"]}x.py':
         (4, coco(model, network, depth, row)) for model, network, depth, row in COCO_ROWS}
ROWS |= {f'sthv1/tsm_r50_{row}.py': (4, tsm(row)) for row in VIDEO}


def plain(value):
    """Dictionaries of MMEngine as ordinary ones, tuples as lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def at(settings: dict, path: str):
    """What stands at a dotted path; None where nothing does."""
    for key in path.split('.'):
        settings = settings[int(key)] if isinstance(settings, list) else settings.get(key)
        if settings is None:
            return None
    return settings


def differences(settings: dict, expected: dict) -> dict:
    return {path: (at(settings, path), value) for path, value in plain(expected).items() if at(settings, path) != value}


def leaves(value, path: tuple = ()) -> Iterator[tuple]:
    """Paths of all numbers, names and flags within."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path
    for key, item in items or ():
        yield from leaves(item, (*path, key))


def other(value):
    """Of the same kind, but another."""
    if isinstance(value, bool):
        return not value
    return dict(type='x') if value is None else value + 'x' if isinstance(value, str) else value * 2 + 1


def load(file: str, processes: int, monkeypatch) -> dict:
    monkeypatch.setenv('WORLD_SIZE', str(processes))
    return plain(copy.deepcopy(Config.fromfile(ROOT / 'configs' / file)._cfg_dict.to_dict()))


@pytest.mark.parametrize('file', ROWS)
def test_settings_are_the_paper_s_and_the_authors(file, monkeypatch):
    processes, expected = ROWS[file]
    assert not differences(load(file, processes, monkeypatch), expected)


@pytest.mark.parametrize('file', [
    'imagenet/resnet50_gn_wn_in1k.py', 'imagenet/resnext101_32x4d_bcn_ws_in1k.py', 'cifar/resnet18_bcn_ws_micro_c10.py',
    'deeplabv3_r101_bn_voc.py', 'coco/mask_rcnn_r101_gn_ws_2x.py', 'sthv1/tsm_r50_bcn_ws.py'])
def test_a_change_of_any_setting_is_noticed(file, monkeypatch):
    processes, expected = ROWS[file]
    settings = load(file, processes, monkeypatch)
    count = 0
    for section in expected:
        for path in leaves(at(settings, section), tuple(section.split('.'))):
            *parents, last = path
            place = at(settings, '.'.join(map(str, parents))) if parents else settings
            last = int(last) if isinstance(place, list) else last
            before = place.get(last) if isinstance(place, dict) else place[last]
            place[last] = other(before)
            assert set(differences(settings, expected)) == {section}, path
            place[last] = before
            count += 1
    assert count > 20
    settings['optim_wrapper']['clip_grad'] = dict(max_norm=1)  # nothing more than what is expected, either
    settings['param_scheduler'].append(dict(type='ConstantLR'))
    assert set(differences(settings, expected)) == {'optim_wrapper', 'param_scheduler'}


def test_every_config_of_a_row_is_in_the_table():
    configs = {path.relative_to(ROOT / 'configs').as_posix() for path in (ROOT / 'configs').rglob('*.py')
               if '_base_' not in path.parts}
    ours = {file for file in configs if file.startswith(('digits/', 'camvid/', 'demo_'))}
    assert configs - ours == set(ROWS)


@pytest.mark.parametrize('processes', [1, 2, 8])
@pytest.mark.parametrize('file', ['imagenet/resnet50_bn_in1k.py', 'imagenet/resnet101_gn_ws_in1k.py',
                                  'cifar/resnet18_bn_micro_c10.py'])
def test_images_per_update_do_not_depend_on_the_processes(file, processes, monkeypatch):
    settings = load(file, processes, monkeypatch)
    passes = settings['optim_wrapper'].get('accumulative_counts', 1)
    assert settings['train_dataloader']['batch_size'] * processes * passes == settings['total_batch_size']
