"""How a host joins the control plane, and leaves it: credentials, an env file, and a unit for its worker."""
