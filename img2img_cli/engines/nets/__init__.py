"""The classes of img2img's own networks, from picture to picture in one pass. Imports only torch; start in `folder`."""
