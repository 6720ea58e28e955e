"""HTTP: authentication, errors, middleware, paging and the mounted gateway."""
