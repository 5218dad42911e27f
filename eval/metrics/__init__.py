"""From features to numbers.

Read `scores` (the list of metrics), then `distances`. `accuracy` measures classifiers, `detection` detectors,
`nearest_neighbor` small images.
"""
