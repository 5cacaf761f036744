"""The warm server: a pool of loaded models, a queue of requests, and the HTTP APIs. Start in `app`."""
