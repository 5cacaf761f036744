"""Learn from pairs of pictures: `layouts` finds them, `check` looks at them, `recipe` trains, `run_folder` keeps."""
