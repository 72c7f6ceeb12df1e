"""Estimates a sweep before it runs: memory, time, disk, and how many trials fit on a GPU together.

data, tokenizer --> workload (tokens of each step) --+
config.json ------> models.architecture -------------+--> memory, timing --> planner: each cell, the sweep
--gpu ------------> gpus ----------------------------+                             (cells: groups of trials)
create_check plans a sweep before it is registered.
"""
