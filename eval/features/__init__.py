"""From images to features, and to the statistics that samples are measured against.

Read `extractors` (the networks), `extraction` and `shards` (any number of processes, resumable), `moments`, then
`reference` (real images).
"""
