"""CycleDiff: a diffusion model for each of two domains, and cycle translators between their image components.

S. Zou, Y. Huang, R. Yi, C. Zhu, K. Xu, arXiv 2508.06625 (equation numbers of its version of January 2026), on decoupled
diffusion models, arXiv 2306.13720. Read in this order: `process` (symbols, where each equation stands, diffusion and
solvers), `losses` (each term), `train` (the steps), `model` (translate, draw), `settings` (what can be chosen, and what
the paper chose). The networks are in `networks`, `unet` and `autoencoders`; `ablations` trains with one part changed.
"""
