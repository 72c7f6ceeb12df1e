"""From data files to token ids.

sources, hub_data (what a name means) --> readers (raw rows of any file: json_rows, csv_rows, table_rows)
    --> formats, messages (examples) --> template, tokenise (token rows)
    --> split (held out, mismatched partners, batches) --> dataset (a trial's rows)
lint*: the same rows checked without a GPU
"""
