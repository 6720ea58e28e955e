"""The objects of the service as the client returns them, with what can be done to them.

Fields are those of the API; one that a newer server adds is kept as it is.
"""
