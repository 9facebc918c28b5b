# Weights, gradients and the optimizer's state in shards over all processes; each block is gathered where it runs.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='mmext_backbones.FSDPStrategy',
    model_wrapper=dict(sharding_strategy='FULL_SHARD', auto_wrap_policy='mmext_backbones.wrap_blocks'),
    state_dict_cfg='full',
)
