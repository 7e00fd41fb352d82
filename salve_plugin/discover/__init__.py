"""Learn a dictionary on a model's activations and find the latents that each class depends on."""
