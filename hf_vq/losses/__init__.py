"""Losses beside the reconstruction's: adversarial, perceptual, spectral; each a small class with its paper."""
