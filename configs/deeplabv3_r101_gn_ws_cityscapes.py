# The authors' Cityscapes script, with GN+WS; no number is published. Crops of 513; whole images, padded to 1025 x 2049;
# 30 epochs of 2,975 images by 16, learning rate 0.00025: the script's defaults, since no command for it is published.
_base_ = './deeplabv3_r101_gn_ws_voc.py'
data_root = '{{$CITYSCAPES_ROOT:data/cityscapes}}'
max_iters = 30 * 186

model = dict(
    data_preprocessor=dict(test_cfg=dict(size=(1025, 2049))),
    decode_head=dict(num_classes=19))
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CityscapesDataset',
        data_root=data_root,
        data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'),
        pipeline=_base_.train_pipeline))
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CityscapesDataset',
        data_root=data_root,
        data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
        pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=0.00025))
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=max_iters + 1, by_epoch=False)]
train_cfg = dict(max_iters=max_iters, val_interval=930)
default_hooks = dict(checkpoint=dict(interval=930))
