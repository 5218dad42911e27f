"""Parameters and GMACs of the presets."""

# Parameters with the fixed position table, those trained, and GMACs. D-EMO: as the paper's table XIV and its logs say.
# DiT, SiT: parameters as the official code logs; GMACs as DiT's paper says (Table 4: 6.06, 23.01, 80.71, 118.64), which
# leaves out the norms, and the norms.
DIT_SIZES = {
    "S/2": (32_963_360, 32_865_056, 6.068),
    "B/2": (130_512_416, 130_315_808, 23.030),
    "L/2": (458_102_816, 457_840_672, 80.762),
    "XL/2": (675_129_632, 674_834_720, 118.705),
}
SIZES = {
    "DEMO-S/2": (24_596_000, 24_497_696, 5.429),
    "DEMO-B/2": (96_082_976, 95_886_368, 19.930),
    "DEMO-L/2": (334_831_648, 334_569_504, 69.255),
    "DEMO-XL/2": (492_692_000, 492_397_088, 101.476),
    **{f"DiT-{size}": expected for size, expected in DIT_SIZES.items()},
    **{f"SiT-{size}": expected for size, expected in DIT_SIZES.items()},
}
