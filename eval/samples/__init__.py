"""What is measured.

`image_sources` reads images that exist, `generated` draws them from a pipeline, `fingerprint` says what decides them.
"""
