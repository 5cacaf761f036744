"""The part of AUTOMATIC1111's web UI API that makes pictures from pictures. Start in `api`."""
