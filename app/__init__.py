"""The control plane: HTTP and SQL. It imports no ML package."""
