"""The pages: views of the same services as the API, rendered on the server."""
