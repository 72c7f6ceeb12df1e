"""`kto-sweep train`: a single run outside a sweep.

options, resume --> prepare (trial, server, folder) --> dry_run | run
"""
