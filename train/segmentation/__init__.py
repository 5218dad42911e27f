"""Training segmenters: four heads on EMOv2 and EMOv1, U-EMO and the plain UNet.

Read `config`, `data`, `trainer`, then `model_card`.
"""
