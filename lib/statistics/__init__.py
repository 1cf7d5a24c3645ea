"""Statistics: which differences the data prove. Arrays and tables in, numbers out; nothing here reads a run.

Read in this order: `metrics` (what a classifier's probabilities are worth), `inference` (tests of paired differences),
`bootstrap` (intervals of every other metric), `kid` (tests of generators), `comparisons` (the declared questions, and
what the data say to each), `planning` (power, and what the next run costs), `readers` (what readers' answers prove),
`simulation` (do the tests keep their level?). Sentences made of these numbers: `lib.report.answers`.
"""
