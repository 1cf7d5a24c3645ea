"""Trials: the same classifier trained under every condition (notebook 05).

First `conditions` (how a training set is made), then `classifier` (the network and its training) and `trials` (every
condition in every fold with every seed), `summary` (what they were given and reached).

What the numbers prove is asked in `lib.statistics`; synthetic images come from `lib.fidelity.synthesis`.
"""
