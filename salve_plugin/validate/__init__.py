"""Attribution to latents, activation maximization, and numbers for both."""
