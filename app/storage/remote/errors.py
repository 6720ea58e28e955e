"""Errors of a remote store, all of which are OSErrors: a run that meets one is tried again.

StoreUnreachable              it does not respond, or fails
  StoreRefused                it refuses what the settings say; a person must correct them
    StoreCredentialsRefused
    BucketMissing
    BucketInOtherRegion
    StoreEncryptionRefused
ArtifactExists                another artifact has the key
"""

import errno


class StoreUnreachable(OSError):
    """The artifact store did not respond."""


class StoreRefused(StoreUnreachable):
    """The artifact store refuses requests with these settings, and will until they are corrected."""


class StoreCredentialsRefused(StoreRefused):
    """The credentials are missing, wrong or expired, or do not allow the request."""


class BucketMissing(StoreRefused):
    """The bucket of the artifact store does not exist."""


class BucketInOtherRegion(StoreRefused):
    """The bucket is in another region than the requests are signed for."""


class StoreEncryptionRefused(StoreRefused):
    """The store cannot encrypt as the settings say."""


class ArtifactExists(OSError):
    """An artifact with other content is published under the key, and is not replaced."""

    def __init__(self, key: str) -> None:
        super().__init__(errno.EEXIST, f"the artifact {key} exists with other content, and is not replaced")
