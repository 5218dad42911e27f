"""Training detectors on EMOv2 and EMOv1.

Read `config`, `data`, `trainer`, then `model_card`.
"""
