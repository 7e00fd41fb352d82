"""What speaks for each latent of a dictionary, and what chance gives beside it."""
