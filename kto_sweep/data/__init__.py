"""From a data file to token ids.

files (rows of any container) --> formats, messages (examples) --> template, tokenise (token rows)
    --> split (held out, mismatched partners, batches) --> dataset (a trial's rows)
lint*: the same rows checked without a GPU
"""
