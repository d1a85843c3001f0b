"""The HTTP server: requests in, vectors and hits out, many requests in one batch.

It may import every room but cli. Starlette, uvicorn, prometheus-client and python-multipart, which come with the extra
`serve`, are imported in this room only.
"""
