"""Training EMOv2 and EMOv1 to classify images.

Read `config`, `data`, `trainer`, then `distillation` and `model_card`.
"""
