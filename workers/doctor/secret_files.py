"""The check that other users of the host cannot read the secrets that joining has stored."""

from app.settings import Settings
from workers.doctor.check_result import CheckResult
from workers.joining.env_file import NAME, is_readable_by_others, read_mode


def check_secret_files(settings: Settings) -> list[CheckResult]:
    """Return the check of the worker's variables and of the key of its tunnel; none if there are none."""
    paths = [settings.data_dir / NAME, *([settings.tunnel_key_file] if settings.tunnel_key_file else [])]
    stored = [path for path in paths if path.is_file()]
    if not stored:
        return []
    if readable := [path for path in stored if is_readable_by_others(path)]:
        found = ", ".join(f"{path} has mode {read_mode(path):o}" for path in readable)
        fix = f"Run `chmod 600 {' '.join(map(str, readable))}`, and renew the key if others use this host."
        return [CheckResult.warning("secret files", f"other users can read secrets: {found}", fix)]
    return [CheckResult.ok("secret files", f"{', '.join(map(str, stored))}: only the owner can read them")]
