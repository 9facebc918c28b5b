"""What a network costs: parameters, operations, memory, and the time of a training estimated from them."""
