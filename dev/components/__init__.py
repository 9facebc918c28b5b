"""Every data set, metric, hook, sampler and loop of the libraries, run by mmengine's runner and by ours."""
