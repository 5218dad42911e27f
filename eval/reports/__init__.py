"""From numbers to what a person reads.

Read `results` (an evaluation from claim to results.json), then `contact_sheet`, `comparison`, `detections`
and `published`.
"""
