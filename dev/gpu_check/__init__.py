"""The first minutes on a GPU: what is right, how fast it is, and how our networks stand beside timm's.

It needs torch, Triton and this checkout; mmengine is stood in for where it is missing. In this order, until the budget
of seconds is used up:

1. All kernels in Triton are compiled, side by side.
2. Every operator is compared with its formula in float64 on the CPU, forward and gradients, in float32, float16 and
   bfloat16, on odd maps.
3. Operators are timed in each of their forms.
4. The four networks are timed, eager and compiled, with and without recomputation, beside timm's with the same weights.

What there was no time for is listed as left out. The results are one JSON file, which is written after each step.
"""
