# mmdet's runtime, counted in iterations.
_base_ = 'mmdet::_base_/default_runtime.py'
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False), checkpoint=dict(by_epoch=False, interval=4630, max_keep_ckpts=3)
)
log_processor = dict(by_epoch=False)
