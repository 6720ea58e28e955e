"""The Python client of Tunesmith: the public names of `app.client`, under the name of the package.

A module of its own and no second copy, so that a class is the same object under both names.
"""

from app.client import *  # noqa: F403
from app.client import __all__ as __all__
from app.client import __doc__ as __doc__
