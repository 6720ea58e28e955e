"""The clouds whose variables this worker has."""

from collections.abc import Mapping

from trainers.configs.clouds.offers import CloudName

# Without these, the others say nothing: AWS's are also those of a bucket, Lambda's are settings.
DECISIVE: dict[CloudName, tuple[str, ...]] = {
    CloudName.aws: ("AWS_ACCESS_KEY_ID", "AWS_EC2_SUBNET_ID"),
    CloudName.lambda_cloud: ("LAMBDA_API_KEY",),
}


def find_clouds(environment: Mapping[str, str]) -> list[CloudName]:
    """Return the clouds in which this worker can launch hosts: the variables that decide it are set."""
    return [
        cloud for cloud, names in DECISIVE.items() if all(environment.get(name, "").strip() for name in names)
    ]
