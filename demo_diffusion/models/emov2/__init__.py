"""EMOv2 and EMOv1: classifiers and backbones on the i2RMB block.

The files have transformers' names. Read `configuration`, `modeling`, then `presets` (the named sizes) and `auto`
(transformers' Auto classes).
"""
