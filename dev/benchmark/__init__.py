"""Our networks and operators beside those of others, in one run: what `dev/benchmark` does.

Equal work. Every network returns its four maps as dense [B, C, H, W], the layout a pyramid reads; where a peer hands
out another one, the copy is part of its time, as it is of ours. Our output norms take part only where the peer has
them (OpenMMLab); beside timm and torchvision they are taken out of ours. Stochastic depth and dropout are off. The
backward pass starts from fixed random gradients of the maps and stops at the image.

Equal numbers. Both sides hold the same random weights, brought from the peer's names to ours by `weights`. Before
anything is timed, outputs and, where the backward pass is timed, all gradients are compared (`agreement`). Where a
peer defines the padding of maps otherwise, the comparison is made at a size without padding and the row says so.

Equal chances. Rounds are interleaved, A-B-B-A-..., after a warm-up; what is shown is the median and the quartiles of
either side, and of the ratios peer / ours of the rounds. A ratio whose quartiles lie on both sides of 1 is a tie.
"""
