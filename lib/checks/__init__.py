"""Checks: what must not be, in a run or in what is given away. Only notebooks and commands use them.

First `audit` (leaks between the parts of a fold), then `privacy` (names and numbers in files). `verify` makes a run
again and compares the two. `choices` refuses, before hours of training, what a late notebook would refuse.

What a training itself must not do is in `lib.data.leaks`.
"""
