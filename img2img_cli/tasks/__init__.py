"""What is done to one picture: jobs and their plan, the pieces that a model is asked for, and the order of stages.

Imports `pictures` and below, never torch: a model is anything with `pieces.Pipeline`'s methods. Start in `run`.
"""
