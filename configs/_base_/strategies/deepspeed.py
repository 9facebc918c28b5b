# DeepSpeed's ZeRO stage 2: gradients and the optimizer's state in shards over all processes, weights whole on each.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='DeepSpeedStrategy',
    zero_optimization=dict(stage=2, overlap_comm=True, contiguous_gradients=True),
)
