"""What is written to disk, so that it is whole, says what made it, and can be read again.

Read `files` first (whole or nothing), then `shards` and `folder_claim` (work that resumes), `hashes` and `provenance`
(what made a result), and `run_records`, `figures`, `tables` (what a run shows).
"""
