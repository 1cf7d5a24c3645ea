"""Generative augmentation for atypical femoral fractures: what the notebooks call."""
