"""Chooses the next trial of a sweep: pure functions of its search space and the trials so far.

distributions, distribution_forms --> space, space_parser: parse a sweep's `parameters`
grid | Space.sample | bayes (on the axes of a unit cube) --> the next configuration
hyperband, asha: which trials stop or pause early.   options, objectives, replicates: the `kto_sweep` block
"""
