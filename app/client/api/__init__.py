"""The HTTP side: requests, retries, streams, files and the errors of all of them."""
