# A whole copy of the model on every process, gradients averaged: what a run of several processes does by default.
runner_type = 'Runner'
strategy = None
