"""One question each, with the answer in docs/results; each is a program: `python eval/studies/NAME.py`."""
