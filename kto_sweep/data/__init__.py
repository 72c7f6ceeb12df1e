"""From data files to token ids.

sources, hub_data (what a name means) --> readers (raw rows of any file: json_rows, csv_rows, table_rows)
    --> formats, messages, labels (what a row means) --> examples (one by one, with what was noticed)
    --> template, tokenise (text, token ids) --> table (rows as columns), load (kept on disk if large)
    --> split (held out, mismatched partners, batches) --> dataset (a trial's rows)
lint*, shown_rows: the same rows checked and shown without a GPU
"""
