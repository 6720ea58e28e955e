"""The views, one module each: routes, the state that a page shows, and its parts that change live."""
