"""`python -m tests.proofs.attack [KIND …]`: a table, and each case that is neither refused nor right."""

import argparse
import sys
import tempfile
from pathlib import Path

from .kinds import KINDS, outcomes_of
from .runner import GOOD, table_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)}; default: all")
    parser.add_argument("--only", default="", help="cases whose name has this text")
    parser.add_argument("--keep", type=Path, help="folder to keep what bad cases leave")
    parser.add_argument("--at_once", type=int, default=2, help="cases that run together")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.keep or Path(folder)
        outcomes = outcomes_of(options.kinds or list(KINDS), root, options.at_once, options.only, bool(options.keep))
    print(table_of(outcomes))
    sys.exit(any(each.verdict not in GOOD for each in outcomes))


if __name__ == "__main__":
    main()
