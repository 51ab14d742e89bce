# What ImageNet, CIFAR and the digits share: epochs, hooks, SGD.
custom_imports = dict(imports=['wsbcn_mmseg'], allow_failed_imports=False)
default_scope = 'mmpretrain'
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
randomness = dict(seed=0)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1, save_best='auto'),
    sampler_seed=dict(type='DistSamplerSeedHook'))
custom_hooks = [
    dict(type='BCNUpdateRateHook'), dict(type='SyncNormStatisticsHook'),
    dict(type='HeldKernelsHook')  # standardizes kernels once per update; only under accumulation
]

visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_level = 'INFO'
load_from = None
resume = False

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4))
val_cfg = dict()
test_cfg = dict()

# Images per update over all processes come from a config on top; each process takes its share of them, at once or, with
# batch size 1, one after the other: the "iteration size" of Section 8.1.3. Every config of the second kind repeats the
# lines that compute the number of passes: MMEngine evaluates a base before the config on top, so that no base can
# compute from total_batch_size, and two bases may not set the same key.
num_processes = int('{{$WORLD_SIZE:1}}')
