"""One file for each command: its options and its help. What it does lies in `cli` beside this folder."""
