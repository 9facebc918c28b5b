# Parameters without weight decay, by substrings of their names. Everything else decays, ELSA's ghost heads and the
# biases of linear layers too. (The authors' ELSA decays its bias table as well, whose name there missed the list.)
no_decay = dict(
    custom_keys={
        'absolute_pos_embed': dict(decay_mult=0.0),
        'relative_position_bias_table': dict(decay_mult=0.0),
        'norm': dict(decay_mult=0.0),
    }
)
