# ELSA-VOLO-D1 with a pyramid. There are no weights of it. The batch norms of the stem keep their statistics, as VOLO's.
elsa_volo_d1 = dict(
    _delete_=True,  # what stands in a model's base
    type='mmext_backbones.ELSAVOLO',
    arch='d1',
    norm_eval=True,
)
