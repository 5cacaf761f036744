"""Networks of our own that turn a picture into a picture in one pass. Imports torch alone; start at `folder`."""
