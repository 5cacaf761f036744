"""What other tools write into their pictures: read as fields, and told as a command of ours. Starts in `read`.

May import presets, jobs and pictures; never torch.
"""
