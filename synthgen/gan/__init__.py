"""Conditional GANs for few images: networks, losses, training, sampling, selection."""
