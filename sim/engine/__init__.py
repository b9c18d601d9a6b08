"""What is simulated: time, workers with their KV pools, and the links between them."""
