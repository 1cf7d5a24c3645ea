"""Translators: what turns NFF into AFF radiographs and back, learnt from unpaired images.

Read `translator` first (what every method offers), then `training` (the one loop), then a method: `cyclegan`, or
`cyclediff/`, which opens with `process`. Their shared blocks are in `networks`; `folds` trains one in every fold;
`methods` is the table that the project runs over. What becomes of the images: `lib.fidelity` and `lib.trials`.
"""
