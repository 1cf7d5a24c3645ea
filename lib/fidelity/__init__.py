"""Fidelity: images that generators make, and how well they imitate real ones (notebook 04).

First `synthesis` (making them), `judge` (the eye that measures) and `measures` (the fidelity table, with the feature
spaces of `distances`). Then one question a file: `steganography`, `memorisation`, `hallucination`. By hand:
`curation`, `reader_study`. `controls` are generators whose worth is known beforehand. `summary` says what notebook 04
shows.

Translators are trained in `lib.translators`, classifiers in `lib.trials`.
"""
