"""A page in the browser and an HTTP API for one model, in one process; `tools/serve.py` starts it."""
