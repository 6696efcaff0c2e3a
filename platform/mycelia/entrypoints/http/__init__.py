"""`@http`. Starlette and uvicorn are imported when a service has an HTTP method, not before."""
