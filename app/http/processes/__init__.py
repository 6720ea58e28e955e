"""The processes of a service on one machine: the API's, and the worker's."""
