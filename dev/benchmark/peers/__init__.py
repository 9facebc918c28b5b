"""The networks and operators of others that ours are timed beside."""
